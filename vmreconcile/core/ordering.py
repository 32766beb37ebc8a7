"""Which servers of a host must be done before which, because one has the port that another takes. Pure.

Who is in nobody's way, or in the way of somebody who can wait, is restarted in its turn, down no longer than it needs.
Only where they wait for each other in a ring (two servers swap their ports) all of them are stopped before any starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vmreconcile.core.gpus.lanes import starts
from vmreconcile.core.rollout.units import rank_of
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView
from vmreconcile.model.plan import Change


def in_turn(changes: Iterable[Change], host: HostView) -> list[Change]:
    """The changes of one host, each with those that must be done before it, or `early` where there is no such order."""
    changes = list(changes)
    by_server = {change.server: change for change in changes}
    before = {change.server: holder for change in changes if (holder := _holder(change, changes, host)) is not None}
    early = {change.server for change in changes if change.early} | _in_rings(before)
    while True:
        more = {
            each
            for server, holder in before.items()
            if server in early or rank_of(by_server[server]) < rank_of(by_server[holder])
            for each in (server, holder)
        }
        if more <= early:
            break
        early |= more
    return [
        replace(
            change,
            early=change.server in early,
            after=() if change.server in early else _before(change, before),
        )
        for change in changes
    ]


def _before(change: Change, holders: Mapping[ServerId, ServerId]) -> tuple[ServerId, ...]:
    """Who has its port, and who has its GPUs, which is known of it already."""
    holder = holders.get(change.server)
    return tuple(sorted({*change.after, *([holder] if holder is not None else ())}))


def _holder(change: Change, changes: Iterable[Change], host: HostView) -> ServerId | None:
    """Who has the port that a server is to start on, and gives it up within this plan as it is restarted."""
    if not starts(change) or change.gate is None:
        return None
    for other in changes:
        if other.server != change.server and other.disruptive and starts(other):
            process = host.server(other.server.slug).process
            if process is not None and change.gate.port in process.ports:
                return other.server
    return None


def _in_rings(before: dict[ServerId, ServerId]) -> set[ServerId]:
    """Those that wait for each other in a ring; each waits for one other at most."""
    rings: set[ServerId] = set()
    for start in before:
        seen: list[ServerId] = []
        at: ServerId | None = start
        while at is not None and at not in seen:
            seen.append(at)
            at = before.get(at)
        if at is not None:
            rings.update(seen[seen.index(at) :])
    return rings

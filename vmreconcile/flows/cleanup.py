"""Workers of ours whose root died, ended at once; nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmreconcile.core.fingerprints import Known
from vmreconcile.effects.locks import LOCKED
from vmreconcile.effects.lost import reached
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.session import AgentError
from vmreconcile.flows.locking import lock_host
from vmreconcile.flows.prepare import Prepared
from vmreconcile.flows.run import Reporter, Run, send_steps
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, HostView, Orphan, Stranger, Unreachable
from vmreconcile.runtimes.process import end_orphans


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What was ended, what would not go (with the reason), and what is not ours and therefore stays.

    `locked` are the hosts that another run holds.
    """

    ended: tuple[Orphan, ...] = ()
    failed: tuple[tuple[Orphan, str], ...] = ()
    strangers: tuple[Stranger, ...] = ()
    foreign: tuple[Orphan, ...] = ()
    unreachable: tuple[Unreachable, ...] = ()
    locked: tuple[str, ...] = ()


def clean_up(prepared: Prepared, view: FleetView, reporter: Reporter) -> Cleaned:
    """End every orphan of ours that `view` shows, each known by pid and start time together."""
    run = Run(
        fleet=prepared.fleet,
        desired={},
        known=Known(salt=""),
        secrets={},
        reporter=reporter,
        lock_timeout=prepared.lock_timeout,
        command=prepared.command,
    )
    ended: list[Orphan] = []
    failed: list[tuple[Orphan, str]] = []
    locked: list[str] = []
    hosts = {host.host: host for host in view.hosts if any(server.orphans for server in host.servers)}
    cleaned, lost = reached(
        for_each(hosts, lambda name: _clean(hosts[name], run), prepared.fleet.forks), before=view.unreachable
    )
    for name, done in cleaned.items():
        ours = [orphan for orphan in hosts[name].orphans if orphan.server]
        ended += [orphan for orphan in ours if orphan.server not in done.problems]
        failed += [(orphan, done.problems[orphan.server]) for orphan in ours if orphan.server in done.problems]
        locked += [name] if done.locked else []
    return Cleaned(
        ended=tuple(sorted(ended, key=_place)),
        failed=tuple(sorted(failed, key=lambda each: _place(each[0]))),
        strangers=tuple(stranger for host in view.hosts for stranger in host.strangers),
        foreign=tuple(orphan for host in view.hosts for orphan in host.orphans if not orphan.server),
        unreachable=lost,
        locked=tuple(locked),
    )


def _place(orphan: Orphan) -> tuple[str, int]:
    return orphan.host, orphan.pid


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """What would not go on one host: slug and reason; and whether that is so because another run holds it."""

    problems: Mapping[str, str]
    locked: bool = False


def _clean(host: HostView, run: Run) -> _Done:
    """Hold the host and end what is ours there."""
    refused = lock_host(host.host, run)
    if refused is not None:
        return _Done(problems={server.slug: refused.summary for server in host.servers}, locked=refused.kind == LOCKED)
    problems: dict[str, str] = {}
    for server in host.servers:
        if server.orphans:
            try:
                send_steps(ServerId.from_slug(server.slug, host.host), (end_orphans(server),), run)
            except AgentError as error:
                problems[server.slug] = str(error)
    return _Done(problems=problems)

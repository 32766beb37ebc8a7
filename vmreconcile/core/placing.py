"""From wanted servers and a host's facts to who gets which GPUs, tuning rules applied. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from vmreconcile.core.gpus.demand import SHARE
from vmreconcile.core.gpus.knowledge import Lore
from vmreconcile.core.gpus.place import Fixed, Placing, place
from vmreconcile.core.gpus.tenants import Tenant, tenant_of
from vmreconcile.core.gpus.visible import named, words_in
from vmreconcile.core.tuning import tuned
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView
from vmreconcile.model.plan import Action, Change
from vmreconcile.vllm.catalogue import catalogue_for


def placing_of(wanted: Iterable[DesiredServer], host: HostView, lore: Lore, fixed: Fixed | None = None) -> Placing:
    """GPUs and numbers for the servers that are to run on a host; the others take none."""
    running = [server for server in wanted if server.state is DesiredState.RUNNING]
    return place(host, [tenant_on(server, host) for server in running], lore, fixed or Fixed())


def tenant_on(server: DesiredServer, host: HostView) -> Tenant:
    """A server as one who asks for GPUs of this host, with what tuning rules set."""
    version = host.installed(server.executable).version
    catalogue = catalogue_for(version)
    server, tuning = tuned(server, host, catalogue)
    return tenant_of(server, tuning, host.server(server.id.slug), catalogue, version or "")


def making_room(changes: Iterable[Change], host: HostView) -> list[Change]:
    """The changes of one host, those marked that give up what another one takes.

    One that comes back on other GPUs is taken down before any of these starts; one that only takes less of the same
    ones is restarted before the others start.
    """
    changes = list(changes)
    found = []
    for change in changes:
        if not (change.pending and change.disruptive and change.placed):
            found.append(change)
            continue
        taken = frozenset(
            uuid
            for other in changes
            if other.server != change.server and other.pending and other.placed and _loads(other)
            for uuid in other.placed.devices
        )
        now, stays = _now(change, host), frozenset(change.placed.devices)
        in_the_way = bool(now & taken)
        moves, shrinks = in_the_way and now != stays, in_the_way and now == stays and _takes_less(change)
        found.append(replace(change, early=change.early or moves, frees=shrinks))
    movers = {change.server: _now(change, host) for change in found if change.early}
    return [_after_movers(change, movers) for change in found]


def _after_movers(change: Change, movers: Mapping[ServerId, frozenset[str]]) -> Change:
    """The change, after those whose GPUs it takes: one that cannot be taken down, or not yet, still has its own."""
    if change.early or not (change.pending and change.placed and _loads(change)):
        return change
    taken = frozenset(change.placed.devices)
    before = sorted(server for server, now in movers.items() if now & taken)
    return replace(change, after=tuple(before))


def _takes_less(change: Change) -> bool:
    """Whether a running server comes back with less of its GPUs than it has."""
    for field in change.fields:
        if (
            field.path == f"args.{SHARE}"
            and isinstance(field.before, int | float)
            and isinstance(field.after, int | float)
        ):
            return field.after < field.before
    return False


def _loads(change: Change) -> bool:
    return change.action is Action.START or change.disruptive


def _now(change: Change, host: HostView) -> frozenset[str]:
    """The GPUs on which a server holds memory, or which it was given."""
    process = host.server(change.server.slug).process
    if process is None:
        return frozenset()
    held = frozenset(gpu.uuid for gpu in host.gpus if gpu.held_by(process.pids))
    return held | frozenset(uuid for word in words_in(process.env) if (uuid := named(word, host.gpus)))

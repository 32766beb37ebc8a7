"""Which GPUs a server gets that has none yet: free ones of one kind, side by side, else a shared one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmreconcile.core.gpus.demand import gib
from vmreconcile.core.gpus.ground import Ground, flaw_of, is_suspect
from vmreconcile.core.gpus.seats import Seats, least_of
from vmreconcile.core.gpus.tenants import Tenant


def choose(tenant: Tenant, seats: Seats) -> tuple[str, ...]:
    """GPUs by UUID for a server, () where it cannot be placed.

    The same host, with the same servers on it, gives the same GPUs.
    """
    share = tenant.number if tenant.number is not None else tenant.default
    free = [uuid for uuid in _usable(tenant, seats.ground) if seats.is_free(uuid, share) and _fits(tenant, uuid, seats)]
    if len(free) >= tenant.count:
        return _together(free, tenant.count, seats.ground)
    return _shared(tenant, seats)


def _usable(tenant: Tenant, ground: Ground) -> list[str]:
    """The GPUs on which something new may be put, in the order in which they are taken.

    A group of several GPUs cannot be made of instances (MIG user guide: a program sees one instance).
    """
    found = [
        (is_suspect(gpu), bool(gpu.parent), at, uuid)
        for at, (uuid, gpu) in enumerate(ground.gpus.items())
        if not flaw_of(gpu) and uuid not in ground.cordoned and not (gpu.parent and tenant.count > 1)
    ]
    return [uuid for *_, uuid in sorted(found)]


def _fits(tenant: Tenant, uuid: str, seats: Seats) -> bool:
    """Whether a GPU is large enough, as far as anybody knows."""
    if tenant.number is not None:
        return True
    demand = tenant.hint(uuid)
    return isinstance(demand, str) or demand.total <= seats.ground.room(uuid, 1)


def _together(free: Sequence[str], count: int, ground: Ground) -> tuple[str, ...]:
    """`count` of the free GPUs: an aligned run of one kind, else any run, else one kind, else the first."""
    order = list(ground.gpus)
    first = tuple(free[:count])
    if count == 1:
        return first
    for run in (*_runs(order, count, count), *_runs(order, count, 1)):
        if set(run) <= set(free) and is_one_kind(run, ground):
            return run
    kinds: dict[str, list[str]] = {}
    for uuid in free:
        kinds.setdefault(ground.gpus[uuid].name, []).append(uuid)
    alike = next((uuids for uuids in kinds.values() if len(uuids) >= count), None)
    return tuple(alike[:count]) if alike else first


def _runs(order: Sequence[str], count: int, step: int) -> Iterator[tuple[str, ...]]:
    for begin in range(0, len(order) - count + 1, step):
        yield tuple(order[begin : begin + count])


def is_one_kind(devices: Sequence[str], ground: Ground) -> bool:
    """Whether GPUs are all of one model."""
    return len({ground.gpus[uuid].name for uuid in devices}) == 1


def _shared(tenant: Tenant, seats: Seats) -> tuple[str, ...]:
    """The GPUs with the most room beside others; those where nobody who runs must give way come first."""
    for shrunk in (False, True):
        rooms = []
        for at, uuid in enumerate(_usable(tenant, seats.ground)):
            left, least = seats.left(uuid, shrunk=shrunk), least_of(tenant, uuid, seats.ground, shrunk=True)
            if left is not None and least is not None and least <= left:
                rooms.append((-left, at, uuid))
        if len(rooms) >= tenant.count:
            return tuple(uuid for *_, uuid in sorted(sorted(rooms)[: tenant.count], key=lambda room: room[1]))
    return ()


def obstacles(tenant: Tenant, seats: Seats) -> list[str]:
    """For a server that got no GPU: why not each of them, for a person; those with the same reason together."""
    alike: dict[str, list[str]] = {}
    for uuid, gpu in seats.ground.gpus.items():
        alike.setdefault(_obstacle(tenant, uuid, seats), []).append(gpu.label)
    for gpu in seats.ground.silent:
        alike.setdefault(flaw_of(gpu), []).append(gpu.label)
    told = [f"{_joined(labels)}: {reason}" for reason, labels in alike.items()]
    return [*told, *([seats.ground.problem] if seats.ground.problem else [])]


def _joined(labels: Sequence[str]) -> str:
    """'GPU 0, 1, 2' for several."""
    return ", ".join([labels[0], *(label.removeprefix("GPU ") for label in labels[1:])])


def _obstacle(tenant: Tenant, uuid: str, seats: Seats) -> str:
    ground = seats.ground
    gpu, total = ground.gpus[uuid], ground.cards[uuid].total
    if flaw := flaw_of(gpu):
        return flaw
    if uuid in ground.cordoned:
        return "is cordoned"
    if gpu.parent and tenant.count > 1:
        return "is one instance, and several GPUs are needed"
    words = [f"{gib(holder.size)} GiB held by {holder.who}" for holder in ground.others[uuid]]
    for other in seats.on(uuid):
        least = least_of(other, uuid, ground, shrunk=True)
        words.append(f"{other.id.local} takes {gib(least)} GiB" if least is not None else f"{other.id.local} is on it")
    return f"{gib(total)} GiB{_needed(tenant, uuid, ground)}" + ("; " + ", ".join(words) if words else "")


def _needed(tenant: Tenant, uuid: str, ground: Ground) -> str:
    """What a server would take of a GPU, as far as anybody knows."""
    total, demand = ground.cards[uuid].total, tenant.hint(uuid)
    if tenant.number is not None:
        return f", {gib(tenant.number * total)} asked for"
    if isinstance(demand, str):
        return ""
    if tenant.floor * total > demand.total:
        return f", {gib(tenant.floor * total)} needed (a tuning rule asks for {tenant.floor:g})"
    return f", {gib(demand.total)} needed"

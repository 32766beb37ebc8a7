"""Ways to find GPUs for a server: for one that runs, is listed, comes back, or has none yet. Pure."""

from __future__ import annotations

from vmreconcile.core.gpus.blocks import listed_wrongly, nowhere, too_old
from vmreconcile.core.gpus.choose import choose
from vmreconcile.core.gpus.ground import Ground, flaw_of
from vmreconcile.core.gpus.seats import Seats
from vmreconcile.core.gpus.tenants import Tenant, was_told
from vmreconcile.model.plan import Block


def running(tenant: Tenant, seats: Seats) -> tuple[str, ...] | None:
    """Where a server runs, if it may stay there. One that was told nothing took the first GPUs that it saw."""
    if not tenant.runs or tenant.listed:
        return None
    now = tenant.now
    if not now or (len(now) < tenant.count and not tenant.changed):  # its start has not come to the others yet
        rest = (uuid for uuid in first_seen(tenant, seats.ground) if uuid not in now)
        now = (*now, *rest)[: tenant.count]
    return None if must_move(tenant, now, seats.ground) else now


def first_seen(tenant: Tenant, ground: Ground) -> tuple[str, ...]:
    """The GPUs of a server that was told nothing: the first that it saw."""
    if was_told(tenant):
        return ()
    return tuple(uuid for uuid, gpu in ground.gpus.items() if not gpu.split)[: tenant.count]


def must_move(tenant: Tenant, now: tuple[str, ...], ground: Ground) -> str:
    """Why a server cannot be where it is, "" where it can."""
    if len(now) != tenant.count:
        return f"it takes {tenant.count} GPUs now" if now else "where it was is not known"
    flaws = [f"{ground.gpus[uuid].label} {flaw}" for uuid in now if (flaw := flaw_of(ground.gpus[uuid]))]
    cordoned = [] if tenant.runs else [ground.gpus[uuid].label for uuid in now if uuid in ground.cordoned]
    return flaws[0] if flaws else f"{cordoned[0]} is cordoned" if cordoned else ""


def listed(tenant: Tenant, seats: Seats) -> tuple[str, ...] | Block | None:
    """GPUs that somebody wrote."""
    if not tenant.listed:
        return None
    devices = tuple(uuid for word in tenant.listed if (uuid := seats.ground.named(word)))
    if not isinstance(tenant.server.gpus, tuple):  # in its env: left as it is, and reckoned with where it is understood
        return devices
    return listed_wrongly(tenant, seats.ground) or devices


def returning(tenant: Tenant, seats: Seats) -> tuple[str, ...] | None:
    """Where a server that does not run was before, if there is still room for it."""
    before = tenant.now
    if tenant.listed or not before or must_move(tenant, before, seats.ground):
        return None
    share = tenant.number if tenant.number is not None else tenant.default
    return before if all(seats.is_free(uuid, share) or seats.has_room(tenant, uuid) for uuid in before) else None


def chosen(tenant: Tenant, seats: Seats) -> tuple[str, ...] | Block:
    """GPUs for a server that has none. Words in its env that mean none that is seen are left to vLLM."""
    if tenant.listed:
        return ()
    devices = choose(tenant, seats)
    return too_old(tenant, devices, seats.ground) or devices if devices else nowhere(tenant, seats)

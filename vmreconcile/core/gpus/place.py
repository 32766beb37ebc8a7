"""Places the servers of one host on its GPUs. Pure: the same host and the same files give the same plan.

Who is somewhere stays there unless it must move; then come those whose GPUs somebody wrote; then the others, the more
important and the larger first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vmreconcile.core.gpus.blocks import overfull, unseen
from vmreconcile.core.gpus.finders import chosen, first_seen, listed, returning, running
from vmreconcile.core.gpus.ground import ground_of
from vmreconcile.core.gpus.knowledge import Knowledge, Lore
from vmreconcile.core.gpus.outcome import left_alone, mixed, placed_at, too_small, untouched
from vmreconcile.core.gpus.seats import Seats
from vmreconcile.core.gpus.share import Overfull, Shares, shares
from vmreconcile.core.gpus.tenants import Tenant, as_it_is, is_unclear, where_now
from vmreconcile.model.gpus import Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.plan import Block


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """What became of each server of a host: placed, or blocked if it is to start.

    `asks`: whose model's files would have told more. `notes` are warnings.
    """

    placed: Mapping[ServerId, Placed] = field(default_factory=dict)
    blocks: Mapping[ServerId, Block] = field(default_factory=dict)
    notes: Mapping[ServerId, str] = field(default_factory=dict)
    asks: frozenset[ServerId] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What a plan says of servers before it places them.

    `leaving` are taken down before any starts. `still` are left as they are, whatever is wanted of them.
    """

    leaving: tuple[ObservedServer, ...] = ()
    still: frozenset[ServerId] = frozenset()
    barred: frozenset[ServerId] = frozenset()
    """Servers that do not run and must not start, whatever is free: no GPU is kept for them."""


def place(host: HostView, tenants: Sequence[Tenant], lore: Lore, fixed: Fixed) -> Placing:
    """GPUs and numbers for all servers that are to run on a host."""
    cordoned = [word for tenant in tenants for word in tenant.server.cordoned_gpus]
    ground = ground_of(host, [*(tenant.observed for tenant in tenants), *fixed.leaving], cordoned)
    knowledge = Knowledge(ground, lore)
    known = (replace(knowledge.given_to(tenant), now=where_now(tenant, ground)) for tenant in tenants)
    tenants = sorted(known, key=lambda tenant: tenant.rank)
    blocks = {tenant.id: block for tenant in tenants if (block := unseen(tenant, host)) is not None}
    unclear = {tenant.id: untouched(tenant) for tenant in tenants if is_unclear(tenant, host, ground)}
    if not ground.gpus:
        return Placing(placed={tenant.id: untouched(tenant) for tenant in tenants}, blocks=blocks)
    tenants = [tenant for tenant in tenants if tenant.id not in unclear]
    up = {tenant.id for tenant in tenants if tenant.runs}
    still = up & ({*fixed.still, *blocks} | {tenant.id for tenant in tenants if not tenant.count})
    while True:
        found = _attempt(tenants, Seats(ground=ground), blocks, still | fixed.barred)
        if up & found.blocks.keys() <= still:
            return replace(found, placed={**found.placed, **unclear}, asks=frozenset(knowledge.asks))
        blocks = {server: block for server, block in found.blocks.items() if server in up}
        still |= blocks.keys()


def _attempt(
    tenants: Sequence[Tenant], seats: Seats, known: Mapping[ServerId, Block], still: Collection[ServerId]
) -> Placing:
    """Place everybody, those that are left as they are before all others: what they have is not to be had."""
    blocks = dict(known)
    for tenant in tenants:
        if tenant.runs and tenant.id in still and (now := tenant.now or first_seen(tenant, seats.ground)):
            seats.put(as_it_is(tenant, now), now)
    waiting = [tenant for tenant in tenants if tenant.count and tenant.id not in {*blocks, *still}]
    for find in (running, listed):
        waiting = _seat(waiting, seats, find, blocks)
    _shared_out(seats, blocks)  # who asks for too much of a listed GPU is in nobody's way who may choose
    for find in (returning, chosen):
        waiting = _seat(waiting, seats, find, blocks)
    found = _shared_out(seats, blocks)
    return Placing(
        placed={tenant.id: _outcome(tenant, seats, found, blocks, still) for tenant in tenants},
        blocks=blocks,
        notes={tenant.id: note for tenant in tenants if (note := mixed(tenant, seats) or too_small(tenant, seats))},
    )


def _shared_out(seats: Seats, blocks: dict[ServerId, Block]) -> Shares:
    """Numbers for all that have a seat, once those for whom a GPU has not enough were blocked and have left."""
    found = shares(seats)
    while isinstance(found, Overfull):
        blocks[found.last.id] = overfull(found, seats)
        seats.leave(found.last)
        found = shares(seats)
    return found


def _outcome(
    tenant: Tenant, seats: Seats, found: Shares, blocks: Mapping[ServerId, Block], still: Collection[ServerId]
) -> Placed:
    """What a server is given. One that is left as it is for a reason of its GPUs shows what is wanted of it."""
    if tenant.id in blocks and tenant.id in still:
        return left_alone(tenant)
    share = found.get(tenant.id)
    if tenant.id in still and share is not None:
        share = replace(share, number=share.number if tenant.told else None, why="as it runs", kept=True)
    return placed_at(tenant, seats, share)


Find = Callable[[Tenant, Seats], "tuple[str, ...] | Block | None"]
"""Finds GPUs for a server, or what is wrong with those that it asks for; None where it has nothing to say."""


def _seat(waiting: Iterable[Tenant], seats: Seats, find: Find, blocks: dict[ServerId, Block]) -> list[Tenant]:
    """Seat those for whom `find` knows GPUs; the others."""
    left = []
    for tenant in waiting:
        found = find(tenant, seats)
        if isinstance(found, Block):
            blocks[tenant.id] = found
        elif found:
            seats.put(tenant, found)
        else:
            left.append(tenant)
    return left

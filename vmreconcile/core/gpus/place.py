"""Places the servers of one host on its GPUs. Pure: the same host and the same files give the same plan.

Who is somewhere stays there unless it must move; then come those whose GPUs somebody wrote; then the others, the more
important and the larger first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vmreconcile.core.gpus.blocks import listed_wrongly, nowhere, overfull, too_old, unseen
from vmreconcile.core.gpus.choose import choose, is_one_kind
from vmreconcile.core.gpus.demand import LENGTH, SHARE, UNREAD, Demand, demand_of, gib, is_open
from vmreconcile.core.gpus.ground import Ground, flaw_of, ground_of
from vmreconcile.core.gpus.keys import memory_key
from vmreconcile.core.gpus.seats import Seats
from vmreconcile.core.gpus.share import Overfull, Share, Shares, shares
from vmreconcile.core.gpus.tenants import Tenant, as_it_is, was_told, where_now
from vmreconcile.core.gpus.visible import words_for
from vmreconcile.model.gpus import Figures, Measured, Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, HostView, ObservedServer
from vmreconcile.model.plan import Block
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import Kind
from vmreconcile.vllm.memory.stored import Checkpoint

ROUND_LENGTH = 256
"""A context that the tool chooses is a multiple of so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lore:
    """What is known of models' memory: their files by server, and what was measured on any host of the fleet."""

    models: Mapping[ServerId, Checkpoint] = field(default_factory=dict)
    unread: Mapping[ServerId, str] = field(default_factory=dict)
    measured: Mapping[tuple[str, str, str], Measured] = field(default_factory=dict)
    """By key, name of the GPU and version of vLLM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """What became of each server of a host: placed, or blocked if it is to start.

    `asks`: whose model's files would have told more. `notes` are warnings.
    """

    placed: Mapping[ServerId, Placed] = field(default_factory=dict)
    blocks: Mapping[ServerId, Block] = field(default_factory=dict)
    notes: Mapping[ServerId, str] = field(default_factory=dict)
    asks: frozenset[ServerId] = frozenset()


def lore_of(
    view: FleetView, models: Mapping[ServerId, Checkpoint], unread: Mapping[ServerId, str] | None = None
) -> Lore:
    """What the hosts' records say; of several alike the one that left least for the KV cache."""
    found: dict[tuple[str, str, str], Measured] = {}
    for host in view.hosts:
        for server in host.servers:
            measured = server.record.measured if server.record else None
            if measured is None or not measured.figures.beside:
                continue
            key = (measured.key, measured.gpu, measured.vllm_version)
            before = found.get(key)
            if before is None or (before.figures.beside or 0) < measured.figures.beside:
                found[key] = measured
    return Lore(models=models, unread=unread or {}, measured=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """What a plan says of servers before it places them.

    `leaving` are taken down before any starts. `still` are left as they are, whatever is wanted of them.
    """

    leaving: tuple[ObservedServer, ...] = ()
    still: frozenset[ServerId] = frozenset()


def place(host: HostView, tenants: Sequence[Tenant], lore: Lore, fixed: Fixed) -> Placing:
    """GPUs and numbers for all servers that are to run on a host."""
    cordoned = [word for tenant in tenants for word in tenant.server.cordoned_gpus]
    ground = ground_of(host, [*(tenant.observed for tenant in tenants), *fixed.leaving], cordoned)
    knowledge = _Knowledge(ground, lore)
    tenants = sorted((knowledge.given_to(tenant) for tenant in tenants), key=lambda tenant: tenant.rank)
    blocks = {tenant.id: block for tenant in tenants if (block := unseen(tenant, host)) is not None}
    if not ground.gpus:
        return Placing(placed={tenant.id: _left_alone(tenant) for tenant in tenants}, blocks=blocks)
    running = {tenant.id for tenant in tenants if tenant.runs}
    still = running & ({*fixed.still, *blocks} | {tenant.id for tenant in tenants if not tenant.count})
    while True:
        found = _attempt(tenants, Seats(ground=ground), blocks, still)
        if running & found.blocks.keys() <= still:
            return replace(found, asks=frozenset(knowledge.asks))
        blocks = {server: block for server, block in found.blocks.items() if server in running}
        still |= blocks.keys()


def _attempt(
    tenants: Sequence[Tenant], seats: Seats, known: Mapping[ServerId, Block], still: Collection[ServerId]
) -> Placing:
    """Place everybody, those that are left as they are before all others: what they have is not to be had."""
    blocks = dict(known)
    for tenant in tenants:
        if tenant.id in still and (now := where_now(tenant, seats.ground) or _first(tenant, seats.ground)):
            seats.put(as_it_is(tenant, now), now)
    waiting = [tenant for tenant in tenants if tenant.count and tenant.id not in {*blocks, *still}]
    for find in (_running, _listed, _returning, _chosen):
        waiting = _seat(waiting, seats, find, blocks)
    found = shares(seats)
    while isinstance(found, Overfull):
        blocks[found.last.id] = overfull(found, seats)
        seats.leave(found.last)
        found = shares(seats)
    return Placing(
        placed={tenant.id: _outcome(tenant, seats, found, blocks, still) for tenant in tenants},
        blocks=blocks,
        notes={tenant.id: note for tenant in tenants if (note := _mixed(tenant, seats) or _short(tenant, seats))},
    )


def _outcome(
    tenant: Tenant, seats: Seats, found: Shares, blocks: Mapping[ServerId, Block], still: Collection[ServerId]
) -> Placed:
    """What a server is given. One that is left as it is for a reason of its GPUs shows what is wanted of it."""
    if tenant.id in blocks and tenant.id in still:
        return _left_alone(tenant)
    share = found.get(tenant.id)
    if tenant.id in still and share is not None:
        share = replace(share, number=share.number if tenant.told else None, why="as it runs", kept=True)
    return _placed(tenant, seats, share)


class _Knowledge:
    """What servers need of GPUs, each worked out once; remembers whose files would be wanted."""

    def __init__(self, ground: Ground, lore: Lore) -> None:
        self.asks: set[ServerId] = set()
        self._ground = ground
        self._lore = lore
        self._known: dict[tuple[ServerId, str, int], Demand | str] = {}

    def given_to(self, tenant: Tenant) -> Tenant:
        """The server with a way to ask."""

        def hint(uuid: str) -> Demand | str:
            card = self._ground.cards[uuid]
            at = (tenant.id, card.name, card.total)
            if at not in self._known:
                key = (memory_key(tenant.server), card.name, tenant.version)
                checkpoint, measured = self._lore.models.get(tenant.id), self._lore.measured.get(key)
                found = demand_of(tenant.server, card, tenant.version, checkpoint, measured)
                self._known[at] = self._lore.unread.get(tenant.id, found) if found == UNREAD else found
            return self._known[at]

        def ask(uuid: str) -> Demand | str:
            found = hint(uuid)
            if found == UNREAD:
                self.asks.add(tenant.id)
            return found

        return replace(tenant, demand=ask, hint=hint)


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


def _running(tenant: Tenant, seats: Seats) -> tuple[str, ...] | None:
    """Where a server runs, if it may stay there. One that was told nothing took the first GPUs that it saw."""
    if not tenant.runs or tenant.listed:
        return None
    now = where_now(tenant, seats.ground)
    now = now or _first(tenant, seats.ground)
    return None if _must_move(tenant, now, seats.ground) else now


def _first(tenant: Tenant, ground: Ground) -> tuple[str, ...]:
    """The GPUs of a server that was told nothing: the first that it saw."""
    if was_told(tenant):
        return ()
    return tuple(uuid for uuid, gpu in ground.gpus.items() if not gpu.parent)[: tenant.count]


def _must_move(tenant: Tenant, now: tuple[str, ...], ground: Ground) -> str:
    """Why a server cannot be where it is, "" where it can."""
    if len(now) != tenant.count:
        return f"it takes {tenant.count} GPUs now" if now else "where it was is not known"
    flaws = [f"{ground.gpus[uuid].label} {flaw}" for uuid in now if (flaw := flaw_of(ground.gpus[uuid]))]
    cordoned = [] if tenant.runs else [ground.gpus[uuid].label for uuid in now if uuid in ground.cordoned]
    return flaws[0] if flaws else f"{cordoned[0]} is cordoned" if cordoned else ""


def _listed(tenant: Tenant, seats: Seats) -> tuple[str, ...] | Block | None:
    """GPUs that somebody wrote."""
    if not tenant.listed:
        return None
    if not isinstance(tenant.server.gpus, tuple):  # in its env: left as it is, and reckoned with where it is understood
        named = [seats.ground.named(word) for word in tenant.listed]
        return tuple(uuid for uuid in named if uuid)
    block = listed_wrongly(tenant, seats.ground)
    return block or tuple(uuid for word in tenant.listed if (uuid := seats.ground.named(word)))


def _returning(tenant: Tenant, seats: Seats) -> tuple[str, ...] | None:
    """Where a server that does not run was before, if there is still room for it."""
    before = where_now(tenant, seats.ground)
    if not before or _must_move(tenant, before, seats.ground):
        return None
    share = tenant.number if tenant.number is not None else tenant.default
    return before if all(seats.is_free(uuid, share) or seats.has_room(tenant, uuid) for uuid in before) else None


def _chosen(tenant: Tenant, seats: Seats) -> tuple[str, ...] | Block:
    """GPUs for a server that has none."""
    devices = choose(tenant, seats)
    return too_old(tenant, devices, seats.ground) or devices if devices else nowhere(tenant, seats)


def _left_alone(tenant: Tenant) -> Placed:
    """A server on a host that shows no GPU: what was written is handed over as it is, the rest is left to vLLM."""
    return Placed(visible=_written(tenant), settings=_open_length(tenant, None))


def _written(tenant: Tenant) -> tuple[str, ...]:
    return tenant.listed if isinstance(tenant.server.gpus, tuple) else ()


def _placed(tenant: Tenant, seats: Seats, share: Share | None) -> Placed:
    devices = seats.taken.get(tenant.id, ())
    if not devices or share is None:
        return _left_alone(tenant)
    ground = seats.ground
    number = share.of(tenant)
    settings: dict[str, JsonValue] = {}
    if tenant.number is None and share.number is not None:
        settings[SHARE] = share.number
    room = min(int(number * ground.cards[uuid].total) for uuid in devices)
    as_it_runs = share.kept or (tenant.number is not None and tenant.number == tenant.runs_with)
    settings |= _open_length(tenant, _length(tenant, devices, room, kept=as_it_runs))
    in_env = bool(tenant.listed) and not isinstance(tenant.server.gpus, tuple)
    return Placed(
        devices=devices,
        visible=() if in_env else words_for((ground.gpus[uuid] for uuid in devices), tenant.version),
        settings=settings,
        requested=tuple(math.ceil(number * ground.cards[uuid].total) for uuid in devices),
        least=_least(tenant, devices),
        reasons=_reasons(tenant, seats, share, settings),
    )


def _open_length(tenant: Tenant, length: int | None) -> dict[str, JsonValue]:
    """What becomes of a context that is left to the tool: a number, else vLLM's own 'auto', else vLLM's default."""
    if not is_open(tenant.server):
        return {}
    argument = tenant.catalogue.arguments.get(LENGTH)
    knows_auto = argument is not None and argument.kind is Kind.HUMAN_INT_OR_AUTO
    return {LENGTH: length or (-1 if knows_auto else None)}


def _length(tenant: Tenant, devices: tuple[str, ...], room: int, *, kept: bool) -> int | None:
    """The longest context that fits, so many at once as needs say; what runs keeps its own."""
    if not is_open(tenant.server):
        return None
    decided = tenant.observed.record.decided.get(LENGTH) if tenant.observed.record else None
    if kept and tenant.runs_long and decided == tenant.runs_long:
        return tenant.runs_long
    found = [tenant.demand(uuid) for uuid in devices]
    known = [demand for demand in found if not isinstance(demand, str)]
    if len(known) < len(found):
        return None
    fits = min(demand.longest(room - demand.beside, tenant.server.needs.concurrency or 1.0) for demand in known)
    longest = min(demand.limit for demand in known)
    return longest if fits >= longest else fits // ROUND_LENGTH * ROUND_LENGTH or None


def _least(tenant: Tenant, devices: tuple[str, ...]) -> Figures | None:
    """What it does not start without, or does not meet its needs, where that is known for each of its GPUs."""
    found = [tenant.hint(uuid) for uuid in devices]
    known = [demand for demand in found if not isinstance(demand, str)]
    if len(known) < len(found):
        return None
    return Figures(
        beside=max(demand.beside for demand in known),
        kv_bytes=max(max(demand.least, demand.asked) for demand in known),
    )


def _reasons(tenant: Tenant, seats: Seats, share: Share, settings: Mapping[str, JsonValue]) -> tuple[str, ...]:
    ground, devices = seats.ground, seats.taken[tenant.id]
    names = ", ".join(ground.gpus[uuid].label for uuid in devices)
    beside = ", ".join(each.id.local for each in seats.beside(tenant))
    company = f"beside {beside}" if beside else "alone"
    lines = [f"{names}, {company}: {_whence(tenant, seats)}"]
    if tenant.number is None:
        number = f"{share.number:g}" if share.number is not None else f"{tenant.default:g}"
        lines.append(f"{SHARE} {number}: {share.why}")
    if settings.get(LENGTH) not in (None, -1):
        lines.append(f"{LENGTH} {settings[LENGTH]}: the longest that fits")
    return tuple(lines)


def _whence(tenant: Tenant, seats: Seats) -> str:
    """How a server came to its GPUs."""
    devices, now = seats.taken[tenant.id], where_now(tenant, seats.ground)
    if tenant.listed:
        return "as written"
    if set(devices) == set(now):
        return "it runs there" if tenant.runs else "it was there before"
    if now:
        was = ", ".join(seats.ground.gpus[uuid].label for uuid in now)
        reason = _must_move(tenant, now, seats.ground) or "there is no room for it any more"
        return f"moved from {was}: {reason}"
    return "free" if not seats.beside(tenant) else "no GPU is free, it has the most room"


def _mixed(tenant: Tenant, seats: Seats) -> str:
    """A warning for a group of GPUs of different models: the weakest decides about memory and speed."""
    devices = seats.taken.get(tenant.id, ())
    if len(devices) < 2 or is_one_kind(devices, seats.ground):
        return ""
    names = ", ".join(f"{seats.ground.gpus[uuid].label} {seats.ground.gpus[uuid].name}" for uuid in devices)
    return f"its GPUs differ ({names}): the smallest decides what fits, the slowest how fast it is"


def _short(tenant: Tenant, seats: Seats) -> str:
    """A warning where a number that somebody wrote does not hold what the model asks for."""
    if tenant.number is None or not tenant.server.needs.stated:
        return ""
    for uuid in seats.taken.get(tenant.id, ()):
        demand, size = tenant.demand(uuid), tenant.number * seats.ground.cards[uuid].total
        if not isinstance(demand, str) and demand.total > size:
            return (
                f"{SHARE} {tenant.number:g} is {gib(size)} GiB, and its needs take {gib(demand.total)}"
                f" ({gib(demand.beside)} {demand.basis} beside the KV cache)"
            )
    return ""

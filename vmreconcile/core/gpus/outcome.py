"""What a server is given in the end: devices, numbers, and the reasons and warnings that a person reads. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vmreconcile.core.gpus.choose import is_one_kind
from vmreconcile.core.gpus.demand import LENGTH, SHARE, gib, is_open
from vmreconcile.core.gpus.finders import must_move
from vmreconcile.core.gpus.rounding import shorter
from vmreconcile.core.gpus.seats import Seats
from vmreconcile.core.gpus.share import Share
from vmreconcile.core.gpus.tenants import Tenant, told_now
from vmreconcile.core.gpus.visible import VISIBLE, words_for
from vmreconcile.model.gpus import Figures, Placed
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import Kind


def left_alone(tenant: Tenant) -> Placed:
    """A server on a host that shows no GPU: what was written is handed over as it is, the rest is left to vLLM."""
    return Placed(visible=_written(tenant), settings=_open_length(tenant, None))


def _written(tenant: Tenant) -> tuple[str, ...]:
    return tenant.listed if isinstance(tenant.server.gpus, tuple) else ()


def untouched(tenant: Tenant) -> Placed:
    """A server whose GPUs cannot be judged just now: one that runs keeps what it was given, as far as we chose that."""
    if not tenant.runs:
        return left_alone(tenant)
    settings = _open_length(tenant, tenant.runs_long if _decided(tenant, LENGTH) == tenant.runs_long else None)
    if tenant.number is None and tenant.told and tenant.chosen:
        settings[SHARE] = tenant.runs_with
    return Placed(visible=() if VISIBLE in tenant.server.env else told_now(tenant), settings=settings)


def _decided(tenant: Tenant, name: str) -> JsonValue:
    return tenant.observed.record.decided.get(name) if tenant.observed.record else None


def placed_at(tenant: Tenant, seats: Seats, share: Share | None) -> Placed:
    """A server with its seat and its share; one that has none is left to vLLM as it was written."""
    devices = seats.taken.get(tenant.id, ())
    if not devices or share is None:
        return left_alone(tenant)
    ground = seats.ground
    number = share.of(tenant)
    settings: dict[str, JsonValue] = {}
    if tenant.number is None and share.number is not None:
        settings[SHARE] = share.number
    room = min(int(number * ground.cards[uuid].total) for uuid in devices)
    as_it_runs = share.kept or (tenant.number is not None and tenant.number == tenant.runs_with)
    settings |= _open_length(tenant, _length(tenant, devices, room, kept=as_it_runs))
    in_env = bool(tenant.listed) and not isinstance(tenant.server.gpus, tuple)
    names = words_for((ground.gpus[uuid] for uuid in devices), tenant.version)
    return Placed(
        devices=devices,
        visible=() if in_env or not tenant.count else names,
        settings=settings,
        requested=tuple(math.ceil(seats.takes(tenant, number, uuid)) for uuid in devices),
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
    if kept and tenant.runs_long and _decided(tenant, LENGTH) == tenant.runs_long:
        return tenant.runs_long
    found = [tenant.demand(uuid) for uuid in devices]
    known = [demand for demand in found if not isinstance(demand, str)]
    if len(known) < len(found):
        return None
    fits = min(demand.longest(room - demand.beside, tenant.server.needs.concurrency or 1.0) for demand in known)
    longest = min(demand.limit for demand in known)
    return longest if fits >= longest else shorter(fits) or None


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
    devices, now = seats.taken[tenant.id], tenant.now
    if tenant.listed:
        return "as written"
    if set(devices) == set(now):
        return "it runs there" if tenant.runs else "it was there before"
    if now:
        was = ", ".join(seats.ground.gpus[uuid].label for uuid in now)
        reason = must_move(tenant, now, seats.ground) or "there is no room for it any more"
        return f"moved from {was}: {reason}"
    return "free" if not seats.beside(tenant) else "no GPU is free, it has the most room"


def mixed(tenant: Tenant, seats: Seats) -> str:
    """A warning for a group of GPUs of different models: the weakest decides about memory and speed."""
    devices = seats.taken.get(tenant.id, ())
    if len(devices) < 2 or is_one_kind(devices, seats.ground):
        return ""
    names = ", ".join(f"{seats.ground.gpus[uuid].label} {seats.ground.gpus[uuid].name}" for uuid in devices)
    return f"its GPUs differ ({names}): the smallest decides what fits, the slowest how fast it is"


def too_small(tenant: Tenant, seats: Seats) -> str:
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

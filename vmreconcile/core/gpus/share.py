"""How much of its GPUs each server gets: the numbers that are left to the tool, for all of a host at once. Pure.

Alone and with no need stated, vLLM's own default stands. Else a server gets the least that meets its needs; those that
state none share what is left in proportion to what they need. What runs keeps its number as long as it may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmreconcile.core.gpus.demand import GIVEN, Demand, gib
from vmreconcile.core.gpus.rounding import STEP, down, up
from vmreconcile.core.gpus.seats import Seats, demands
from vmreconcile.core.gpus.tenants import Tenant
from vmreconcile.model.names import ServerId
from vmreconcile.vllm.memory.predict import CONTEXT

TOLERANCE = 1.5 * STEP
"""A running server is not restarted for less: predictions and measurements differ by as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A server's utilization, None for vLLM's default, and why. `kept`: it runs with that, and was chosen so before."""

    number: float | None
    why: str
    kept: bool = False

    def of(self, tenant: Tenant) -> float:
        """The number, whoever says it."""
        return tenant.default if self.number is None else self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfull:
    """A GPU on which servers ask for more than there is, and the one of them that must wait."""

    uuid: str
    last: Tenant


Shares = Mapping[ServerId, Share]


def shares(seats: Seats) -> Shares | Overfull:
    """Numbers for every server that has GPUs; or a GPU that cannot hold those who ask for it."""
    loose: set[ServerId] = set()
    while True:
        found = _least(seats, loose)
        tight = _overfull(seats, found)
        if tight is None:
            return _spread(seats, found)
        kept = [tenant for tenant in seats.on(tight) if found[tenant.id].kept]
        if not kept:
            return _giveup(seats, tight, found, loose)
        loose.add(max(kept, key=lambda tenant: (_to_spare(tenant, tight, seats), tenant.rank)).id)


def _to_spare(tenant: Tenant, uuid: str, seats: Seats) -> float:
    """What a running server has beyond what it needs: who has most gives way, and the others are not disturbed."""
    demand = tenant.demand(uuid)
    if isinstance(demand, str) or tenant.runs_with is None:
        return 0.0
    return tenant.runs_with - max(_share_of(demand, uuid, seats), tenant.floor)


def _giveup(seats: Seats, uuid: str, found: Shares, loose: set[ServerId]) -> Overfull:
    """The last in rank must wait: of those that do not run yet, else of those that run and want something else.

    Those that would only make room for others (`loose`) are well as they are.
    """
    asking = [tenant for tenant in seats.on(uuid) if not _stays(tenant, found[tenant.id], seats)]
    wanting = [tenant for tenant in asking if tenant.id not in loose] or asking
    return Overfull(uuid=uuid, last=([tenant for tenant in wanting if not tenant.runs] or wanting)[-1])


def _least(seats: Seats, loose: set[ServerId]) -> dict[ServerId, Share]:
    """What each gets at least."""
    return {server: _one(tenant, seats, loose=server in loose) for server, tenant in seats.tenants.items()}


def _one(tenant: Tenant, seats: Seats, *, loose: bool) -> Share:
    devices = seats.taken[tenant.id]
    if tenant.number is not None or not devices:
        return Share(number=tenant.number, why="")
    if not loose and _may_stay(tenant, seats):
        return _as_it_runs(tenant, seats)
    if _is_alone(tenant, seats):
        return _undisturbed(tenant)
    found = demands(tenant, devices)
    unknown = next((reason for reason in found.values() if isinstance(reason, str)), "")
    if unknown:
        return Share(number=None, why=f"vLLM's own default: {unknown}")
    needed = max(_share_of(demand, uuid, seats) for uuid, demand in found.items())
    return Share(number=up(max(needed, tenant.floor)), why=_told(tenant, next(iter(found.values()))))


def _undisturbed(tenant: Tenant) -> Share:
    if tenant.floor > tenant.default:
        return Share(number=tenant.floor, why="alone there; a tuning rule asks for no less")
    return Share(number=None, why="alone there: vLLM's own default")


def _as_it_runs(tenant: Tenant, seats: Seats) -> Share:
    number = tenant.runs_with if tenant.told else None
    more = number is not None and number < tenant.default and not tenant.server.needs.stated
    more = more and not seats.beside(tenant)
    why = "as it runs; alone there now, a restart would give it vLLM's own default" if more else "as it runs"
    return Share(number=number, why=why, kept=True)


def _may_stay(tenant: Tenant, seats: Seats) -> bool:
    """Whether a running server keeps its number: the tool chose it, rules allow it, and it meets its needs."""
    if not tenant.runs or not tenant.chosen or tenant.runs_with is None:
        return False
    if tenant.runs_with + STEP / 2 < tenant.floor or seats.moves(tenant):
        return False
    if not tenant.server.needs.stated and not tenant.changed:
        return True
    if _was_seen_to_do(tenant, seats):
        return True
    enough = tenant.runs_with + (0 if tenant.changed else TOLERANCE)
    found = demands(tenant, seats.taken[tenant.id])
    return all(_share_of(demand, uuid, seats) <= enough for uuid, demand in found.items())


def _was_seen_to_do(tenant: Tenant, seats: Seats) -> bool:
    """Whether what runs was itself measured to hold its needs: then no estimate counts that is a little above it."""
    measured = tenant.observed.record.measured if tenant.observed.record else None
    if measured is None or tenant.changed or measured.utilization != tenant.runs_with:
        return False
    if any(seats.ground.cards[uuid].name != measured.gpu for uuid in seats.taken[tenant.id]):
        return False
    needs, length = tenant.server.needs, measured.max_model_len or 0
    asked = max(needs.kv_tokens or 0, (needs.concurrency or 0) * length)
    return bool(length) and asked <= (measured.figures.kv_tokens or 0)


def _share_of(demand: Demand | str, uuid: str, seats: Seats) -> float:
    return 0.0 if isinstance(demand, str) else demand.total / seats.ground.cards[uuid].total


def _is_alone(tenant: Tenant, seats: Seats) -> bool:
    """Whether vLLM's default may stand: nothing is asked, nobody of ours is beside it, and others leave that much."""
    if tenant.server.needs.stated or GIVEN in tenant.server.settings or seats.beside(tenant):
        return False
    ground = seats.ground
    share = max(tenant.default, tenant.floor)
    return all(
        not ground.others[uuid] or ground.room(uuid, 1) >= share * ground.cards[uuid].total
        for uuid in seats.taken[tenant.id]
    )


def _told(tenant: Tenant, demand: Demand | str) -> str:
    if isinstance(demand, str):
        return demand
    parts = f"{gib(demand.beside)} GiB {demand.basis} beside the KV cache"
    needs = tenant.server.needs
    if needs.kv_tokens is not None:
        return f"{parts}, {gib(demand.asked)} for {needs.kv_tokens:,} tokens"
    if needs.concurrency is not None:
        return f"{parts}, {gib(demand.asked)} for {needs.concurrency:g} requests at once"
    return f"{parts}, {gib(demand.least)} for one request"


def _overfull(seats: Seats, found: Shares) -> str | None:
    """A GPU on which somebody starts and more is asked for than there is."""
    for uuid in seats.ground.gpus:
        tenants = seats.on(uuid)
        if all(_stays(tenant, found[tenant.id], seats) for tenant in tenants):
            continue  # all of it is in use as it is: nobody asks for memory
        if _asked(uuid, seats, found) > _capacity(seats, uuid, tenants) + 1e-9:
            return uuid
    return None


def _stays(tenant: Tenant, share: Share, seats: Seats) -> bool:
    """Whether a running server goes on with just the memory that it has."""
    same = share.kept or (tenant.runs and tenant.number is not None and tenant.number == tenant.runs_with)
    return same and not seats.moves(tenant)


def _asked(uuid: str, seats: Seats, found: Shares) -> float:
    sizes = (seats.takes(tenant, found[tenant.id].of(tenant), uuid) for tenant in seats.on(uuid))
    return sum(sizes) / seats.ground.cards[uuid].total


def _capacity(seats: Seats, uuid: str, tenants: tuple[Tenant, ...]) -> float:
    """The sum of utilizations that a GPU bears.

    CUDA's context of each process counts, except for a single server whose number a person wrote, or which has vLLM's
    default of an empty GPU: it may well use up what is only estimated here.
    """
    ground, total = seats.ground, seats.ground.cards[uuid].total
    alone = len(tenants) == 1 and (
        tenants[0].number is not None or (not ground.others[uuid] and _is_alone(tenants[0], seats))
    )
    return (ground.room(uuid, len(tenants)) + (CONTEXT if alone else 0)) / total


def _spread(seats: Seats, found: dict[ServerId, Share]) -> Shares:
    """What is left of each GPU for those that state no needs, in proportion to what they need."""
    sharing = {
        server: tenant
        for server, tenant in seats.tenants.items()
        if found[server].number is not None
        and tenant.number is None
        and not found[server].kept
        and not tenant.server.needs.stated
        and GIVEN not in tenant.server.settings
        and not _is_alone(tenant, seats)
    }
    grown = dict(found)
    for server, tenant in sharing.items():
        best = min(_grown(tenant, uuid, seats, found, sharing) for uuid in seats.taken[server])
        number = min(max(tenant.default, found[server].of(tenant)), down(best))
        grown[server] = Share(number=max(number, found[server].of(tenant)), why=f"shared; {found[server].why}")
    return grown


def _grown(tenant: Tenant, uuid: str, seats: Seats, found: Shares, sharing: Mapping[ServerId, Tenant]) -> float:
    tenants = seats.on(uuid)
    rest = max(0.0, _capacity(seats, uuid, tenants) - _asked(uuid, seats, found))
    whole = sum(found[each.id].of(each) for each in tenants if each.id in sharing)
    mine = found[tenant.id].of(tenant)
    return mine + rest * mine / whole if whole else mine

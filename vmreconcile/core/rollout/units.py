"""A plan as units of work: what is done together on a host, and what must come before what. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from vmreconcile.core.gpus.lanes import FREEING, Wanted, in_order, lanes, starts, uses_lane
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase
from vmreconcile.model.plan import Action, Change, Reason

OPENING, ALONE, STARTING, ROOM, REST = range(5)
"""Ranks: whatever shares a lane with units of a lower rank waits until they are done."""

EVERY = "*"
"""The lane of what goes alone on its host, before everything that starts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """Changes of one host that are done in one go, one after the other; none at all: the host is made ready for work.

    `lanes` are the GPUs that it uses. `after` are servers that must be done well before.
    """

    host: str
    changes: tuple[Change, ...] = ()
    lanes: frozenset[str] = frozenset({EVERY})
    rank: int = OPENING
    turn: int = 0
    after: frozenset[ServerId] = frozenset()

    @cached_property
    def servers(self) -> frozenset[ServerId]:
        """Whose changes these are."""
        return frozenset(change.server for change in self.changes)

    @cached_property
    def models(self) -> frozenset[str]:
        """Of which models something starts."""
        return frozenset(change.server.model for change in self.changes if starts(change))

    @cached_property
    def mends(self) -> bool:
        """Whether it only brings back what ended by itself: that waits for no canary, and for nobody's failure."""
        starting = [change for change in self.changes if starts(change)]
        return bool(starting) and all(
            change.action is Action.START and change.reason in {Reason.CRASHED, Reason.ROOT_DIED} for change in starting
        )

    @cached_property
    def disrupts(self) -> bool:
        """Whether it takes down servers, where they serve."""
        return any(change.disruptive and starts(change) for change in self.changes)


def is_work(change: Change) -> bool:
    """Whether something has to be done or waited for; the rest of a plan is only told."""
    return change.pending or (change.action is Action.NOOP and change.reason is Reason.STILL_STARTING)


def units_of(changes: Iterable[Change], wanted: Wanted) -> list[Unit]:
    """All work of a plan, in the order in which it is taken up where nothing speaks against it."""
    by_host: dict[str, list[Change]] = {}
    for change in changes:
        if is_work(change):
            by_host.setdefault(change.server.host, []).append(change)
    found = [unit for host, work in sorted(by_host.items()) for unit in _of_host(host, work, wanted)]
    return sorted(found, key=lambda unit: (unit.rank, unit.turn))


def _of_host(host: str, work: list[Change], wanted: Wanted) -> list[Unit]:
    """The units of one host. What must be stopped before anything else starts is one with what makes room for it."""
    queue = in_order(work, wanted)
    taken = dict(zip((change.server for change in queue), lanes(queue, wanted), strict=True))
    early = any(change.early for change in queue)
    together = tuple(change for change in queue if change.early or (early and change.frees))
    groups = [*([together] if together else []), *((change,) for change in queue if change not in together)]
    return [Unit(host=host), *(_unit(host, group, wanted, taken) for group in groups)]


def _unit(host: str, changes: tuple[Change, ...], wanted: Wanted, taken: Mapping[ServerId, frozenset[str]]) -> Unit:
    servers = {change.server for change in changes}
    mine = (taken[change.server] if uses_lane(change) else frozenset({EVERY}) for change in changes)
    known = [server for name in servers if (server := wanted.get(name)) is not None]
    return Unit(
        host=host,
        changes=changes,
        lanes=frozenset[str]().union(*mine),
        rank=rank_of(changes[0]) if len(changes) == 1 else ROOM,
        turn=min((server.turn for server in known), default=0),
        after=frozenset(before for change in changes for before in change.after if before not in servers),
    )


def rank_of(change: Change) -> int:
    """When a change is due among those that share a lane with it."""
    if change.action in FREEING or not uses_lane(change):
        return ALONE
    if change.phase is Phase.STARTING:
        return STARTING  # what starts already ends its start before another begins on the same GPU
    return ROOM if change.frees or change.early else REST

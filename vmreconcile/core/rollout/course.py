"""The course of a rollout: what is at work, what may begin now, and what is held back. Pure: time is an argument.

A plan shows its waves by going through a course in which everything succeeds (`waves.py`); `flows/execute.py` goes
through one as things really end. So what was shown is what happens, as long as nothing fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.core.gpus.lanes import Wanted, starts
from vmreconcile.core.rollout.budgets import Budget, Budgets, Share, budgets_of
from vmreconcile.core.rollout.rolling import Rolling
from vmreconcile.core.rollout.units import ALONE, OPENING, Unit, units_of
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Plan

LANES = 8
"""Servers of one host at work at once: as many as most hosts have GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What holds for a whole run, beside what models and hosts say. `forks`: hosts at work at once."""

    max_unavailable: Share | None = None
    max_failures: int | None = None
    forks: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server's change ended, as far as it matters to the others."""

    up: bool
    """Whether the server is known to serve; what is not known counts as down."""
    well: bool
    """Whether what was planned was done."""
    failed: bool = False
    """Whether it counts against `max_failures`."""


LOST = Ended(up=False, well=False)


@dataclass(frozen=True, slots=True)
class Held:
    """Why something of a plan is not begun: a class for scripts, a text for a person, and what to do."""

    kind: str
    why: str
    remedy: str


RAISE = "bring up what is down, or allow more to be down at once; a server that is not to run: state: stopped"
BEHIND = "what goes before it on its host could not be done"
GO_ON = "look at what failed first; vmreconcile apply then goes on from what is there"


@dataclass(slots=True)
class Course:
    """A plan on its way. Not for several threads at once."""

    budgets: Budgets
    limits: Limits
    waiting: dict[Unit, None]
    down: set[ServerId]
    rolling: dict[str, Rolling]
    left: dict[str, list[Unit]]
    """By host, what waits or is at work."""
    working: set[Unit] = field(default_factory=set)
    done: dict[ServerId, Ended] = field(default_factory=dict)
    unsure: set[ServerId] = field(default_factory=set)
    """Of which nobody knows whether they serve, so that they count as down."""
    failures: int = 0

    def begin(self, now: float) -> list[Unit]:
        """What may begin now, in order; it counts as at work from here on."""
        begun: list[Unit] = []
        full: set[str] = set()
        coming = self._coming()
        for unit in list(self.waiting):
            if unit.disrupts and unit.models <= full and not unit.servers & self.down:
                continue
            if unit.models & coming and not unit.mends and (unit.disrupts or self._tries_canaries(unit)):
                continue
            if self._may_begin(unit, now, full):
                self._takes(unit)
                begun.append(unit)
        return begun

    def _coming(self) -> set[str]:
        """The models of which some host is not held yet.

        Nothing of them is taken down before all are: another run may be at work on the same model there. And nobody
        overtakes who comes first.
        """
        hosts = (units for units in self.left.values() if units and units[0].rank == OPENING)
        return {model for units in hosts for unit in units for model in unit.models}

    def _tries_canaries(self, unit: Unit) -> bool:
        return any(self.rolling[model].canaries for model in unit.models)

    def end(self, unit: Unit, ended: Mapping[ServerId, Ended], now: float) -> None:
        """A unit is done; of each server of it, how: one that is left out was lost with its host."""
        self.working.discard(unit)
        self._forget(unit)
        for server in sorted(unit.servers):
            end = self.done[server] = ended.get(server, LOST)
            self.unsure.discard(server)
            (self.down.discard if end.up else self.down.add)(server)
            self.failures += end.failed
            if server.model in self.rolling:
                self.rolling[server.model].ends(server, well=end.well, failed=end.failed, now=now)

    def drop(self, host: str, *, lost: bool) -> list[Unit]:
        """Nothing more is begun on a host.

        Of one that was `lost`, or on which another run is at work, nobody knows what still serves: it counts as down.
        """
        dropped = [unit for unit in self.left.get(host, ()) if unit in self.waiting]
        for unit in dropped:
            del self.waiting[unit]
            self._forget(unit)
        if lost:
            self.unsure |= {server for server in self.budgets if server.host == host} - self.down
            self.down |= self.unsure
        return dropped

    def wakes(self, now: float) -> float | None:
        """Seconds until a pause ends after which something may begin; None where nothing waits for a pause alone."""
        pauses = {self.rolling[model].resumes for unit in self.waiting for model in unit.models}
        ends = sorted(pause for pause in pauses if pause > now)
        return next(
            (end - now for end in ends if any(self._may_begin(unit, end, set()) for unit in self.waiting)), None
        )

    def give_up(self) -> dict[Unit, Held]:
        """What cannot be done, and why, once nothing is at work and no pause ends; it waits no more, others may go on.

        Those that only wait for one of these are not among them, as long as there are others.
        """
        found = {unit: self._why(unit) for unit in self.waiting}
        stuck = {unit: held for unit, held in found.items() if held.why != BEHIND} or found
        for unit in stuck:
            del self.waiting[unit]
            self._forget(unit)
        return stuck

    def beside(self, unit: Unit) -> list[Unit]:
        """What comes later on the GPUs of a unit."""
        return [each for each in self.left[unit.host] if each in self.waiting and each.lanes & unit.lanes]

    def _may_begin(self, unit: Unit, now: float, full: set[str]) -> bool:
        """Whether it may; `full` gets the models of which no server that serves can be taken down for now."""
        if self._stopped(unit) or not self._has_room(unit) or self._waits_for_others(unit):
            return False
        more = self._takes_down(unit)
        for model in () if unit.mends else sorted(unit.models):
            if not self.rolling[model].admits(more, now):
                full.add(model)
                return False
        over = self._exceeded(more)
        full.update(budget.name for budget in over if len(unit.changes) == 1 and budget.name in self.rolling)
        return not over

    def _has_room(self, unit: Unit) -> bool:
        hosts = {each.host for each in self.working}
        if unit.host not in hosts:
            return len(hosts) < self.limits.forks
        return sum(each.host == unit.host for each in self.working) < LANES

    def _waits_for_others(self, unit: Unit) -> bool:
        """For whom holds its port, for what shares a lane, and for what goes before everything else on the host."""
        if any(server not in self.done or not self.done[server].well for server in unit.after):
            return True
        for other in self.left[unit.host]:
            if other is unit:
                continue
            shared = bool(other.lanes & unit.lanes)
            if shared and other in self.working:
                return True
            if other.rank < unit.rank and (shared or other.rank <= ALONE):
                return True
        return False

    def _stopped(self, unit: Unit) -> bool:
        most = self.limits.max_failures
        over = most is not None and self.failures > most
        stopped = not unit.mends and any(self.rolling[model].stopped for model in unit.models)
        return bool(unit.changes) and (over or stopped)

    def _takes_down(self, unit: Unit) -> frozenset[ServerId]:
        """Servers that serve now, and do not while the unit is at work."""
        return frozenset(
            change.server
            for change in unit.changes
            if change.disruptive and starts(change) and change.server in self.budgets and change.server not in self.down
        )

    def _exceeded(self, more: frozenset[ServerId]) -> list[Budget]:
        """The budgets that taking these down as well would exceed, by name."""
        found = {budget.name: budget for server in more for budget in self.budgets[server]}
        down = self.down | more
        return [budget for _, budget in sorted(found.items()) if len(budget.servers & down) > budget.limit]

    def _takes(self, unit: Unit) -> None:
        more = self._takes_down(unit)
        for model in () if unit.mends else unit.models:
            self.rolling[model].begins(unit.servers, more)
        self.down |= more
        del self.waiting[unit]
        self.working.add(unit)

    def _forget(self, unit: Unit) -> None:
        self.left[unit.host] = [each for each in self.left[unit.host] if each is not unit]

    def _why(self, unit: Unit) -> Held:
        for model in () if unit.mends else sorted(unit.models):
            rolling = self.rolling[model]
            if rolling.stopped:
                return Held("rollout_stopped", f"the rollout of {model} was stopped: {rolling.told}", GO_ON)
        if self._stopped(unit):
            told = f"{self.failures} servers failed, more than --max-failures {self.limits.max_failures}"
            return Held("rollout_stopped", told, GO_ON)
        return self._why_waiting(unit)

    def _why_waiting(self, unit: Unit) -> Held:
        before = sorted(str(each) for each in unit.after if each not in self.done or not self.done[each].well)
        if before:
            return Held("not_freed", f"{before[0]} has the port or GPU that it takes, and did not give it up", GO_ON)
        for budget in self._exceeded(self._takes_down(unit)):
            return Held("max_unavailable", _spent(budget, sorted(budget.servers & self.down), self.unsure), RAISE)
        return Held("not_freed", BEHIND, GO_ON)


def _spent(budget: Budget, away: list[ServerId], unsure: set[ServerId]) -> str:
    """Why a budget allows no more, for a person."""
    allows = f"{budget.setting} allows {budget.limit}"
    if not away:
        return allows
    names = ", ".join(map(str, away[:3])) + (" …" if len(away) > 3 else "")
    down = "are down already, or may be" if unsure & set(away) else "are down already"
    return f"{len(away)} of {len(budget.servers)} servers of {budget.name} {down} ({names}), and {allows}"


def course_of(plan: Plan, wanted: Wanted, limits: Limits) -> Course:
    """The course of a plan. `wanted` is all there is; servers of hosts that were not looked at count as up."""
    budgets = budgets_of(wanted.values(), limits.max_unavailable)
    units = units_of(plan.changes, wanted)
    down = {server for server in plan.down if server in budgets}
    left: dict[str, list[Unit]] = {}
    by_model: dict[str, list[Unit]] = {}
    for unit in units:
        left.setdefault(unit.host, []).append(unit)
        for model in unit.models:
            by_model.setdefault(model, []).append(unit)
    rolling = {model: Rolling.of(model, mine, wanted) for model, mine in by_model.items()}
    return Course(budgets=budgets, limits=limits, waiting=dict.fromkeys(units), down=down, rolling=rolling, left=left)

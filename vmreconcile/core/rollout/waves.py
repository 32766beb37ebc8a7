"""The waves of a plan, for who reads it: its course, gone through as if everything succeeds. Pure."""

from __future__ import annotations

from vmreconcile.core.gpus.lanes import Wanted
from vmreconcile.core.rollout.budgets import budgets_of
from vmreconcile.core.rollout.course import Ended, Limits, course_of
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Block, Plan, Reason, Waves

WELL = Ended(up=True, well=True)


def waves_of(plan: Plan, wanted: Wanted, limits: Limits) -> tuple[tuple[Waves, ...], dict[ServerId, Block]]:
    """The waves of each model of which servers are taken down, and blocks for servers that no wave could hold.

    Which host is busy with what decides nothing here: as many hosts as there are could work at once.
    """
    course = course_of(plan, wanted, limits)
    canaries = {model: rolling.canaries for model, rolling in course.rolling.items()}
    found: dict[str, list[tuple[ServerId, ...]]] = {}
    now = 0.0
    while True:
        while begun := course.begin(now):
            for model, rolling in course.rolling.items():
                if rolling.wave:
                    found.setdefault(model, []).append(tuple(sorted(rolling.wave)))
            for unit in begun:
                course.end(unit, {change.server: WELL for change in unit.changes}, now)
        pause = course.wakes(now)
        if pause is None:
            break
        now += pause
    blocks = {
        server: Block(reason=Reason.MAX_UNAVAILABLE, note=held.why, remedy=held.remedy)
        for server, held in course.held().items()
    }
    return tuple(_shown(waves, canaries[model], wanted) for model, waves in sorted(found.items())), blocks


def _shown(waves: list[tuple[ServerId, ...]], canaries: frozenset[ServerId], wanted: Wanted) -> Waves:
    first = wanted[waves[0][0]]
    budget = budgets_of(server for server in wanted.values() if server.id.model == first.id.model)[first.id][0]
    return Waves(
        model=first.id.model,
        waves=tuple(waves),
        limit=budget.limit,
        total=len(budget.servers),
        canaries=sum(bool(canaries.intersection(wave)) for wave in waves),
        pause=first.rollout.pause,
    )

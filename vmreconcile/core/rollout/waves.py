"""The waves of a plan, for who reads it: its course, gone through as if everything succeeds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from vmreconcile.core.gpus.lanes import Wanted
from vmreconcile.core.rollout.budgets import Budgets
from vmreconcile.core.rollout.course import Ended, Limits, course_of
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Block, Plan, Reason, Waves

WELL = Ended(up=True, well=True)


def waves_of(plan: Plan, wanted: Wanted, limits: Limits) -> tuple[tuple[Waves, ...], dict[ServerId, Block]]:
    """The waves of each model of which servers are taken down, and blocks for servers that no wave could hold.

    Which host is busy with what decides nothing here: as many hosts as there are could work at once.
    """
    course = course_of(plan, wanted, limits)
    canaries: dict[str, int] = {}
    found: dict[str, list[tuple[ServerId, ...]]] = {}
    now = 0.0
    blocks: dict[ServerId, Block] = {}
    while course.waiting:
        while begun := course.begin(now):
            for model, rolling in course.rolling.items():
                if rolling.wave:
                    canaries[model] = canaries.get(model, 0) + bool(rolling.wave & rolling.tried)
                    found.setdefault(model, []).append(tuple(sorted(rolling.wave)))
            for unit in begun:
                course.end(unit, {change.server: WELL for change in unit.changes}, now)
        pause = course.wakes(now)
        if pause is not None:
            now += pause
            continue
        for unit, held in course.give_up().items():
            block = Block(reason=Reason.MAX_UNAVAILABLE, note=held.why, remedy=held.remedy)
            blocks |= dict.fromkeys(unit.servers, block)
    shown = (_shown(waves, canaries[model], wanted, course.budgets) for model, waves in sorted(found.items()))
    return tuple(shown), blocks


def in_waves(
    plan: Plan,
    replan: Callable[[Mapping[ServerId, Block]], Plan],
    wanted: Wanted,
    limits: Limits,
    refused: Mapping[ServerId, Block] | None = None,
) -> Plan:
    """The plan with its waves. Servers that no wave could hold are blocked, and the others planned anew beside them.

    `replan` makes the plan with these blocks; `refused` are those that it was made with.
    """
    blocks = dict(refused or {})
    while True:
        waves, held = waves_of(plan, wanted, limits)
        more = {server: block for server, block in held.items() if server not in blocks}
        if not more:
            return replace(plan, waves=waves)
        blocks |= more
        plan = replan(blocks)


def _shown(waves: list[tuple[ServerId, ...]], canaries: int, wanted: Wanted, budgets: Budgets) -> Waves:
    first = wanted[waves[0][0]]
    budget = next(each for each in budgets[first.id] if each.name == first.id.model)
    return Waves(
        model=first.id.model,
        waves=tuple(waves),
        limit=budget.limit,
        total=len(budget.servers),
        canaries=canaries,
        pause=first.rollout.pause,
    )

"""Exit codes from what happened; the worst wins, in the contract's order. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from vmreconcile.effects.locks import LOCKED
from vmreconcile.errors import LockedError
from vmreconcile.model.outcome import Outcome, Status
from vmreconcile.model.plan import Action, Plan

WORST_FIRST = (130, 5, 4, 1, 3, 2, 0)


def worst(codes: Iterable[int]) -> int:
    """The worst of some exit codes; 0 of none."""
    return min(codes, key=WORST_FIRST.index, default=0)


def plan_code(plan: Plan, *, detailed: bool) -> int:
    """3 where a host could not be seen; 2 where changes are pending, blocked ones too, and that was asked for."""
    pending = any(change.pending or change.action is Action.BLOCKED for change in plan.changes)
    return worst([3 if plan.unreachable else 0, 2 if detailed and pending else 0])


def apply_code(outcome: Outcome) -> int:
    """130 interrupted, 4 locked, 1 where a server failed, went back or was refused, 3 where only hosts were missing."""
    bad = sum(map(outcome.count, (Status.FAILED, Status.SKIPPED, Status.ROLLED_BACK)))
    locked = any(result.failure is not None and result.failure.kind == LOCKED for result in outcome.results)
    return worst(
        [
            130 if outcome.interrupted else 0,
            LockedError.exit_code if locked else 0,
            1 if bad else 0,
            3 if outcome.unreachable else 0,
        ]
    )

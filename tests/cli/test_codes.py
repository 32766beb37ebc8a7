"""Exit codes: what each outcome ends with, and which one wins."""

from __future__ import annotations

from itertools import permutations

import pytest

from vmreconcile.cli.codes import apply_code, plan_code, worst
from vmreconcile.errors import (
    Diagnostic,
    InputError,
    LockedError,
    Place,
    UnreachableError,
    UsageError,
    VmreconcileError,
)
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase, Unreachable
from vmreconcile.model.outcome import Failure, Outcome, Result, Status
from vmreconcile.model.plan import Action, Change, Plan, Reason

ORDER = (130, 5, 4, 1, 3, 2, 0)
AWAY = (Unreachable(host="h", reason="r"),)


def outcome(*statuses: Status, kind: str = "died", **parts: object) -> Outcome:
    """An apply whose servers ended so."""
    failure = Failure(kind=kind, summary="s")
    results = tuple(
        Result(
            server=ServerId(host="h", model=f"m{number}"),
            action=Action.START,
            status=status,
            failure=failure if status is Status.FAILED else None,
        )
        for number, status in enumerate(statuses)
    )
    return Outcome(results=results, **parts)  # type: ignore[arg-type]  # fields of Outcome


def plan(*actions: Action, away: bool = False) -> Plan:
    """A plan of such changes."""
    changes = tuple(
        Change(server=ServerId(host="h", model=f"m{number}"), action=action, reason=Reason.ABSENT, phase=Phase.ABSENT)
        for number, action in enumerate(actions)
    )
    return Plan(changes=changes, unreachable=AWAY if away else ())


def test_the_worst_wins_in_the_contracts_order() -> None:
    """Whatever order they come in; none is 0."""
    assert worst([]) == 0
    for one, other in permutations(ORDER, 2):
        assert worst([one, other, 0]) == min(one, other, key=ORDER.index)


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (outcome(), 0),
        (outcome(Status.CHANGED, Status.OK), 0),
        (outcome(Status.FAILED, Status.CHANGED), 1),
        (outcome(Status.SKIPPED), 1),
        (outcome(Status.UNREACHABLE, unreachable=AWAY), 3),
        (outcome(Status.CHANGED, unreachable=AWAY), 3),
        (outcome(Status.FAILED, unreachable=AWAY), 1),
        (outcome(Status.FAILED, kind="locked", unreachable=AWAY), 4),
        (outcome(Status.SKIPPED, interrupted=True), 130),
        (outcome(Status.FAILED, interrupted=True, unreachable=AWAY), 130),
    ],
)
def test_apply(found: Outcome, code: int) -> None:
    """Interrupted before locked before failed before unreachable."""
    assert apply_code(found) == code


@pytest.mark.parametrize(
    ("found", "detailed", "code"),
    [
        (plan(), True, 0),
        (plan(Action.NOOP), True, 0),
        (plan(Action.START), True, 2),
        (plan(Action.START), False, 0),
        (plan(Action.BLOCKED), True, 2),
        (plan(Action.START, away=True), True, 3),
        (plan(away=True), False, 3),
    ],
)
def test_plan(found: Plan, *, detailed: bool, code: int) -> None:
    """2 only where that was asked for; 3 is worse."""
    assert plan_code(found, detailed=detailed) == code


def test_every_error_has_its_code() -> None:
    """One a class."""
    problem = Diagnostic(place=Place(file="f"), code="c", summary="s")
    errors = (VmreconcileError("x"), InputError((problem,)), UsageError("x"), LockedError("x"), UnreachableError("x"))
    assert [error.exit_code for error in errors] == [1, 5, 64, 4, 3]

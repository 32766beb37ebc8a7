"""Exit codes: each cause has its own, and of several the worst counts."""

from __future__ import annotations

import itertools

import pytest

from vmreconcile.cli.codes import apply_code, worst
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Unreachable
from vmreconcile.model.outcome import Failure, Outcome, Result, Status
from vmreconcile.model.plan import Action

AWAY = Unreachable(host="b", reason="connection refused")


def result(status: Status, kind: str = "") -> Result:
    """One server's end."""
    failure = Failure(kind=kind, summary="it is so") if kind else None
    return Result(server=ServerId(host="a", model="m"), action=Action.START, status=status, failure=failure)


def test_the_worst_wins_in_the_order_that_is_promised() -> None:
    """Every pair, in both orders."""
    order = (130, 5, 4, 1, 3, 2, 0)
    for first, second in itertools.combinations(order, 2):
        assert worst([first, second]) == worst([second, first]) == first
    assert worst([]) == 0


@pytest.mark.parametrize(
    ("results", "away", "interrupted", "code"),
    [
        ([result(Status.CHANGED), result(Status.OK)], False, False, 0),
        ([result(Status.OK)], True, False, 3),
        ([result(Status.UNREACHABLE, "unreachable")], True, False, 3),
        ([result(Status.FAILED, "died")], True, False, 1),
        ([result(Status.SKIPPED, "port_held")], True, False, 1),
        ([result(Status.FAILED, "died"), result(Status.FAILED, "locked")], True, False, 4),
        ([result(Status.FAILED, "locked")], True, True, 130),
        ([result(Status.SKIPPED, "interrupted")], False, True, 130),
        ([], False, False, 0),
    ],
)
def test_the_code_of_an_apply(results: list[Result], away: bool, interrupted: bool, code: int) -> None:  # noqa: FBT001 - a table
    """Failed before unreachable, locked before failed, interrupted before all."""
    outcome = Outcome(results=tuple(results), unreachable=(AWAY,) if away else (), interrupted=interrupted)
    assert apply_code(outcome) == code

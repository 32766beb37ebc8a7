"""What counts as a lost host, in one place."""

from __future__ import annotations

import pytest

from vmreconcile.effects.lost import reached
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.model.observed import NO_PYTHON, Unreachable


def test_answers_and_lost_hosts_are_told_apart() -> None:
    """Both sorted by host; those lost before are among them."""
    before = [Unreachable(host="d", reason="no route")]
    results: list[tuple[str, int | Exception]] = [
        ("c", UnreachableError("no Python there", remedy="install it", cause=NO_PYTHON)),
        ("b", 2),
        ("e", AgentError("agent-bug", "KeyError")),
        ("a", 1),
    ]
    found, lost = reached(results, before=before)
    assert found == {"a": 1, "b": 2}
    assert [*found] == ["a", "b"]
    assert lost == (
        Unreachable(host="c", reason="no Python there", remedy="install it", cause=NO_PYTHON),
        Unreachable(host="d", reason="no route"),
        Unreachable(host="e", reason="the agent failed: KeyError"),
    )


def test_a_fault_of_ours_is_no_lost_host() -> None:
    """It is raised as it came."""
    results: list[tuple[str, int | Exception]] = [("a", KeyError("x"))]
    with pytest.raises(KeyError):
        reached(results)

"""docs/faults.md and the tests of the fault matrix say the same: no row without its test, no test without its row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmreconcile import errors

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = ROOT / "tests/system"
MATRIX = ("test_crash.py", *sorted(path.name for path in SYSTEM.glob("test_faults*.py")))
FAULTS = (
    "controller is killed",
    "cut between write and restart",
    "during the wait for ready",
    "one of five hosts cut for a minute",
    "sshd killed",
    "host rebooted in mid-apply",
    "disk full",
    "two applies at once from two controllers",
    "start limit hit",
    "OOM kill while loading",
    "upgraded under a running server",
    "one hour off",
)
"""What the matrix is to hold."""


def rows() -> list[list[str]]:
    """The table's rows, cell by cell."""
    lines = (ROOT / "docs/faults.md").read_text().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return table[2:]


def names_in(name: str) -> set[str]:
    """The tests of one module of tests/system, as the page names them."""
    return {f"{name}::{test}" for test in re.findall(r"^def (test_\w+)\(", (SYSTEM / name).read_text(), re.MULTILINE)}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_each_row_is_whole_and_names_tests_that_are_there(row: list[str]) -> None:
    """Fault, what happens, exit code, state after, next plan, tests."""
    assert len(row) == 6
    assert all(row)
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    assert {int(code) for code in re.findall(r"\d+", row[2])} <= codes | {0}
    named = re.findall(r"`(test_\w+\.py::test_\w+)`", row[5])
    assert named
    for test in named:
        assert test in names_in(test.partition("::")[0]), test


def test_each_test_of_the_matrix_is_named_by_a_row() -> None:
    """A fault that is tested is told."""
    text = (ROOT / "docs/faults.md").read_text()
    written = {test for name in MATRIX for test in names_in(name)}
    assert len(written) > 8
    assert {test for test in written if f"`{test}`" not in text} == set()


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_row(fault: str) -> None:
    """None is left out of the page by and by."""
    assert any(fault in row[0] for row in rows())

"""The inventories in `cases/`, read by us and by the real Ansible: the same groups, variables and pattern answers.

A case is a folder; its sources are the lines of `SOURCES`, else its file `hosts*`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmreconcile.core.patterns import PatternError, select
from vmreconcile.effects.inventory import host_json, read_inventory, to_json
from vmreconcile.model.inventory import Inventory

pytestmark = pytest.mark.slow

CASES = Path(__file__).with_name("cases")
NAMES = sorted(case.name for case in CASES.iterdir())
PATTERNS = (Path(__file__).with_name("patterns.txt")).read_text().splitlines()


def sources_of(name: str) -> list[str]:
    """The sources of a case, relative to its folder."""
    listed = CASES / name / "SOURCES"
    if listed.exists():
        return listed.read_text().splitlines()
    return [path.name for path in (CASES / name).glob("hosts*")]


def patterns_of(name: str) -> list[str]:
    """The patterns asked of a case: all of them in one, the simple ones everywhere."""
    return PATTERNS if name == "patterns" else ["all", "ungrouped", "*", "g", "gpu*", "!a", "all[0]", "g[-1]", "all:&g"]


def ask(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask Ansible, all in one process."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    asked = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("oracle.py"))],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    answers: list[dict[str, Any]] = json.loads(asked.stdout)
    return answers


@pytest.fixture(scope="module")
def ansible() -> dict[str, dict[str, Any]]:
    """What Ansible says of each case."""
    questions = [
        {"sources": sources_of(name), "cwd": str(CASES / name), "patterns": patterns_of(name)} for name in NAMES
    ]
    return dict(zip(NAMES, ask(questions), strict=True))


def read(name: str, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    """Read a case as a user does who stands in its folder."""
    monkeypatch.chdir(CASES / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return read_inventory(sources_of(name), environ={**os.environ, "PATH": path})


def comparable(value: object) -> object:
    """The value as JSON shows it (infinities are equal, the order of keys does not count)."""
    return json.loads(json.dumps(value, sort_keys=True))


@pytest.mark.parametrize("name", NAMES)
def test_list_is_that_of_ansible(
    name: str, ansible: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`to_json` is what `ansible-inventory --list` prints, down to the order of hosts and children."""
    expected = ansible[name]
    assert "error" not in expected, expected["error"]
    assert not expected["failed"], "Ansible leaves a source of this case out"
    assert comparable(to_json(read(name, monkeypatch))) == expected["list"]


@pytest.mark.parametrize("name", NAMES)
def test_host_is_that_of_ansible(
    name: str, ansible: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`host_json` of every host is what `ansible-inventory --host` prints."""
    inventory = read(name, monkeypatch)
    ours = {host: comparable(host_json(inventory, host)) for host in inventory.hosts}
    assert ours == ansible[name]["hosts"]
    assert list(ours) == list(ansible[name]["hosts"])


@pytest.mark.parametrize("name", NAMES)
def test_patterns_are_those_of_ansible(
    name: str, ansible: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`select` names the hosts that `ansible PATTERN --list-hosts` does, in its order, and refuses what it refuses."""
    inventory = read(name, monkeypatch)
    ours: dict[str, list[str] | None] = {}
    for pattern in patterns_of(name):
        try:
            ours[pattern] = list(select(pattern, inventory, retry=lambda file: Path(file).read_text().splitlines()))
        except PatternError:
            ours[pattern] = None
    assert ours == ansible[name]["patterns"]


def test_there_are_enough_cases() -> None:
    """The issue asks for forty inventories and thirty patterns."""
    assert len(NAMES) >= 40
    assert len(PATTERNS) >= 30

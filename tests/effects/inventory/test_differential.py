"""The inventories in `cases/`, read by us and by the real Ansible: the same groups, variables and pattern answers.

A case is a folder; its sources are the lines of `SOURCES`, else its file `hosts*`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmreconcile.core.patterns import PatternError, select
from vmreconcile.effects.inventory import host_json, read_inventory, to_json
from vmreconcile.errors import InputError
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


class Oracle:
    """The real Ansible in a process of its own."""

    def __init__(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("oracle.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment() | {"PYTHONWARNINGS": "ignore"},
        )

    def ask(self, sources: list[str], cwd: Path, patterns: list[str]) -> dict[str, Any]:
        """Ask what Ansible makes of these sources."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"sources": sources, "cwd": str(cwd), "patterns": patterns}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)


def environment() -> dict[str, str]:
    """This process's environment, with the scripts of its interpreter first on PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    """One Ansible for the whole module."""
    started = Oracle()
    yield started
    started.end()


@pytest.fixture(scope="module")
def ansible(oracle: Oracle) -> dict[str, dict[str, Any]]:
    """What Ansible says of each case."""
    return {name: oracle.ask(sources_of(name), CASES / name, patterns_of(name)) for name in NAMES}


def read(name: str, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    """Read a case as a user does who stands in its folder."""
    monkeypatch.chdir(CASES / name)
    return read_inventory(sources_of(name), environ=environment())


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


GROUPS = st.sampled_from(["a", "b", "c", "d", "web", "all", "ungrouped"])
HOSTS = st.sampled_from(["h1", "h2", "h3", "x[1:3]", "y[01:05:2]", "z[a:c]:22", "b", "h1:2222", "10.0.0.1"])
VARIABLES = st.sampled_from(["v", "w", "ansible_group_priority", "m"])
NUMBERS = st.integers(-3, 12)
VALUES = NUMBERS | st.sampled_from(
    [None, True, 1.5, "yes", "5", "0755", "a b", "{{ t }}", [1, "x"], {"k": 1}, "2024-01-01"]
)
ASSIGNMENTS = st.one_of(
    st.tuples(st.just("ansible_group_priority"), NUMBERS.map(str)),
    st.tuples(
        st.sampled_from(["v", "w", "m"]),
        st.sampled_from(
            ["1", "01", "1.5", "True", "true", "'5'", "\"'5'\"", "[1,2]", "{'a':1}", "a=b", "x#y", "", "1_0", "1e3"]
        ),
    ),
).map("=".join)


@st.composite
def ini(draw: st.DrawFn) -> str:
    """A small INI inventory, mostly valid."""
    sections = [draw(st.lists(HOSTS, max_size=2))]
    for _ in range(draw(st.integers(1, 6))):
        group, kind = draw(GROUPS), draw(st.sampled_from(["", "", ":vars", ":children"]))
        if kind == ":vars":
            lines = draw(st.lists(ASSIGNMENTS, max_size=2))
        elif kind == ":children":
            lines = draw(st.lists(GROUPS, max_size=2))
        else:
            hosts = st.tuples(HOSTS, st.lists(ASSIGNMENTS, max_size=2))
            lines = [" ".join([host, *variables]) for host, variables in draw(st.lists(hosts, max_size=3))]
        sections.append([f"[{group}{kind}]", *lines])
    return "\n".join(line for section in sections for line in section) + "\n"


VARS = st.dictionaries(VARIABLES, VALUES, max_size=2).map(
    lambda found: {
        name: (1 if name.startswith("ansible") and not isinstance(value, int) else value)
        for name, value in found.items()
    }
)
HOSTS_OF_GROUP = st.dictionaries(HOSTS, st.none() | VARS, max_size=3)
YAML_GROUP: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.fixed_dictionaries({}, optional={"hosts": HOSTS_OF_GROUP, "vars": VARS}),
    lambda below: st.fixed_dictionaries(
        {}, optional={"hosts": HOSTS_OF_GROUP, "vars": VARS, "children": st.dictionaries(GROUPS, below, max_size=3)}
    ),
    max_leaves=6,
)
YAML = st.dictionaries(GROUPS, YAML_GROUP, min_size=1, max_size=3)
FILES = st.dictionaries(
    st.sampled_from(
        ["group_vars/all.yml", "group_vars/a", "group_vars/b/x.yml", "group_vars/web.json", "host_vars/h1.yml"]
    ),
    VARS,
    max_size=3,
)


@given(first=ini(), second=YAML, files=FILES, order=st.permutations(["one", "two.yml"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_inventories_are_read_as_by_ansible(
    oracle: Oracle,
    tmp_path_factory: pytest.TempPathFactory,
    first: str,
    second: dict[str, Any],
    files: dict[str, Any],
    order: list[str],
) -> None:
    """Two small sources and variable files: the same result, or refused where Ansible leaves a source out."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "one").write_text(first)
    (folder / "two.yml").write_text(yaml.safe_dump(second, sort_keys=False))
    for name, variables in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(variables) if name.endswith("json") else yaml.safe_dump(variables))
    patterns = ["all", "a", "b:&web", "*", "!h1", "all:!a", "ungrouped", "h*:!~h[12]", "10.0.0.1"]
    expected = oracle.ask([str(folder / name) for name in order], folder, patterns)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if expected["failed"]:
            with pytest.raises(InputError):
                read_inventory(order, environ=environment())
            return
        inventory = read_inventory(order, environ=environment())
    assert comparable(to_json(inventory)) == expected["list"]
    assert {host: comparable(host_json(inventory, host)) for host in inventory.hosts} == expected["hosts"]
    # Ansible lists the hosts of groups below groups in an order that changes from run to run.
    ours = {pattern: sorted(select(pattern, inventory)) for pattern in patterns}
    assert ours == {pattern: sorted(hosts) for pattern, hosts in expected["patterns"].items()}

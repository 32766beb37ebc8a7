"""What tests on real hosts share: the laboratory, and the tool as the person beside it runs it.

Owns the fixtures `lab`, `hosts`, `cli` and `simulated_vllm`. How hosts are broken: tests/lab/README.md.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from lab.command import Cli
from lab.hosts import Host, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Three hosts, booted once for the session."""
    with Lab.boot(3) as booted:
        yield booted


@pytest.fixture
def hosts(lab: Lab) -> Iterator[list[Host]]:
    """The three hosts, sound and empty at the start of the test; what it breaks or leaves is undone after it."""
    yield lab.hosts
    lab.reset()


@pytest.fixture
def cli(lab: Lab, hosts: list[Host], tmp_path: Path) -> Cli:
    """The tool, run by a person with a new HOME and an empty folder, in the hosts' network."""
    return Cli(lab, tmp_path)


@pytest.fixture(scope="session")
def simulated_vllm(lab: Lab) -> str:
    """The path of the simulator's `vllm`, the same on every host."""
    folder = lab.shared / "simulator"
    done = lab.run([sys.executable, "-m", "vmreconcile.simulator", "install", str(folder)])
    assert done.returncode == 0, done.stderr
    return str(folder / "vllm")

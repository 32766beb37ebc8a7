"""What tests on real hosts share: the laboratory, and the tool as the person beside it runs it.

Owns the fixtures `lab`, `hosts`, `cli`, `simulated_vllm` and `faults`. How hosts are broken: tests/lab/README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.command import Cli
from tests.lab.hosts import Host, Lab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what claims the whole machine last, the real vLLM at the very end, and in one group.

    With `--dist loadgroup --no-loadscope-reorder`, several workers share everything else, then one does these.
    """
    items.sort(key=lambda item: 2 if item.get_closest_marker("vllm") else bool(item.get_closest_marker("system")))
    for item in items:
        if item.get_closest_marker("system") or item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.xdist_group("machine"))


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
    return str(folder / "bin/vllm")


@pytest.fixture
def faults(simulated_vllm: str) -> Iterator[Path]:
    """The switches of every simulated server; none are set afterwards."""
    path = Path(simulated_vllm).parents[1] / "faults"
    yield path
    path.unlink(missing_ok=True)

"""The fault matrix (docs/faults.md), on five hosts: one of them is out of reach for a while in mid-apply."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import Lab
from tests.lab.served import pids, roots
from tests.lab.space import wait_until
from tests.lab.wanting import model, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.command import Cli
    from tests.lab.hosts import Host

pytestmark = [pytest.mark.system, pytest.mark.slow]

MODEL = model(health={"startup_timeout": "120s", "soak": 0}, rollout={"max_unavailable": "100%"})


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Five hosts of this module's own."""
    with Lab.boot(5) as booted:
        yield booted


@pytest.fixture
def fleet(cli: Cli, lab: Lab) -> Iterator[Cli]:
    """The tool with one model wanted on all five hosts, whose servers take eight seconds to start."""
    folder = lab.shared / "simulator"
    done = lab.run([sys.executable, "-m", "vmreconcile.simulator", "install", str(folder)])
    assert done.returncode == 0, done.stderr
    (folder / "faults").write_text("start_seconds=8\n")
    cli.inventory({"vllm_executable": f"{folder}/bin/vllm"})
    cli.model("tiny", MODEL)
    yield cli
    (folder / "faults").unlink()


def statuses(outcome: object) -> list[str]:
    """What became of the servers, by host."""
    return [status for _, (_, status) in sorted(results(outcome).items())]  # type: ignore[arg-type]  # an Outcome


def test_one_of_five_hosts_is_cut_off_for_a_minute(fleet: Cli, hosts: list[Host]) -> None:
    """Its link is dead while its server starts: the others are done meanwhile, it is waited for, exit 0, no drift."""
    cut = hosts[2]
    running = fleet.begin("apply", "--json")
    wait_until(lambda: all(roots(host) for host in hosts), 60, "every server to be started")
    begun = time.monotonic()
    cut.link_down()
    wait_until(lambda: running.stderr().count(": changed (") == 4, 40, "the others to be done")
    assert time.monotonic() - begun < 40
    time.sleep(max(0.0, 60 - (time.monotonic() - begun)))
    assert running.process.poll() is None
    before = pids(hosts)
    cut.link_up()
    done = running.end(60)
    assert (done.returncode, statuses(done)) == (0, ["changed"] * 5), done
    assert pids(hosts) == before
    assert fleet("plan", "--detailed-exitcode").returncode == 0

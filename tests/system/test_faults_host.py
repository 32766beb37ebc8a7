"""The fault matrix (docs/faults.md), on the hosts themselves: full disks, and the kernel's OOM killer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.served import pids, roots, written
from tests.lab.space import wait_until
from tests.lab.wanting import changes, errors, one_each, results

if TYPE_CHECKING:
    from tests.lab.command import Cli
    from tests.lab.hosts import Host

pytestmark = [pytest.mark.system, pytest.mark.slow]

HEALTH = {"startup_timeout": "30s", "soak": 0}
WRITES = ("/var/lib/vmreconcile/servers", "/etc/systemd/system", "/etc/vmreconcile/env")
"""Where the record, the unit and the env file are written: in this order, before anything is stopped."""


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool, with no model yet."""
    cli.inventory({"vllm_executable": simulated_vllm})
    return cli


def want(cli: Cli, purpose: str, **fields: object) -> None:
    """Want a server on each host; another `purpose` changes record, env file and unit."""
    cli.models(**one_each(health=HEALTH, env={purpose: "1"}, **fields))


def test_disk_full_at_each_write(fleet: Cli, hosts: list[Host]) -> None:
    """Exit 1, told with the file. A first start does not begin; at a retune the old server serves on, untouched."""

    def refused() -> None:
        done = fleet("apply", "--json")
        assert done.returncode == 1, done
        for (server, error), folder in zip(sorted(errors(done).items()), WRITES, strict=True):
            assert error["class"] == "disk_full", (server, error)
            assert f"{folder}/" in error["summary"], error
            assert "No space left on device" in error["summary"], error
        assert [path for host in hosts for path in written(host) if path.endswith(".new")] == []
        for host, folder in zip(hosts, WRITES, strict=True):
            host.free_disk(folder)

    for host, folder in zip(hosts, WRITES, strict=True):
        host.fill_disk(folder)
    want(fleet, "FIRST")
    refused()
    assert [roots(host) for host in hosts] == [[], [], []]
    assert {action for action, _, _ in changes(fleet("plan", "--json")).values()} == {"start"}
    assert fleet("apply", "--json").json["changed"] == 3
    before = pids(hosts)

    for host, folder in zip(hosts, WRITES, strict=True):
        host.fill_disk(folder)
    want(fleet, "SECOND", args={"max_model_len": 1024})
    refused()
    assert pids(hosts) == before
    plan = fleet("plan", "--json")
    assert {action for action, _, _ in changes(plan).values()} == {"retune"}, plan
    assert fleet("apply", "--json").json["changed"] == 3
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_disk_full_where_servers_log_and_the_agent_is_kept(fleet: Cli, hosts: list[Host]) -> None:
    """The agent runs from memory. A plain process that could not begin its log is not started: exit 1, told with it."""
    kept, logged, _ = hosts
    kept.fill_disk("/var/lib/vmreconcile/agent")
    logged.fill_disk("/var/lib/vmreconcile/log")
    fleet.models(**one_each(2, health=HEALTH, runtime="process"))
    done = fleet("apply", "--json")
    assert results(done) == {"m1@gpu1": ("start", "changed"), "m2@gpu2": ("start", "failed")}, done
    error = errors(done)["m2@gpu2"]
    assert error["class"] == "disk_full", done
    assert error["summary"] == "gpu2: /var/lib/vmreconcile/log/m2.log: No space left on device"
    assert done.returncode == 1
    assert not kept.shell("find /var/lib/vmreconcile/agent -name '*.pyz' -o -name '*.new'")
    assert [len(roots(host)) for host in (kept, logged)] == [1, 0]
    assert changes(fleet("plan", "--json")) == {"m2@gpu2": ("start", "absent", False)}
    logged.free_disk("/var/lib/vmreconcile/log")
    assert fleet("apply", "--json").json["changed"] == 1
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def loading(host: Host) -> bool:
    """Whether a server loads its model: its engine is there."""
    return bool(host.pids("VLLM::EngineCore"))


def test_oom_kill_while_loading(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """Killed with 9, as the kernel's OOM killer does: exit 1 at once, left stopped, told as killed; then it starts."""
    faults.write_text("start_seconds=20\n")
    want(fleet, "FIRST")
    fleet.inventory({"vllm_executable": str(faults.parent / "bin/vllm")}, {"gpu3": {"vllm_runtime": "process"}})
    running = fleet.begin("apply", "--json")
    wait_until(lambda: all(map(loading, hosts)), 30, "every engine to be there")
    for host, title in zip(hosts, ("serve", "VLLM::EngineCore", "VLLM::EngineCore"), strict=True):
        (victim,) = [one for one in host.processes() if title in one.argv]
        os.kill(victim.outer_pid, signal.SIGKILL)
    done = running.end(15)
    assert (done.returncode, {status for _, status in results(done).values()}) == (1, {"failed"}), done
    for error in errors(done).values():
        assert error["class"] == "killed", done
        assert "journalctl -k" in error["remedy"], done
    assert [len(roots(host)) for host in hosts] == [0, 0, 0]
    assert [loading(host) for host in hosts[:2]] == [False, False]
    faults.write_text("")
    assert {action for action, _, _ in changes(fleet("plan", "--json")).values()} == {"start"}
    assert fleet("apply", "--json").returncode == 0
    assert fleet("plan", "--detailed-exitcode").returncode == 0

"""The host comes to harm: its disk is full or read-only, it reboots, its power fails. What serves goes on serving."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.served import pids, root, roots, written
from tests.lab.space import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.lab.command import Cli, Outcome
    from tests.lab.hosts import Host

pytestmark = pytest.mark.system

MODEL = """model: Qwen/Qwen2.5-0.5B-Instruct
hosts: all
port: 8001
hf_token: null
args: {max_model_len: 512}
health: {startup_timeout: 30s, soak: 0}
rollout: {max_failures: 2}
env: {PURPOSE: %s}
"""
ENV_FILE = "/etc/vmreconcile/env/tiny.env"
LONG = "x" * 20_000


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool with one model wanted on all three hosts: the third without systemd."""
    cli.inventory({"vllm_executable": simulated_vllm}, {"gpu3": {"vllm_runtime": "process"}})
    cli.model("tiny", MODEL % "first")
    return cli


def errors(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """What is said of each host's server that was not done."""
    return {row["server"].partition("@")[2]: row["error"] for row in outcome.json["results"] if row["error"]}


def left_over(host: Host) -> list[str]:
    """Files that were begun and not finished."""
    return [path for path in written(host) if path.endswith(".new")]


def test_a_full_disk_under_the_env_files(fleet: Cli, hosts: list[Host]) -> None:
    """Told with host and path; the old file is whole, the server serves on until there is room."""
    assert fleet("apply", "--json").returncode == 0
    before = pids(hosts)
    full = [hosts[0], hosts[2]]
    files = [host.read(ENV_FILE) for host in full]
    for host in full:
        host.fill_disk("/etc/vmreconcile")
    fleet.model("tiny", MODEL % LONG)

    done = fleet("apply", "--json")
    assert (done.returncode, done.json["changed"], done.json["failed"]) == (1, 1, 2), done
    for name, error in errors(done).items():
        assert error["class"] == "disk_full", error
        assert f"{name}: {ENV_FILE}: No space left on device" in error["summary"]
        assert "apply again" in error["remedy"]
    assert [host.read(ENV_FILE) for host in full] == files
    assert [left_over(host) for host in full] == [[], []]
    assert pids(full) == {host.name: before[host.name] for host in full}
    spoken = fleet("apply", "-y")
    assert spoken.returncode == 1, spoken
    assert f"gpu1: {ENV_FILE}: No space left on device" in spoken.stdout

    for host in full:
        host.free_disk("/etc/vmreconcile")
    again = fleet("apply", "--json")
    assert (again.returncode, again.json["changed"], again.json["ok"]) == (0, 2, 1), again
    assert [root(host).environ["PURPOSE"] for host in hosts] == [LONG] * 3
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_a_full_disk_under_the_state(fleet: Cli, hosts: list[Host]) -> None:
    """A first start that cannot be recorded does not begin; looking still works, without a cache for the agent too."""
    full = [hosts[0], hosts[2]]
    for host in full:
        host.fill_disk("/var/lib/vmreconcile")
    done = fleet("apply", "--json")
    assert (done.returncode, done.json["changed"], done.json["failed"]) == (1, 1, 2), done
    for name, error in errors(done).items():
        assert error["class"] == "disk_full", error
        assert error["summary"].startswith(f"{name}: /var/lib/vmreconcile/"), error
    assert [len(roots(host)) for host in hosts] == [0, 1, 0]
    assert [left_over(host) for host in full] == [[], []]
    assert fleet("status", "--json").returncode == 0

    for host in full:
        host.free_disk("/var/lib/vmreconcile")
    assert fleet("apply", "--json").returncode == 0
    assert [len(roots(host)) for host in hosts] == [1, 1, 1]


def test_read_only_folders_block_what_needs_them(fleet: Cli, hosts: list[Host]) -> None:
    """A server that needs a change there is blocked, one that is in sync is not; nothing is taken down for it."""
    assert fleet("apply", "--json").returncode == 0
    before = pids(hosts)
    hosts[0].remount_read_only("/var/lib/vmreconcile")
    hosts[1].remount_read_only("/etc/systemd/system")
    hosts[2].remount_read_only("/etc/vmreconcile")
    assert fleet("apply", "--json").returncode == 0

    fleet.model("tiny", MODEL % "second" + "overrides: {gpu2: {args: {max_model_len: 1024}}}\n")
    plan = fleet("plan", "--json")
    assert {(row["host"], row["action"], row["reason"]) for row in plan.json["changes"]} == {
        ("gpu1", "blocked", "folder_unusable"),
        ("gpu2", "retune", "args_changed"),
        ("gpu3", "blocked", "folder_unusable"),
    }
    told = " ".join(each["summary"] for each in plan.json["diagnostics"])
    assert "/var/lib/vmreconcile: read-only file system" in told
    assert "/etc/vmreconcile: read-only file system" in told
    done = fleet("apply", "--json")
    assert done.returncode == 1, done
    assert {row["server"]: row["status"] for row in done.json["results"]} == {
        "tiny@gpu1": "skipped",
        "tiny@gpu2": "failed",
        "tiny@gpu3": "skipped",
    }
    error = errors(done)["gpu2"]
    assert error["class"] == "read_only"
    assert error["summary"].startswith("gpu2: /etc/systemd/system/vmreconcile-tiny.service: Read-only"), error
    assert pids(hosts) == before

    for host in hosts:
        host.restore()
    again = fleet("apply", "--json")
    assert (again.returncode, again.json["changed"]) == (0, 3), again
    assert [root(host).environ["PURPOSE"] for host in hosts] == ["second"] * 3


def test_servers_come_back_after_a_reboot(fleet: Cli, hosts: list[Host]) -> None:
    """Rebooted, or without power: units come back by themselves and the plan is empty; a plain process does not."""
    assert fleet("apply", "--json").returncode == 0
    before = {host.name: root(host).environ for host in hosts}

    def cut_power(host: Host) -> None:
        host.kill()
        host.start()
        host.wait()

    harms: list[Callable[[], object]] = [
        hosts[0].reboot,
        lambda: cut_power(hosts[1]),
        hosts[2].reboot,
    ]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda harm: harm(), harms))

    def ready() -> bool:
        rows = fleet("status", "--json", "--limit", "gpu1,gpu2").json["servers"]
        return all(row["phase"] == "ready" for row in rows)

    wait_until(ready, 60, "the servers to be ready again", pause=1.0)
    plan = fleet("plan", "--json", "--detailed-exitcode")
    assert plan.returncode == 2, plan
    assert [(row["host"], row["action"], row["reason"]) for row in plan.json["changes"]] == [
        ("gpu3", "start", "crashed")
    ]
    assert fleet("plan", "--detailed-exitcode", "--limit", "gpu1,gpu2").returncode == 0
    after = pids(hosts[:2])
    done = fleet("apply", "--json")
    assert (done.returncode, done.json["changed"], done.json["ok"]) == (0, 1, 2), done
    assert pids(hosts[:2]) == after
    for host in hosts:
        assert root(host).environ["PURPOSE"] == before[host.name]["PURPOSE"]

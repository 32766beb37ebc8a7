"""The gate of a start on real hosts, under real systemd: soak, crash loops, servers that hang. vLLM is simulated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.lab.served import pids, root, roots
from tests.lab.space import wait_until
from tests.lab.wanting import changes, errors, model, phases, results

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = [pytest.mark.system, pytest.mark.slow]

ASKING = """nohup curl -s -m 45 http://127.0.0.1:8001/v1/completions \
-H 'content-type: application/json' -d '{"prompt": "x"}' >/dev/null 2>&1 &"""


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool, and hosts of which the third has no systemd."""
    cli.inventory({"vllm_executable": simulated_vllm}, {"gpu3": {"vllm_runtime": "process"}})
    return cli


@pytest.fixture
def faults(lab: Lab) -> Iterator[Path]:
    """The simulator's switches for the servers on port 8001 of every host; gone after the test."""
    path = lab.shared / "simulator/faults.8001"
    yield path
    path.unlink(missing_ok=True)


def test_a_server_that_dies_just_after_it_was_ready(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """Its soak is not over: that start failed, is told as such at once, and is not started again and again."""
    faults.write_text("crash_after=1\nwatchdog_seconds=1\n")
    fleet.models(tiny=model(health={"startup_timeout": "60s", "soak": "8s"}))
    begun = time.monotonic()
    done = fleet("apply", "--json")
    assert time.monotonic() - begun < 50
    assert done.returncode == 1, done
    assert {server: error["class"] for server, error in errors(done).items()} == {
        f"tiny@{host.name}": "died" for host in hosts
    }
    assert {error["evidence"] for error in errors(done).values()} == {"AsyncLLM output_handler failed."}, done
    time.sleep(7)  # longer than systemd waits before it starts one anew
    assert not any(roots(host) for host in hosts)

    faults.unlink()
    begun = time.monotonic()
    assert fleet("apply", "--json").returncode == 0
    assert time.monotonic() - begun > 8, "the soak was waited for"
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_a_start_that_ends_again_and_again_fails_at_once(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """Each end is 0, as where an engine dies, and systemd starts it anew: it is not waited for to the deadline."""
    faults.write_text("die=no-kv-memory\ndie_code=0\n")
    fleet.models(tiny=model(health={"startup_timeout": "10m"}))
    begun = time.monotonic()
    done = fleet("apply", "--json")
    assert time.monotonic() - begun < 60
    assert {error["class"] for error in errors(done).values()} == {"no_kv_memory"}, done
    assert not any(roots(host) for host in hosts)


def test_a_unit_at_its_start_limit(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """It was given up by systemd: the plan starts it, the limit is forgotten, and it is proven."""
    fleet.models(tiny=model(hosts="gpu1"))
    assert fleet("apply").returncode == 0
    faults.write_text("die=no-kv-memory\n")
    host = hosts[0]
    for _ in range(6):
        host.shell("systemctl restart vmreconcile-tiny.service || true")
        time.sleep(1)
    wait_until(lambda: not roots(host), 60, "the server to be gone")
    wait_until(
        lambda: "failed" in host.shell("systemctl is-active vmreconcile-tiny.service || true"),
        60,
        "the limit to be hit",
    )
    begun = time.monotonic()
    assert {error["class"] for error in errors(fleet("apply", "--json")).values()} == {"no_kv_memory"}
    assert time.monotonic() - begun < 40
    faults.unlink()
    assert results(fleet("apply", "--json")) == {"tiny@gpu1": ("start", "changed")}
    assert root(host).argv


def test_a_server_that_hangs_is_seen_and_restarted(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """`status` and `plan` tell of it, with what was seen; `apply` restarts just that one. An idle one is left alone."""
    fleet.models(tiny=model())
    assert fleet("apply").returncode == 0
    before = pids(hosts)
    faults.write_text("wedged=1\n")
    assert phases(fleet("status", "--json")) == {f"tiny@{host.name}": "ready" for host in hosts}
    for host in (hosts[0], hosts[2]):
        host.shell(ASKING)
    status = fleet("status", "--json")
    assert phases(status) == {"tiny@gpu1": "unhealthy", "tiny@gpu2": "ready", "tiny@gpu3": "unhealthy"}
    (row,) = [row for row in status.json["servers"] if row["server"] == "tiny@gpu1"]
    assert [field["path"] for field in row["drift"]] == ["progress"]
    faults.unlink()  # whoever is asked anew answers; what hangs goes on hanging
    assert changes(fleet("plan", "--json")) == {}, "it answers again"
    faults.write_text("wedged=1\n")
    for host in (hosts[0], hosts[2]):
        host.shell(ASKING)
    plan = fleet("plan", "--json")
    assert changes(plan) == {f"tiny@{name}": ("restart", "wedged", True) for name in ("gpu1", "gpu3")}, plan
    running = fleet.begin("apply", "--json")
    wait_until(lambda: pids(hosts) != before, 120, "a server to be restarted")
    faults.unlink()
    done = running.end(120)
    assert done.returncode == 0, done
    now = pids(hosts)
    assert now["gpu2"] == before["gpu2"]
    assert all(now[name] != before[name] for name in ("gpu1", "gpu3"))
    assert fleet("plan", "--detailed-exitcode").returncode == 0

"""Draining on real hosts under load: what was asked is answered whole, whoever is stopped. vLLM is simulated."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.lab.balancing import Balancer, Client
from tests.lab.hosts import wait_until
from tests.lab.served import root, roots
from tests.lab.wanting import USUAL, changes, errors, model, results

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = [pytest.mark.system, pytest.mark.slow]

SLOW = {"VLLM_SIMULATOR_REQUEST_SECONDS": "1"}
"""A request takes a second, so that some are in flight at every moment."""

MODEL = str(USUAL["model"])


@pytest.fixture
def balancer(cli: Cli, simulated_vllm: str, tmp_path: Path) -> Balancer:
    """The balancer's file; the tool looks for the simulator."""
    cli.inventory({"vllm_executable": simulated_vllm})
    return Balancer(tmp_path / "targets")


def wanted(host: Host, balancer: Balancer | None = None, **fields: object) -> str:
    """The model on one host, slow, with hooks where there is a balancer."""
    hooks = {"before_stop": balancer.remove, "after_ready": balancer.add, "timeout": "10s"} if balancer else {}
    hooks |= {name: str(fields.pop(name)) for name in ("before_stop", "after_ready") if name in fields}
    return model(hosts=host.name, env=SLOW, hooks=hooks, **fields)


def under_load(client: Client, requests: int = 30) -> None:
    """Wait until requests run and end."""
    seen = client.sent
    wait_until(lambda: client.sent >= seen + requests, 20, f"{requests} answers")


@pytest.mark.parametrize("runtime", ["systemd", "process"])
def test_a_server_is_stopped_and_no_request_is_lost(
    cli: Cli, lab: Lab, hosts: list[Host], balancer: Balancer, runtime: str
) -> None:
    """The hook takes it out, its requests end, then it is stopped; started again, the hook puts it in."""
    host = hosts[0]
    cli.model("tiny", wanted(host, balancer, runtime=runtime))
    assert cli("apply", "--json").returncode == 0
    target = f"{host.address}:8001"
    assert balancer.targets() == [target]
    assert "--shutdown-timeout" in root(host).argv
    client = Client(balancer, MODEL)
    with client.asking(lab):
        under_load(client)
        stopped = cli("stop", "tiny", "--no-save", "--json")
        assert (stopped.returncode, results(stopped)) == (0, {f"tiny@{host.name}": ("stop", "changed")}), stopped
        assert balancer.targets() == []
        assert roots(host) == []
        started = cli("apply", "--json")
        assert results(started) == {f"tiny@{host.name}": ("start", "changed")}, started
        under_load(client)
    assert client.lost == []
    assert balancer.log() == [f"in {target}", f"out {target}", f"in {target}"]
    assert cli("plan", "--detailed-exitcode").returncode == 0


@pytest.mark.parametrize("runtime", ["systemd", "process"])
def test_without_a_hook_the_requests_in_flight_are_finished(
    cli: Cli, lab: Lab, hosts: list[Host], balancer: Balancer, runtime: str
) -> None:
    """`rollout.drain` alone: what was begun before the stop ends whole, with two workers, too; the rest is refused."""
    host = hosts[0]
    text = wanted(host, rollout={"drain": "5s"}, runtime=runtime, args={**USUAL["args"], "tensor_parallel_size": 2})  # type: ignore[dict-item]  # a mapping
    cli.model("tiny", text)
    assert cli("apply", "--json").returncode == 0
    balancer.path.write_text(f"{host.address}:8001\n", encoding="utf-8")
    client = Client(balancer, MODEL)
    with client.asking(lab):
        under_load(client)
        stopped = cli("stop", "tiny", "--no-save", "--json")
        assert stopped.returncode == 0, stopped
    assert "requests in flight after 5 s; vLLM gives them 5 s more" in stopped.stderr
    assert client.lost
    assert all("after 0." in line for line in client.lost), client.lost  # refused at once, none after waiting
    assert all("cannot schedule new futures" in line or "refused" in line for line in client.lost), client.lost


def test_a_hook_that_fails_leaves_the_server_alone(cli: Cli, hosts: list[Host], balancer: Balancer) -> None:
    """The process goes on, files are as they were, the report has the hook's last line and the place of the hooks."""
    host = hosts[0]
    cli.model("tiny", wanted(host, balancer))
    assert cli("apply", "--json").returncode == 0
    before = root(host).pid
    broken = "echo no such pool >&2; exit 7"
    cli.model("tiny", wanted(host, balancer, before_stop=broken).replace("512", "1024"))
    failed = cli("apply", "--json")
    assert failed.returncode == 1, failed
    error = errors(failed)[f"tiny@{host.name}"]
    assert (error["class"], error["evidence"]) == ("hook_failed", "no such pool")
    assert "models.d/tiny.yaml:" in error["remedy"]
    assert root(host).pid == before
    assert changes(cli("plan", "--json"))[f"tiny@{host.name}"][0] == "retune"


def test_ctrl_c_while_draining_stops_nothing_and_puts_it_back(
    cli: Cli, lab: Lab, hosts: list[Host], balancer: Balancer
) -> None:
    """The first Ctrl-C ends the wait: the server serves on, in the balancer again."""
    host = hosts[0]
    cli.model("tiny", wanted(host, balancer))
    assert cli("apply", "--json").returncode == 0
    before, target = root(host).pid, f"{host.address}:8001"
    cli.model("tiny", wanted(host, balancer, rollout={"drain": "60s"}))
    held = Balancer(balancer.path.with_name("held"))  # goes on asking whatever the hooks say
    held.path.write_text(f"{target}\n", encoding="utf-8")
    client = Client(held, MODEL, every=0.2)
    with client.asking(lab):
        under_load(client, 5)
        apply = cli.begin("apply", "--yes")
        wait_until(lambda: balancer.targets() == [], 30, "the hook to take it out")
        time.sleep(1.0)
        apply.send(2)
        ended = apply.end()
    assert ended.returncode == 130, ended
    assert balancer.targets() == [target]
    assert root(host).pid == before
    assert client.lost == []


def test_ctrl_c_after_the_stop_sees_the_server_through(
    cli: Cli, lab: Lab, hosts: list[Host], balancer: Balancer
) -> None:
    """It was taken down for settings with which it cannot start: it is back on its old ones, in the balancer again."""
    host = hosts[0]
    cli.model("tiny", wanted(host, balancer))
    assert cli("apply", "--json").returncode == 0
    before, target = root(host), f"{host.address}:8001"
    faults = lab.shared / "simulator/faults.8001"
    faults.write_text("start_seconds=3\n")
    try:
        cli.model("tiny", wanted(host, balancer, args={"max_model_len": 512, "gpu_memory_utilization": 0.01}))
        apply = cli.begin("apply", "--json")
        wait_until(lambda: any(one.pid != before.pid for one in roots(host)), 30, "its successor to be started")
        apply.send(2)
        ended = apply.end(90)
    finally:
        faults.unlink()
    assert ended.returncode == 130, ended
    assert results(ended) == {f"tiny@{host.name}": ("retune", "rolled_back")}, ended
    assert balancer.targets() == [target]
    assert root(host).argv == before.argv

"""Two controllers and one host at a time, with real SSH, agents and units: refused, waiting, and left by the dead."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.command import Cli
from tests.lab.served import pids, roots
from tests.lab.space import wait_until

if TYPE_CHECKING:
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

MODEL = """model: Qwen/Qwen2.5-0.5B-Instruct
hosts: all
port: 8001
hf_token: null
args: {max_model_len: 512}
health: {startup_timeout: 60s, soak: 0}
"""


@pytest.fixture
def one(cli: Cli, simulated_vllm: str) -> Cli:
    """A controller that wants a model on all three hosts."""
    cli.inventory({"vllm_executable": simulated_vllm})
    cli.model("tiny", MODEL)
    return cli


@pytest.fixture
def two(one: Cli, lab: Lab, simulated_vllm: str, tmp_path: Path) -> Cli:
    """Another one, that wants the same."""
    del one
    folder = tmp_path / "two"
    folder.mkdir()
    other = Cli(lab, folder)
    other.env["LOGNAME"] = "bob"
    other.inventory({"vllm_executable": simulated_vllm})
    other.model("tiny", MODEL)
    return other


def starts(host: Host) -> int:
    """How often our server was started, from the host's journal."""
    text = host.shell(
        "journalctl --no-pager -o cat -b -u vmreconcile-tiny.service | grep -c 'non-default args' || true"
    )
    return int(text)


def agents(host: Host) -> set[int]:
    """The agents on a host, by the host's own numbers."""
    return {one.pid for one in host.processes() if {"-I", "-S", "-c"} <= set(one.argv) and "python" in one.argv[0]}


def test_the_second_is_refused_or_waits(one: Cli, two: Cli, hosts: list[Host], faults: Path) -> None:
    """Exit 4 at once with who holds it, since when and how; with --lock-timeout it waits and changes nothing."""
    one.env["LOGNAME"] = "alice"
    before = [starts(host) for host in hosts]
    faults.write_text("start_seconds=8\n")
    first = one.begin("apply", "--json")
    wait_until(lambda: all(roots(host) for host in hosts), 60, "every server to be started")

    begun = time.monotonic()
    refused = two("apply", "--json")
    assert refused.returncode == 4, refused
    assert time.monotonic() - begun < 20
    assert {row["status"] for row in refused.json["results"]} == {"skipped"}
    for row in refused.json["results"]:
        assert row["error"]["class"] == "locked"
        assert f"locked by alice@{os.uname().nodename} since 2" in row["error"]["summary"]
        assert " UTC (" in row["error"]["summary"]
        assert "vmreconcile apply --json" in row["error"]["summary"]
        assert "--lock-timeout 5m" in row["error"]["remedy"]
    assert two("plan").returncode == 0
    assert two("status").returncode == 0

    waiting = two.begin("apply", "--json", "--lock-timeout", "2m")
    wait_until(lambda: "waiting for its lock, held by alice@" in waiting.stderr(), 30, "the second to wait")
    ended = [each.end(90) for each in (first, waiting)]
    assert [each.returncode for each in ended] == [0, 0], "\n".join(map(str, ended))
    assert {row["status"] for row in ended[0].json["results"]} == {"changed"}
    assert {row["status"] for row in ended[1].json["results"]} == {"ok"}
    assert [starts(host) for host in hosts] == [count + 1 for count in before]
    assert two("plan", "--detailed-exitcode").returncode == 0


def test_only_the_host_that_is_held_is_left(one: Cli, two: Cli, hosts: list[Host], faults: Path) -> None:
    """A run on one host keeps another run from that host alone."""
    faults.write_text("start_seconds=8\n")
    first = one.begin("apply", "--json", "--limit", "gpu1")
    wait_until(lambda: roots(hosts[0]), 60, "the server to be started")
    second = two("apply", "--json")
    assert second.returncode == 4, second
    told = {row["server"]: row["status"] for row in second.json["results"]}
    assert told == {"tiny@gpu1": "skipped", "tiny@gpu2": "changed", "tiny@gpu3": "changed"}
    assert first.end(60).returncode == 0


@pytest.mark.parametrize("kill", ["controller", "agent", "connection", "laptop"])
def test_a_lock_dies_with_its_holder(one: Cli, two: Cli, hosts: list[Host], faults: Path, kill: str) -> None:
    """Killed with -9, all of it or the host's part: the next run has the host, and no server keeps it locked.

    Where the controller only stands still, as on a laptop that was closed, that takes a minute.
    """
    faults.write_text("start_seconds=8\n")
    first = one.begin("apply", "--json", "--limit", "gpu1", "--timeout", "3")
    wait_until(lambda: roots(hosts[0]), 60, "the server to be started")
    before = pids(hosts[:1])
    parts = {"agent": agents(hosts[0]), "connection": hosts[0].pids("sshd: root@")}
    assert all(parts.values()), [one.argv for one in hosts[0].processes()]
    first.send(signal.SIGKILL if kill == "controller" else signal.SIGSTOP)  # or it would hold the host again at once
    if kill in parts:
        hosts[0].exec(["kill", "-KILL", *map(str, sorted(parts[kill]))])
    patience = "20s" if kill != "laptop" else "2m"
    second = two("apply", "--json", "--limit", "gpu1", "--lock-timeout", patience, timeout=180)
    assert second.returncode == 0, second
    assert pids(hosts[:1]) == before
    if kill == "controller":
        first.end()
        return
    first.send(signal.SIGCONT)
    done = first.end(60)
    assert (done.returncode, done.json["results"][0]["status"]) == (0, "changed"), done
    assert pids(hosts[:1]) == before

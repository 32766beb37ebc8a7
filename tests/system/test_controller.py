"""The controller comes to harm in the middle: interrupted, killed, cut off, run twice at once. The hosts stay sound."""

from __future__ import annotations

import os
import pty
import random
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.command import Cli, Running
from tests.lab.proxy import Proxy
from tests.lab.served import pids, root, roots
from tests.lab.space import wait_until

if TYPE_CHECKING:
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

MODEL = """model: Qwen/Qwen2.5-0.5B-Instruct
hosts: all
port: 8001
hf_token: null
args: {max_model_len: %d}
health: {startup_timeout: 60s, soak: 0}
"""
UNIT = "vmreconcile-tiny.service"


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool with one model wanted on all three hosts."""
    cli.inventory({"vllm_executable": simulated_vllm})
    want(cli, 512)
    return cli


def want(cli: Cli, length: int) -> None:
    """Want the model with this context length, by which a server is told from its predecessors."""
    cli.model("tiny", MODEL % length)


def length_of(host: Host) -> int:
    """The context length of the only server of ours, 0 where there is none."""
    argv = [word for one in roots(host) if "8001" in one.argv for word in one.argv]
    return int(argv[argv.index("--max-model-len") + 1]) if argv else 0


def starts(host: Host) -> list[int]:
    """The context length of each start that our server has had, from the host's journal, oldest first."""
    text = host.shell(f"journalctl --no-pager -o cat -b -u {UNIT} | grep 'non-default args' || true")
    return [int(number) for number in re.findall(r"'max_model_len': (\d+)", text)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_one_signal_ends_the_wait_and_nothing_is_half_done(
    fleet: Cli, hosts: list[Host], faults: Path, number: signal.Signals
) -> None:
    """Interrupted while servers start: exit 130 in a moment, told per server; the next apply takes them as they are."""
    faults.write_text("start_seconds=6\n")
    running = fleet.begin("apply", "--json")
    wait_until(lambda: all(roots(host) for host in hosts), 60, "every server to be started")
    running.send(number)
    done = running.end(20)
    assert done.returncode == 130, done
    assert "interrupted" in done.stderr, done
    assert done.json["changed"] == 0
    assert {row["status"] for row in done.json["results"]} == {"skipped"}
    assert {row["error"]["class"] for row in done.json["results"]} == {"interrupted"}

    before = pids(hosts)
    again = fleet("apply", "--json")
    assert (again.returncode, again.json["failed"]) == (0, 0), again
    assert pids(hosts) == before
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_two_signals_leave_at_once(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """While a host is waited for that does not answer, the second Ctrl-C leaves; what was begun there stays whole."""
    faults.write_text("wedged=yes\n")
    running = fleet.begin("apply", "--limit", "gpu1")
    wait_until(lambda: roots(hosts[0]), 60, "the server to be started")
    time.sleep(3)  # until its completion, which never comes, was asked for
    running.send(signal.SIGINT)
    wait_until(lambda: "again: leave at once" in running.stderr(), 10, "the first Ctrl-C to be heard")
    begun = time.monotonic()
    running.send(signal.SIGINT)
    done = running.end(20)
    assert time.monotonic() - begun < 10
    assert done.returncode == 130, done

    faults.write_text("")
    before = pids(hosts[:1])
    assert fleet("apply", "--limit", "gpu1").returncode == 0
    assert pids(hosts[:1]) == before


def test_a_terminal_that_is_closed(fleet: Cli, lab: Lab, hosts: list[Host], faults: Path, tmp_path: Path) -> None:
    """Hung up by a real terminal that goes away: it ends by itself, and the next apply goes on from what is there."""
    faults.write_text("start_seconds=6\n")
    leader, follower = pty.openpty()
    with lab.network():
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *fleet.argv("apply", "-y")],
            env=lab.environ(fleet.home),
            cwd=fleet.folder,
            stdin=follower,
            stdout=follower,
            stderr=follower,
        )
    os.close(follower)
    wait_until(lambda: all(roots(host) for host in hosts), 60, "every server to be started")
    os.close(leader)
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()
    before = pids(hosts)
    again = fleet("apply", "--json")
    assert again.returncode == 0, again
    assert pids(hosts) == before


Moment = Callable[[int], bool]


def moments(hosts: list[Host]) -> list[Moment]:
    """What can be seen on the hosts as an apply goes on towards a new context length, in this order."""
    one, unit = hosts[0], f"/etc/systemd/system/{UNIT}"
    return [
        lambda _: bool(one.agents()),
        lambda _: any(length_of(host) == 0 for host in hosts),
        lambda length: one.exists(unit) and str(length) in one.read(unit),
        lambda length: any(length_of(host) == length for host in hosts),
    ]


def kill_at(running: Running, moment: Moment | None, length: int, rng: random.Random) -> None:
    """Kill a run with -9 soon after a moment, or at any time."""
    if moment is None:
        time.sleep(rng.uniform(0.5, 4.0))
    else:
        wait_until(lambda: moment(length) or running.process.poll() is not None, 60, "the moment", pause=0.01)
        time.sleep(rng.uniform(0.0, 0.3))
    running.send(signal.SIGKILL)
    running.end()


def test_output_that_nobody_reads_stops_no_work(fleet: Cli, lab: Lab, hosts: list[Host]) -> None:
    """Piped into what leaves at once: the servers are started all the same, and the exit code is the run's."""
    command = f"{shlex.join(fleet.argv('apply', '-y'))} 2>&1 | true"
    done = lab.run(["bash", "-o", "pipefail", "-c", command], env={"HOME": str(fleet.home)}, cwd=fleet.folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [len(roots(host)) for host in hosts] == [1, 1, 1]
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_killed_at_any_moment_the_next_run_goes_on(
    fleet: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str
) -> None:
    """Killed with -9 at moments all over an apply, again and again: one apply converges, nothing starts twice."""
    stranger = lab.start_by_hand(hosts[0], [simulated_vllm, "serve", "somebody/elses", "--port", "9000"])
    (theirs,) = roots(hosts[0])
    assert theirs.pid == stranger
    assert fleet("apply", "--json").returncode == 0
    old = {host.name: starts(host) for host in hosts}
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    length = 1000
    for moment in (*moments(hosts), None, None):
        length += 1
        want(fleet, length)
        kill_at(fleet.begin("apply"), moment, length, rng)
    last = fleet("apply", "--json", "--lock-timeout", "60s")  # an agent may still be at the step of the one killed last
    assert (last.returncode, last.json["failed"]) == (0, 0), (seed, last)
    assert fleet("plan", "--detailed-exitcode").returncode == 0
    for host in hosts:
        assert length_of(host) == length
        assert len([one for one in roots(host) if "8001" in one.argv]) == 1
        since = starts(host)[len(old[host.name]) :]
        assert len(since) == len(set(since)), (seed, host.name, since)
        assert host.exec(["systemctl", "show", "-P", "NRestarts", UNIT]).stdout == "0\n"
    assert [(one.pid, one.start) for one in roots(hosts[0]) if one.pid == stranger] == [(theirs.pid, theirs.start)]


def test_a_link_that_is_cut_half_way(
    fleet: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str, faults: Path
) -> None:
    """One link is reset, another goes dead, while servers start: the third is done, exit 3; the next apply goes on."""
    _, reset, dead = hosts
    with lab.network():
        link = Proxy((reset.address, 22))
    with link:
        fleet.inventory(
            {"vllm_executable": simulated_vllm},
            {reset.name: {"ansible_host": link.address, "ansible_port": link.port}},
        )
        with (fleet.home / ".ssh/known_hosts").open("a") as known:
            known.write(f"[{link.address}]:{link.port} {reset.host_key}\n")
        faults.write_text("start_seconds=6\n")
        running = fleet.begin("apply", "--json", "--timeout", "1")
        wait_until(lambda: all(roots(host) for host in hosts), 60, "every server to be started")
        link.cut()
        dead.link_down()
        begun = time.monotonic()
        done = running.end(90)
        assert time.monotonic() - begun < 50, done
        assert done.returncode == 3, done
        told = {row["server"]: row for row in done.json["results"]}
        assert {server: row["status"] for server, row in told.items()} == {
            "tiny@gpu1": "changed",
            "tiny@gpu2": "unreachable",
            "tiny@gpu3": "unreachable",
        }
        assert link.address in told["tiny@gpu2"]["error"]["summary"], done
        assert dead.address in told["tiny@gpu3"]["error"]["summary"], done

        link.resume()
        dead.link_up()
        before = pids(hosts)
        again = fleet("apply", "--json")
        assert (again.returncode, again.json["unreachable"]) == (0, 0), again
        assert pids(hosts) == before


def test_two_applies_at_once(fleet: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str, tmp_path: Path) -> None:
    """Two controllers, one wish, at the same time, each waiting for the other's hosts: both succeed, nobody twice."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = Cli(lab, folder)
    other.inventory({"vllm_executable": simulated_vllm})
    for length in (700, 800):
        want(fleet, length)
        want(other, length)
        before = {host.name: starts(host) for host in hosts}
        both = [each.begin("apply", "--json", "--lock-timeout", "80s") for each in (fleet, other)]
        ended = [each.end(90) for each in both]
        assert [each.returncode for each in ended] == [0, 0], "\n".join(map(str, ended))
        for host in hosts:
            assert starts(host)[len(before[host.name]) :] == [length], host.name
            assert root(host).pid
            assert length_of(host) == length
    assert fleet("plan", "--detailed-exitcode").returncode == 0

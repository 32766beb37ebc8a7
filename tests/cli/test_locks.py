"""Hosts that another run holds, from the command line: what is refused, what goes on, and how a run waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.lab.desk import Desk
from tests.lab.fake_kernel import Behaviour, Refusal
from tests.lab.fake_lock import FakeSession
from vmreconcile.cli.main import main
from vmreconcile.cli.vm import main as vm

BOB: dict[str, object] = {
    "do": "lock",
    "owner": "bob@desk",
    "command": "vmreconcile apply --limit gpu1",
    "run": "b" * 32,
    "timeout": 0,
}


def held(desk: Desk, host: str = "gpu1") -> FakeSession:
    """Another run that holds a host."""
    session = desk.hosts[host].open()
    session.request(BOB, timeout=5.0)
    return session


def later(seconds: float, what: Callable[[], object]) -> threading.Timer:
    """Do something in a while."""
    timer = threading.Timer(seconds, what)
    timer.start()
    return timer


def test_a_host_that_is_held_is_left_alone_and_the_others_are_done(desk: Desk) -> None:
    """Exit 4, skipped, with who, since when, which command, and what to do; not one step was sent there."""
    held(desk)
    said = desk("apply", "-y", "--json")
    assert said.code == 4
    rows = {row["server"]: row for row in said.json["results"]}
    assert rows["qwen@gpu2"]["status"] == "changed"
    assert rows["qwen@gpu1"]["status"] == "skipped"
    error = rows["qwen@gpu1"]["error"]
    assert error["class"] == "locked"
    assert error["summary"] == (
        "gpu1: locked by bob@desk since 2026-11-22 22:20:00 UTC (60 s): vmreconcile apply --limit gpu1; "
        "nothing was changed there"
    )
    assert "--lock-timeout 5m" in error["remedy"]
    assert desk.hosts["gpu1"].done == []
    assert list(desk.pids()) == ["qwen@gpu2"]


def test_a_person_reads_the_same(desk: Desk) -> None:
    """On the terminal, and once the other run has ended it goes through."""
    other = held(desk)
    said = desk("apply", "-y")
    assert said.code == 4
    assert "locked by bob@desk since 2026-11-22" in said.out
    assert "--lock-timeout" in said.out
    other.close()
    assert desk("apply", "-y").code == 0


def test_what_changes_nothing_takes_no_lock(desk: Desk) -> None:
    """plan, status, and an apply with nothing to do go on beside any other run."""
    assert desk("apply", "-y").code == 0
    held(desk)
    held(desk, "gpu2")
    before = [len(host.requests) for host in desk.hosts.values()]
    assert desk("plan").code == 0
    assert desk("status").code == 0
    assert desk("apply", "-y").code == 0
    for host, count in zip(desk.hosts.values(), before, strict=True):
        assert "lock" not in [request["do"] for request in host.requests[count:]]


@pytest.mark.parametrize("words", [("stop", "qwen"), ("restart", "qwen"), ("remove", "-y", "qwen")])
def test_every_command_that_changes_hosts_takes_the_lock(desk: Desk, words: tuple[str, ...]) -> None:
    """Stop, restart and remove: exit 4, and the server runs on."""
    desk("apply", "-y")
    before = desk.pids()
    other = held(desk)
    assert desk(*words).code == 4
    assert desk.pids()["qwen@gpu1"] == before["qwen@gpu1"]
    assert desk("start", "qwen@gpu1").code == 0
    other.close()
    assert desk(*words).code == 0


def test_start_takes_the_lock(desk: Desk) -> None:
    """A server that does not run, on a host that is held."""
    held(desk)
    assert desk("start", "qwen").code == 4
    assert list(desk.pids()) == ["qwen@gpu2"]


def test_cleanup_takes_the_lock(desk: Desk) -> None:
    """Orphans stay until the other run has ended; the exit code says why."""
    desk.hosts["gpu1"].systemd.version = None
    desk.change("port: 8001", "port: 8001\nruntime: process")
    desk("apply", "-y")
    desk.hosts["gpu1"].kill_root("qwen")
    orphans = desk.hosts["gpu1"].orphans("qwen")
    assert orphans
    other = held(desk)
    desk.capture.readouterr()
    assert vm(["cleanup"]) == 4
    assert "locked by bob@desk" in desk.capture.readouterr().out
    assert desk.hosts["gpu1"].orphans("qwen") == orphans
    waiting = later(0.3, other.close)
    assert vm(["cleanup", "--lock-timeout", "1m"]) == 0
    waiting.join()
    assert "waiting for its lock, held by bob@desk" in desk.capture.readouterr().err
    assert desk.hosts["gpu1"].orphans("qwen") == []


def test_a_run_waits_where_it_is_asked_to(desk: Desk) -> None:
    """It says for whom, once, and goes on as soon as it may."""
    other = held(desk)
    waiting = later(0.5, other.close)
    begun = time.monotonic()
    said = desk("apply", "-y", "--lock-timeout", "5m")
    waiting.join()
    assert said.code == 0
    assert time.monotonic() - begun < 30
    line = "gpu1: waiting for its lock, held by bob@desk since 2026-11-22 22:20:00 UTC (60 s): "
    assert said.err.count(line) == 1
    assert sorted(desk.pids()) == ["qwen@gpu1", "qwen@gpu2"]


def test_a_run_that_waited_in_vain(desk: Desk) -> None:
    """As if it had not waited."""
    held(desk)
    assert desk("apply", "-y", "--lock-timeout", "1s").code == 4
    assert list(desk.pids()) == ["qwen@gpu2"]


def test_the_second_of_two_that_want_the_same_changes_nothing(desk: Desk) -> None:
    """It planned while the first was at work, waits for it, and finds all done: ok, and no server was started twice."""
    for host in desk.hosts.values():
        host.kernel.behaviours["qwen"] = Behaviour(ready_after=60)
    codes: dict[str, int] = {}

    def run(name: str) -> None:
        codes[name] = main(["apply", "-y", "--lock-timeout", "5m"])

    first = held(desk), held(desk, "gpu2")
    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while any([request["do"] for request in host.requests].count("lock") < 3 for host in desk.hosts.values()):
        assert time.monotonic() < until
        time.sleep(0.01)
    for session in first:
        session.close()
    for thread in threads:
        thread.join(60)
    assert codes == {"one": 0, "two": 0}
    said = desk.capture.readouterr()
    assert sorted(line for line in said.out.splitlines() if line.startswith("changed:")) in (
        ["changed: 0, ok: 2, failed: 0, unreachable: 0", "changed: 2, ok: 0, failed: 0, unreachable: 0"],
        ["changed: 1, ok: 1, failed: 0, unreachable: 0"] * 2,
    )
    for host in desk.hosts.values():
        assert [step["verb"] for step in host.done if step["step"] == "systemctl" and step["verb"] == "start"] == [
            "start"
        ]


def test_a_start_under_way_needs_the_lock_too(desk: Desk) -> None:
    """It would be stopped where it fails: the run that started it sees to that."""
    for host in desk.hosts.values():
        host.kernel.behaviours["qwen"] = Behaviour(ready_after=1e9)
    desk.change("startup_timeout: 2s", "startup_timeout: 0.05")
    assert desk("apply", "-y").code == 1
    held(desk)
    said = desk("apply", "-y", "--limit", "gpu1", "--json")
    assert said.code == 4
    assert [row["error"]["class"] for row in said.json["results"]] == ["locked"]


def test_a_host_that_is_done_is_free_for_others(desk: Desk) -> None:
    """While the rollout goes on elsewhere."""
    desk("apply", "-y")
    desk.change("4096", "8192")
    seen: list[bool] = []
    gpu1, gpu2 = desk.hosts["gpu1"], desk.hosts["gpu2"]

    class Looking(dict[str, Behaviour]):
        """Looks at the other host's lock as a server starts."""

        def get(self, *_: object) -> Behaviour:  # type: ignore[override] # whatever is asked for
            until = time.monotonic() + 5
            while gpu1.run_lock.holder is not None and time.monotonic() < until:
                time.sleep(0.01)
            seen.append(gpu1.run_lock.holder is None)
            return Behaviour()

    gpu2.kernel.behaviours = Looking()
    assert desk("apply", "-y").code == 0
    assert seen
    assert all(seen)


def test_the_command_is_shown_as_it_was_typed(desk: Desk) -> None:
    """With the name of the program, quoted as a shell needs it, and the person and computer that it came from."""
    desk("apply", "-y", "--limit", "gpu1, gpu2")
    asked = [request for request in desk.hosts["gpu1"].requests if request["do"] == "lock"]
    assert asked[0]["command"] == "vmreconcile apply -y --limit 'gpu1, gpu2'"
    assert "@" in asked[0]["owner"]
    assert asked[0]["timeout"] == 0
    assert asked[0]["lease"] > 30


def test_a_lock_that_cannot_be_made_fails_its_servers(desk: Desk) -> None:
    """A folder that others may write, say: exit 1 with its class, and the other host is done."""
    state = "/var/lib/vmreconcile"
    desk.hosts["gpu1"].failing["lock"] = Refusal("unsafe-path", f"{state}: others may write there", state)
    said = desk("apply", "-y", "--json")
    assert said.code == 1
    rows = {row["server"]: row for row in said.json["results"]}
    assert rows["qwen@gpu2"]["status"] == "changed"
    assert (rows["qwen@gpu1"]["status"], rows["qwen@gpu1"]["error"]["class"]) == ("failed", "unsafe_path")
    assert "others may write there" in rows["qwen@gpu1"]["error"]["summary"]


@pytest.mark.parametrize("text", ["", "-1", "soon", "5x", "1e3", "8d", "604801", "nan", "٣"])
def test_a_timeout_that_is_none(desk: Desk, text: str) -> None:
    """Wrong usage, with what it should be."""
    said = desk("apply", f"--lock-timeout={text}")
    assert said.code == 64
    assert "duration" in said.err


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("90", 90.0), ("30s", 30.0), ("5m", 300.0), ("1h30m", 5400.0)]
)
def test_durations(desk: Desk, text: str, seconds: float) -> None:
    """Seconds, or as people write them; what the agent is asked to wait."""
    assert desk("apply", "-y", "--lock-timeout", text).code == 0
    assert {request["timeout"] for request in desk.hosts["gpu1"].requests if request.get("owner")} == {seconds}

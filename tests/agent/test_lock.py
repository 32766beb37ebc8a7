"""The run lock, between real agents: one holder, named to whoever is refused, gone as soon as its process is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.conftest import SLUG, World, wait_until
from tests.agent.driver import Agent, Refused
from vmreconcile.agent import lock as room
from vmreconcile.agent.folders import Folders
from vmreconcile.agent.frames import Channel

pytestmark = pytest.mark.slow  # starts many processes, or waits

CLAIM = {"owner": "alice@laptop", "command": "vmreconcile apply --limit gpu1", "run": "a" * 32}
OTHER = {"owner": "bob@desk", "command": "vmreconcile stop qwen", "run": "b" * 32}


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[[], Agent]]:
    """As many agents with the same folders as are asked for."""
    made: list[Agent] = []

    def another() -> Agent:
        made.append(Agent(tmp_path))
        return made[-1]

    yield another
    for each in made:
        each.close()


def refused(agent: Agent, **claim: Any) -> Refused:  # noqa: ANN401 - fields of a request
    """The refusal of the lock."""
    with pytest.raises(Refused) as caught:
        agent.ask("lock", **{**OTHER, **claim})
    return caught.value


def opened(pid: int) -> set[str]:
    """The files that a process has open."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            found.add(str(link.readlink()))
    return found


def free(agent: Agent, seconds: float = 0.0) -> bool:
    """Whether the lock is to be had; it is given back."""
    try:
        agent.ask("lock", owner="carol@c", command="vmreconcile apply", run="c" * 32, timeout=seconds)
    except Refused as error:
        assert error.kind == "locked"  # noqa: PT017 - what is asked here is whether it is raised
        return False
    return bool(agent.ask("lock", release=True)[0]["changed"])


def test_one_holder_who_is_named(agents: Callable[[], Agent], tmp_path: Path) -> None:
    """The second is refused with who, since when and with which command, after a second; asking again is no matter."""
    first, second = agents(), agents()
    assert first.ask("lock", **CLAIM)[0]["held"] is True
    before = (tmp_path / "state/run.lock").read_text()
    assert first.ask("lock", **CLAIM)[0]["held"] is True
    assert (tmp_path / "state/run.lock").read_text() == before

    begun = time.monotonic()
    error = refused(second)
    assert error.kind == "locked"
    assert 0.8 < time.monotonic() - begun < 5
    assert error.path == f"{tmp_path}/state/run.lock"
    assert str(error).startswith("locked: the host is locked by alice@laptop for ")
    assert str(error).endswith(" (vmreconcile apply --limit gpu1)")
    holder = error.answer["error"]["holder"]
    assert (holder["owner"], holder["command"]) == (CLAIM["owner"], CLAIM["command"])
    assert holder["pid"] == first.process.pid
    assert abs(holder["since"] - time.time()) < 60
    assert 0 < holder["age"] < 60
    assert "run" not in holder


def test_only_the_owner_may_read_it(agents: Callable[[], Agent], tmp_path: Path) -> None:
    """The folder is made as steps make it."""
    agents().ask("lock", **CLAIM)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state/run.lock").stat().st_mode & 0o777 == 0o600


def test_looking_needs_no_lock(agents: Callable[[], Agent]) -> None:
    """Another agent observes, at once, and so does the holder."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM)
    assert second.observe()["servers"] == []
    assert first.observe()["servers"] == []


def test_it_is_given_back(agents: Callable[[], Agent], tmp_path: Path) -> None:
    """Released it is free, and the file names nobody; what is not held is not changed."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM)
    assert first.ask("lock", release=True)[0]["changed"] is True
    assert (tmp_path / "state/run.lock").read_bytes() == b""
    assert first.ask("lock", release=True)[0]["changed"] is False
    assert free(second)


@pytest.mark.parametrize("end", ["kill", "term", "eof"])
def test_it_dies_with_its_holder(agents: Callable[[], Agent], end: str) -> None:
    """However the agent ends, the next one has the lock at once."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM)
    assert not free(second)
    if end == "eof":
        first.close()
    else:
        os.kill(first.process.pid, signal.SIGKILL if end == "kill" else signal.SIGTERM)
        first.process.wait(10)
    begun = time.monotonic()
    assert free(second)
    assert time.monotonic() - begun < 0.5


@pytest.mark.slow
def test_who_waits_gets_it(agents: Callable[[], Agent]) -> None:
    """It is told of the holder every second, and has the lock as soon as that one is gone."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM)
    number = second.send("lock", **OTHER, timeout=60)
    told = [second.next_answer() for _ in range(2)]
    assert [(answer["id"], answer["more"]) for answer in told] == [(number, True)] * 2
    assert told[0]["holder"]["owner"] == "alice@laptop"
    assert not any("run" in each["holder"] for each in told), "who knows it could take the lock over"
    begun = time.monotonic()
    first.close()
    while (answer := second.next_answer()).get("more"):
        pass
    assert (answer["ok"], answer["held"]) == (True, True)
    assert time.monotonic() - begun < 5
    third = agents()
    assert not free(third)


def test_who_waits_and_goes_away_waits_no_longer(agents: Callable[[], Agent]) -> None:
    """An agent whose controller is gone ends, and does not take the lock after all."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM)
    second.send("lock", **OTHER, timeout=60)
    second.next_answer()
    begun = time.monotonic()
    second.close()
    assert time.monotonic() - begun < 3
    first.close()
    assert free(agents())


def test_a_server_does_not_keep_it(world: World) -> None:
    """What the steps start inherits nothing: the agent is killed, the server runs on, the lock is free."""
    world.agent.ask("lock", **CLAIM)
    pid = world.start()["pid"]
    world.ready()
    held = f"{world.root}/state/run.lock"
    assert held not in opened(pid)
    os.kill(world.agent.process.pid, signal.SIGKILL)
    world.agent.process.wait(10)
    second = Agent(world.root)
    world.agents.append(second)
    assert free(second)
    assert second.server(SLUG)["process"]["pid"] == pid
    second.steps(world.stop_step())


def test_a_program_that_outlives_the_agent_does_not_keep_it(tmp_path: Path) -> None:
    """As `systemctl` does it: a program of the host that leaves something behind which nobody waits for."""
    programs = tmp_path / "bin"
    programs.mkdir()
    left = tmp_path / "left"
    script = f"#!/bin/sh\nsetsid sleep 60 >/dev/null 2>&1 </dev/null &\necho $! >{left}\nls -l /proc/self/fd\n"
    (programs / "systemctl").write_text(script)
    (programs / "systemctl").chmod(0o755)
    first = Agent(tmp_path, prefix=("env", f"PATH={programs}:{os.environ['PATH']}"))
    second = Agent(tmp_path)
    try:
        first.ask("lock", **CLAIM)
        step = {"step": "systemctl", "verb": "daemon-reload", "unit": "", "scope": None}
        assert first.steps(step)[0]["changed"] is True
        pid = int(left.read_text())
        assert f"{tmp_path}/state/run.lock" not in opened(pid)
        first.process.kill()
        first.process.wait(10)
        assert free(second)
        os.kill(pid, 0)
    finally:
        subprocess.run(["kill", left.read_text().strip()], check=False)
        second.close()
        first.close()


# --- A connection that broke ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_takes_its_own_lock_over(agents: Callable[[], Agent]) -> None:
    """The agent that was lost may live on: the new one has the lock, no other run gets it, and the old one stops."""
    lost, again, other = agents(), agents(), agents()
    lost.ask("lock", **CLAIM)
    begun = time.monotonic()
    assert again.ask("lock", **CLAIM)[0]["held"] is True
    assert time.monotonic() - begun < 0.5
    assert not free(other)
    with pytest.raises(Refused, match=r"locked: the host is locked by alice@laptop") as caught:
        lost.steps({"step": "remove-file", "path": f"{lost.folders['config']}/x" if lost.folders else ""})
    assert caught.value.kind == "locked"
    again.steps()
    lost.close()
    assert not free(other)
    again.close()
    assert free(other)


@pytest.mark.slow
def test_it_lapses_in_a_silence(agents: Callable[[], Agent]) -> None:
    """After the lease another run may have it; the first is refused then, and has it again once it is free."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM, lease=2)
    assert not free(second)
    second.ask("lock", **OTHER, timeout=10)
    with pytest.raises(Refused, match=r"locked by bob@desk") as caught:
        first.steps()
    assert caught.value.kind == "locked"
    second.ask("lock", release=True)
    first.steps()
    assert refused(second).answer["error"]["holder"]["owner"] == "alice@laptop"


@pytest.mark.slow
def test_whatever_is_asked_keeps_it(agents: Callable[[], Agent]) -> None:
    """Requests of any kind end the silence; the work that one takes is no silence."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM, lease=2.0)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        first.observe()
        time.sleep(0.5)
    assert not free(second)


def test_it_goes_with_the_last_server(world: World) -> None:
    """Removed with all that is ours. The next steps take it again, unless another run was faster."""
    world.agent.ask("lock", **CLAIM)
    record = {"step": "write-record", "slug": SLUG, "record": {"runtime": "process"}}
    gone = {"step": "remove-server", "slug": SLUG}
    world.agent.steps(record, gone)
    assert not (world.root / "state").exists()
    assert world.agent.ask("lock", **CLAIM, again=True)[0]["held"] is False
    assert not (world.root / "state").exists()
    second = Agent(world.root)
    world.agents.append(second)
    world.agent.steps(record)
    assert not free(second)
    assert world.agent.ask("lock", **CLAIM, again=True)[0]["held"] is True
    world.agent.steps(gone)
    assert second.ask("lock", **OTHER)[0]["held"] is True
    with pytest.raises(Refused, match="locked by bob@desk"):
        world.agent.steps(record)


# --- What lies there ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[1]",
        b"\xff\xfe\x00",
        b"[" * 4096,
        b'{"owner": 5, "command": ["x"], "run": null, "time": "now", "pid": true}',
        b'{"owner": {}, "time": 1e300, "pid": -4}',
        b'{"time": NaN}',
        b'{"pid": 99999999999999999999}',
    ],
)
def test_content_of_any_kind_names_nobody(agents: Callable[[], Agent], tmp_path: Path, content: bytes) -> None:
    """The lock counts, what the file says does not."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM)
    (tmp_path / "state/run.lock").write_bytes(content)
    error = refused(second)
    assert (error.kind, "another run (command not known)" in str(error)) == ("locked", True)
    unknown = {"owner": "", "command": "", "since": None, "age": None, "pid": 0}
    assert error.answer["error"]["holder"] == unknown


@pytest.mark.slow
def test_what_somebody_wrote_there_is_cut_and_drives_no_terminal(agents: Callable[[], Agent], tmp_path: Path) -> None:
    """Control characters, other scripts' tricks, and 4 KiB at most."""
    first, second = agents(), agents()
    first.ask("lock", **CLAIM)
    said = {"owner": "\x1b[2Jal\nice\u202e", "command": "x" * 1000, "run": "a" * 32, "time": 5.0, "pid": 1}
    (tmp_path / "state/run.lock").write_text(json.dumps(said))
    holder = refused(second).answer["error"]["holder"]
    assert holder["owner"] == "[2Jal ice"
    assert holder["command"] == "x" * 300
    (tmp_path / "state/run.lock").write_text(json.dumps({**said, "command": "x" * 8000}))
    assert refused(second).answer["error"]["holder"]["command"] == ""


def test_what_is_asked_with_is_cut_as_well(agents: Callable[[], Agent], tmp_path: Path) -> None:
    """A controller may send anything."""
    first = agents()
    first.ask("lock", owner="a\x00b\r\n" * 100, command="ü" * 500, run="r" * 100, timeout=0)
    said = json.loads((tmp_path / "state/run.lock").read_text())
    assert said["owner"].isprintable()
    assert (len(said["owner"]), len(said["command"]), len(said["run"])) == (120, 300, 64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"owner": None},
        {"command": 5},
        {"run": ["x"]},
        {"timeout": -1},
        {"timeout": True},
        {"timeout": "5"},
        {"timeout": 1e9},
        {"lease": -1},
    ],
)
def test_a_request_that_makes_no_sense(agents: Callable[[], Agent], tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Refused before anything is made."""
    assert refused(agents(), **wrong).kind == "bad-request"
    assert not (tmp_path / "state/run.lock").exists()


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_something_else_lies_there(agents: Callable[[], Agent], tmp_path: Path, kind: str) -> None:
    """No link is followed, and nothing is locked that is no file."""
    (tmp_path / "state").mkdir(mode=0o700)
    at = tmp_path / "state/run.lock"
    (tmp_path / "victim").write_text("mine")
    match kind:
        case "link":
            at.symlink_to(tmp_path / "victim")
        case "folder":
            at.mkdir()
        case _:
            os.mkfifo(at)
    error = refused(agents())
    assert error.kind in {"unsafe-path", "io-error"}
    assert error.path == str(at)
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_folder_that_others_may_write_is_not_trusted(agents: Callable[[], Agent], tmp_path: Path) -> None:
    """As with every other file of ours."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    assert refused(agents()).kind == "unsafe-path"


@pytest.mark.slow
def test_many_at_once_one_holder(agents: Callable[[], Agent]) -> None:
    """Ten ask in the same moment: one has it, nine are refused with its name."""
    everyone = [agents() for _ in range(6)]
    for each in everyone:
        each.observe()
    for number, each in enumerate(everyone):
        each.send("lock", owner=f"u{number}@c", command="vmreconcile apply", run=f"{number}" * 32)
    answers = [wait_until(lambda each=each: each.next_answer()) for each in everyone]
    winners = [number for number, answer in enumerate(answers) if answer["ok"]]
    assert len(winners) == 1
    names = {answer["error"]["holder"]["owner"] for answer in answers if not answer["ok"]}
    assert names == {f"u{winners[0]}@c"}


def test_a_full_disk_leaves_the_lock_held_and_nobody_named(
    agents: Callable[[], Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written is not said; what another run left there is not said either."""
    folders = Folders(f"{tmp_path}/config", f"{tmp_path}/state", os.getuid(), str(tmp_path), "somebody")
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/run.lock").write_text(json.dumps({**OTHER, "time": 5.0, "pid": 1}))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    channel = Channel(*os.pipe())
    try:
        assert room.lock(dict(CLAIM), folders, channel, dict) == {"held": True}
        error = refused(agents())
        assert "locked by another run (command not known)" in str(error)
    finally:
        assert room.release(folders)
        os.close(channel.fd_in)
        os.close(channel.fd_out)
    assert free(agents())

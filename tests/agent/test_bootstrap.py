"""Getting the agent onto a host: shipped once, verified each time, run from memory where nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.conftest import wait_until
from tests.agent.driver import BOOTSTRAP, Agent, build_archive

VERSIONS = Path.home() / ".pyenv/versions"


def pythons() -> list[str]:
    """Every Python from 3.8 on that this machine has beside the tests' own."""
    found = sorted(VERSIONS.glob("3.*/bin/python")) if VERSIONS.exists() else []
    newer = [str(path) for path in found if int(path.parts[-3].split(".")[1]) >= 8]
    return [sys.executable, *newer]


@pytest.mark.parametrize("python", pythons())
def test_every_python_from_3_8_on(tmp_path: Path, python: str) -> None:
    """Shipped the first time, taken from the cache the second; both observe and write."""
    for sent in (1, 0):
        agent = Agent(tmp_path, python=python)
        assert agent.observe()["host"]["agent"] == agent.digest
        agent.steps({"step": "write-env", "path": f"{tmp_path}/config/env/a.env", "entries": [["A", str(sent)]]})
        assert (agent.close(), agent.sent_archive, agent.errors) == (0, sent, b"")
    files = sorted((tmp_path / "state/agent").iterdir())
    assert [file.suffix for file in files] == [".code", ".pyz"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_an_old_python_says_86_and_reads_nothing(tmp_path: Path) -> None:
    """The next candidate still finds all of standard input."""
    old = sorted(VERSIONS.glob("3.[67].*/bin/python"))
    if not old:  # the text has to parse there, which the grammar of an old Python decides
        compile(BOOTSTRAP, "bootstrap", "exec")
    for python in old:
        argv = ["sh", "-c", '"$0" -I -S -c "$1" x; echo $?; cat', str(python), BOOTSTRAP]
        done = subprocess.run(argv, input=b"rest\n", capture_output=True, check=True)
        assert done.stdout == b"86\nrest\n"


def spoil(path: Path, how: str) -> None:
    """Make a cached archive untrustworthy."""
    data = path.read_bytes()
    if how == "content":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "mode":
        path.write_bytes(b"PK evil")
        path.chmod(0o666)
    elif how == "owner":
        os.chown(path, 12345, 12345)
    elif how == "link":
        other = path.with_suffix(".other")
        path.rename(other)
        path.symlink_to(other)
    elif how == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["content", "mode", "owner", "link", "fifo", "empty"])
def test_a_wrong_archive_is_asked_for_again(tmp_path: Path, how: str) -> None:
    """Whatever lies there, only verified bytes run, and the cache is mended."""
    first = Agent(tmp_path)
    first.observe()
    first.close()
    spoil(tmp_path / "state/agent" / f"{first.digest}.pyz", how)
    for sent in (1, 0):
        agent = Agent(tmp_path)
        assert agent.observe()["format"] == 1
        assert (agent.close(), agent.sent_archive) == (0, sent)


@pytest.mark.parametrize("how", ["mode", "owner", "empty", "link"])
def test_a_code_cache_that_others_could_have_written_is_not_used(tmp_path: Path, how: str) -> None:
    """Compiled code is believed only from a file of ours."""
    first = Agent(tmp_path)
    first.observe()
    first.close()
    spoil(next((tmp_path / "state/agent").glob("*.code")), how)
    agent = Agent(tmp_path)
    assert agent.observe()["format"] == 1
    assert agent.close() == 0


def test_a_changed_agent_is_shipped(tmp_path: Path) -> None:
    """Another hash is another agent."""
    first = Agent(tmp_path)
    first.observe()
    first.close()
    second = Agent(tmp_path, archive=build_archive(pynvml=True))
    assert second.observe()["host"]["agent"] == second.digest != first.digest
    assert (second.close(), second.sent_archive) == (0, 1)


def test_what_came_before_the_magic_line_is_skipped(tmp_path: Path) -> None:
    """A password that sudo did not want, and noise, are not requests."""
    agent = Agent(tmp_path, noise=b"password\n{}\nVMRECONCILE\n")
    assert agent.observe()["format"] == 1
    assert agent.close() == 0


def test_a_request_sent_along_is_answered_after_the_archive(tmp_path: Path) -> None:
    """The first request may travel with the magic line, whether the archive is there or not."""
    for _ in range(2):
        agent = Agent(tmp_path)
        numbers = [agent.send("observe", salt="00" * 8), agent.send("observe", salt="00" * 8)]
        assert [agent.next_answer()["id"] for _ in numbers] == numbers
        assert agent.close() == 0


@pytest.mark.parametrize(
    "say",
    [
        lambda agent: agent.write(b"ARCHIVE 99999999999\n"),
        lambda agent: agent.write(b"ARCHIVE x\n"),
        lambda agent: agent.write(b"ARCHIVE 3\nabc"),
        lambda agent: agent.write(b"HELLO\n"),
        lambda agent: agent.process.stdin.close(),
    ],
)
def test_a_wrong_delivery_ends_it_with_one_line(tmp_path: Path, say: Callable[[Agent], None]) -> None:
    """Nothing unverified runs; standard error has one line and no traceback."""
    agent = Agent(tmp_path)
    assert agent.lines.get(timeout=20) == b"VMRECONCILE/1 need\n"
    say(agent)
    assert agent.process.wait(20) == 1
    wait_until(lambda: agent.errors)
    assert agent.errors.startswith(b"vmreconcile: ")
    assert agent.errors.count(b"\n") == 1
    assert not (tmp_path / "state/agent").exists()
    agent.close()


def test_an_end_in_the_middle_of_a_request_lets_it_finish(tmp_path: Path) -> None:
    """When the controller dies, what is under way is done before the agent ends."""
    agent = Agent(tmp_path)
    agent.observe()
    steps = [
        {"step": "write-env", "path": f"{tmp_path}/config/env/a{number}.env", "entries": [["A", "1"]]}
        for number in range(50)
    ]
    agent.send("steps", steps=steps)
    assert agent.process.stdout is not None
    assert agent.close() == 0
    assert len(list((tmp_path / "config/env").iterdir())) == 50


def test_signals_of_a_terminal_do_not_end_it(agent: Agent) -> None:
    """A hang-up or Ctrl-C does not stop an agent half-way; the end of its input does."""
    agent.observe()
    for number in (1, 2, 13):
        agent.process.send_signal(number)
    assert agent.observe()["format"] == 1


def test_no_core_dump_is_possible(agent: Agent) -> None:
    """A token in memory is never written to disk: not to a file (0), nor to a collector (1, man 5 core)."""
    agent.observe()
    limits = Path(f"/proc/{agent.process.pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert line.split()[4] in ("0", "1")

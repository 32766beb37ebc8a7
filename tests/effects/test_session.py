"""The conversation with the agent, over a real sshd and locally, with an agent that misbehaves on request."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import stat
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.sshd import running
from vmreconcile.effects.session import AgentError, AgentSession, open_session
from vmreconcile.errors import UnreachableError
from vmreconcile.model.connection import Connection, ConnectionKind
from vmreconcile.model.secret import HIDDEN, Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.sshd import Sshd
    from vmreconcile.effects.ship import Archive
    from vmreconcile.effects.transport import TransportOptions

TOKEN = "hf_SENTINELsentinelSENTINELsentinel00"
PASSWORD = "correct horse"


@pytest.fixture(params=[ConnectionKind.LOCAL, ConnectionKind.SSH])
def way(request: pytest.FixtureRequest, connection: Connection) -> Connection:
    """Both ways to a host."""
    return dataclasses.replace(connection, kind=request.param)


@pytest.fixture
def session(way: Connection, options: TransportOptions, standin: Archive) -> Iterator[AgentSession]:
    """A session with the stand-in."""
    with open_session(way, options, archive=standin) as opened:
        yield opened


def test_requests_and_answers(session: AgentSession) -> None:
    """Requests are answered one after the other, text arrives as it was sent."""
    text = "é\u2028\udcff\x00 'quoted' \"$HOME\" \\n 🦊"
    assert session.request({"do": "echo", "text": text})["got"] == text
    assert session.request({"do": "echo", "text": "second"})["got"] == "second"


def test_agent_gets_hash_and_state_folder(way: Connection, options: TransportOptions, standin: Archive) -> None:
    """The bootstrap's arguments are as docs/wire.md has them, whatever the folder is called."""
    way = dataclasses.replace(way, vllm_state_dir='/srv/it\'s $HOME "x"')
    with open_session(way, options, archive=standin) as session:
        assert session.request({"do": "echo"})["argv"] == [standin.sha256, way.vllm_state_dir]


def test_megabytes_both_ways(session: AgentSession) -> None:
    """Large requests and answers pass without a deadlock and in reasonable time."""
    answer = session.request({"do": "big", "text": "a" * 8_000_000, "answer": 10_000_000}, timeout=30)
    assert answer["received"] == 8_000_000
    assert answer["text"] == "x" * 10_000_000


def test_noise_is_skipped(session: AgentSession) -> None:
    """Greetings, other encodings, near misses, answers to other requests and split lines do no harm."""
    assert session.request({"do": "noise"}) == {"ok": True}


def test_much_on_standard_error(session: AgentSession) -> None:
    """Five megabytes on standard error do not stop the agent; 64 KiB are kept."""
    assert session.request({"do": "stderr"}, timeout=20) == {"ok": True}
    assert len(session.channel.stderr) == 65536


def test_progress(session: AgentSession) -> None:
    """Answers that announce more are handed on, the last one is returned; endless patience is possible."""
    seen: list[object] = []
    last = session.request(
        {"do": "progress"}, timeout=math.inf, on_progress=lambda answer: seen.append(answer["index"])
    )
    assert (seen, last) == ([0, 1, 2], {"ok": True, "changed": True})


def test_requests_of_several_threads_go_one_after_the_other(session: AgentSession) -> None:
    """Each thread gets the answers to its own questions, large ones and refusals among them."""
    barrier = threading.Barrier(6, timeout=10)
    wrong: list[object] = []

    def ask(name: str) -> None:
        barrier.wait()
        for number in range(15):
            text = f"{name} {number} " + "x" * (50_000 if number % 5 == 0 else 5)
            if session.request({"do": "echo", "text": text}, timeout=20)["got"] != text:
                wrong.append(text)
            with pytest.raises(AgentError, match="no space left"):
                session.request({"do": "fail"}, timeout=20)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    assert session._last_id == 6 * 15 * 2


def test_who_waits_for_a_turn_hears_that_the_session_broke(session: AgentSession) -> None:
    """Nothing is sent on a connection that another thread lost, and nobody waits for the end of time."""
    begun = threading.Event()

    def lose() -> None:
        begun.set()
        with pytest.raises(UnreachableError, match="no answer in time"):
            session.request({"do": "half"}, timeout=0.5)

    thread = threading.Thread(target=lose)
    thread.start()
    assert begun.wait(5)
    time.sleep(0.1)
    with pytest.raises(UnreachableError, match=r"^the connection was lost before$"):
        session.request({"do": "echo"}, timeout=20)
    thread.join(10)


def test_refusal_of_the_agent(session: AgentSession) -> None:
    """An answer that is not ok becomes an error with class, path and step; the session goes on."""
    with pytest.raises(AgentError, match="no space left") as caught:
        session.request({"do": "fail"})
    assert (caught.value.kind, caught.value.path, caught.value.index) == ("disk-full", "/x", 2)
    assert session.request({"do": "echo", "text": "still here"})["got"] == "still here"


def test_what_was_sent_as_a_secret_comes_back_hidden(session: AgentSession) -> None:
    """In whatever part of an answer; a value so short that it is in every text is left, and so is an error's class."""
    text = Secret(f"text with {TOKEN}")
    session.request({"do": "echo", "a": Secret(TOKEN), "b": Secret("1"), "c": Secret("gated")})
    answer = session.request({"do": "echo", "text": [{"deep": text, TOKEN: 11}, "101"]})
    assert answer["got"] == [{"deep": HIDDEN, HIDDEN: 11}, "101"]
    with pytest.raises(AgentError) as caught:
        session.request({"do": "odd", "class": "fetch-gated", "text": f"HTTP 401 for {TOKEN}"})
    assert (caught.value.kind, str(caught.value)) == ("fetch-gated", f"HTTP 401 for {HIDDEN}")
    with pytest.raises(AgentError) as caught:
        session.request({"do": "odd", "class": "\x1b]0;x\x07", "text": ""})
    assert caught.value.kind == "agent-bug"


def test_answers_without_an_end(session: AgentSession) -> None:
    """Where nobody follows them, all of them together have the time of one."""
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="goes on without an end"):
        session.request({"do": "endless"}, timeout=0.5)
    assert time.monotonic() - began < 10


def test_archive_is_sent_when_needed(session: AgentSession, standin: Archive) -> None:
    """`need` is answered with the archive, also after a request that was itself large."""
    answer = session.request({"do": "need", "text": "z" * 100_000})
    assert (answer["word"], answer["size"]) == ("ARCHIVE", len(standin.content))


def test_no_answer_in_time(session: AgentSession) -> None:
    """Silence in the middle of an answer ends at the timeout, with what was said on standard error."""
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"^no answer in time: hanging$"):
        session.request({"do": "half"}, timeout=0.5)
    assert time.monotonic() - began < 10
    with pytest.raises(UnreachableError, match="lost before"):
        session.request({"do": "echo"})


def test_unreadable_answer(session: AgentSession) -> None:
    """An answer that is no JSON is an error, not a traceback."""
    with pytest.raises(UnreachableError, match="cannot be read"):
        session.request({"do": "garbage"})


def test_secrets_show_nowhere(
    way: Connection, options: TransportOptions, standin: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    """A token in a request reaches the agent and no log, exception or repr, not even when the agent repeats it."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("paramiko").setLevel(logging.DEBUG)
    try:
        with open_session(way, options, archive=standin) as session:
            assert session.request({"do": "echo", "text": Secret(TOKEN)})["got"] == HIDDEN
            with pytest.raises(UnreachableError) as caught:
                session.request({"do": "die", "token": Secret(TOKEN)})
            shown = repr(session) + "".join(traceback.format_exception(caught.value))
            with pytest.raises(TypeError) as odd:
                AgentSession(channel=session.channel, archive=standin, connection=way, command_timeout=1).request(
                    {"token": Secret(TOKEN), "set": {1}}
                )
    finally:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    assert "ended with status 3 before it answered: the last words hold (hidden)" in str(caught.value)
    shown += "".join(traceback.format_exception(odd.value)) + caplog.text
    shown += json.dumps([str(record.__dict__) for record in caplog.records], default=str)
    assert TOKEN not in shown


@pytest.mark.slow
def test_closing_lets_the_agent_finish(
    way: Connection, options: TransportOptions, standin: Archive, tmp_path: Path
) -> None:
    """A step under way when the controller goes is finished on the host."""
    done = tmp_path / "done"
    session = open_session(way, options, archive=standin)
    with session, pytest.raises(UnreachableError, match="no answer in time"):
        session.request({"do": "slow", "seconds": 2, "path": str(done)}, timeout=0.2)
    assert not done.exists()
    wait_for(done.exists)
    assert done.read_text() == "finished"


def test_connection_lost_in_the_middle(sshd: Sshd, session: AgentSession, way: Connection) -> None:
    """Killing the process that serves the connection is noticed at once, long before the timeout."""
    if way.kind is ConnectionKind.LOCAL:
        group = session.channel._process.pid  # type: ignore[attr-defined]
        threading.Timer(0.3, os.killpg, (group, 9)).start()
        expected = "ended with status -9 before it answered: hanging"
    else:
        threading.Timer(0.3, sshd.hang_up).start()
        expected = "^the connection was lost: hanging$"
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=expected):
        session.request({"do": "half"}, timeout=20)
    assert time.monotonic() - began < 10


def test_local_environment_is_a_logins(connection: Connection, options: TransportOptions, standin: Archive) -> None:
    """Of the controller's environment only what a login has reaches the agent: no token, no setting of vLLM."""
    environ = {
        "PATH": "/usr/bin:/bin",
        "HF_TOKEN": TOKEN,
        "VLLM_X": "1",
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": "/run/x",
    }
    local = dataclasses.replace(connection, kind=ConnectionKind.LOCAL)
    with open_session(local, dataclasses.replace(options, environ=environ), archive=standin) as session:
        seen = session.request({"do": "echo"})["env"]
    assert isinstance(seen, dict)
    assert TOKEN not in str(seen)
    assert "VLLM_X" not in seen
    assert {name: seen[name] for name in ("LANG", "XDG_RUNTIME_DIR", "HOME")} == {
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": "/run/x",
        "HOME": str(options.home),
    }


def test_local_agent_has_a_session_of_its_own(
    connection: Connection, options: TransportOptions, standin: Archive
) -> None:
    """Ctrl-C at the terminal goes to the foreground process group, which the agent is not in."""
    local = dataclasses.replace(connection, kind=ConnectionKind.LOCAL)
    with open_session(local, options, archive=standin) as session:
        session.request({"do": "echo"})
        pid = session.channel._process.pid  # type: ignore[attr-defined]
        assert os.getsid(pid) == pid != os.getsid(0)


def test_the_real_agent(way: Connection, options: TransportOptions, tmp_path: Path) -> None:
    """The agent of this installation: shipped at first, found in its cache the second time; it sees the host."""
    state = tmp_path / "state"
    way = dataclasses.replace(way, vllm_state_dir=str(state))
    request = {
        "do": "observe",
        "salt": "ab" * 16,
        "executables": [""],
        "ports": [1],
        "servers": None,
        "http_timeout": 1.0,
        "gpus": False,
        "folders": {"config": str(tmp_path / "config"), "state": str(state)},
    }
    for shipped in (True, False):
        with open_session(way, options) as session:
            seen = session.request(request)["observation"]
            assert session._shipped is shipped
        assert isinstance(seen, dict)
        assert isinstance(seen["host"], dict)
        assert (seen["host"]["uid"], seen["host"]["agent"]) == (os.getuid(), session.archive.sha256)


# --- Python on the host ---------------------------------------------------------------------------------------------


def fake(folder: Path, name: str, text: str) -> Path:
    """An executable of a shell's text."""
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_no_python(tmp_path: Path, options: TransportOptions, connection: Connection, standin: Archive) -> None:
    """A host without Python says so, and what would help."""
    (tmp_path / "bin").mkdir()
    with running(tmp_path / "sshd", environment={"PATH": str(tmp_path / "bin")}) as host:
        error = refusal(to(host), person(host, options), standin)
    assert error.reason == "no Python there"
    assert "ansible_python_interpreter" in error.remedy


def test_old_python_only(tmp_path: Path, options: TransportOptions, standin: Archive) -> None:
    """Old Pythons are named with their version and place; the request is not lost on them."""
    old = os.environ.get("VMRECONCILE_PYTHON36")
    if not old:
        fake(tmp_path / "bin", "python3", "echo 'vmreconcile: Python 3.6.15 is too old: /usr/bin/python3' >&2; exit 86")
    else:
        fake(tmp_path / "bin", "python3", f'exec {old} "$@"')
    with running(tmp_path / "sshd", environment={"PATH": str(tmp_path / "bin")}) as host:
        error = refusal(to(host), person(host, options), standin)
    assert error.reason.startswith("no Python 3.8 or newer there (found: 3.6.15 at /")


def test_python_beside_vllm(tmp_path: Path, options: TransportOptions, standin: Archive) -> None:
    """Where the system's Python is too old or a broken shim, the interpreter beside vLLM serves."""
    fake(tmp_path / "bin", "python3", "exit 86")
    fake(tmp_path / "bin", "python3.12", "exit 127")
    fake(tmp_path / "venv", "python", 'BESIDE=1 exec /usr/bin/python3 "$@"')
    with running(tmp_path / "sshd", environment={"PATH": str(tmp_path / "bin")}) as host:
        way = dataclasses.replace(to(host), vllm_executable=str(tmp_path / "venv/vllm"))
        with open_session(way, person(host, options), archive=standin) as session:
            env = session.request({"do": "echo"})["env"]
    assert isinstance(env, dict)
    assert env["BESIDE"] == "1"


def test_named_python_goes_first(tmp_path: Path, way: Connection, options: TransportOptions, standin: Archive) -> None:
    """`ansible_python_interpreter` is tried before all others; its `auto` forms name nothing."""
    named = fake(tmp_path / "a b", "python3", 'NAMED=1 exec /usr/bin/python3 "$@"')
    for interpreter, expected in ((str(named), "1"), ("auto_silent", None)):
        way = dataclasses.replace(way, python_interpreter=interpreter)
        with open_session(way, options, archive=standin) as session:
            env = session.request({"do": "echo"})["env"]
        assert isinstance(env, dict)
        assert env.get("NAMED") == expected


def refusal(way: Connection, options: TransportOptions, archive: Archive) -> UnreachableError:
    """Why the host does not answer the first request."""
    with open_session(way, options, archive=archive) as session, pytest.raises(UnreachableError) as caught:
        session.request({"do": "echo", "text": Secret(TOKEN)}, timeout=10)
    return caught.value


def to(host: Sshd) -> Connection:
    """A connection to an sshd."""
    return Connection(host="gpu2", address="127.0.0.1", port=host.port, private_key_file=str(host.key))


def person(host: Sshd, options: TransportOptions) -> TransportOptions:
    """The person that knows this sshd."""
    return dataclasses.replace(options, home=host.home)


# --- sudo -----------------------------------------------------------------------------------------------------------

SUDO = f"""\
mode=$(cat "${{0%/*}}/mode")
echo "$*" >> "${{0%/*}}/argv"
while [ "$1" != -- ]; do
  case $1 in -n) never=1;; -u) user=$2; shift;; -p) shift;; esac
  shift
done
shift
case $mode in
  free) exec env BECAME="$user" "$@";;
  password)
    [ -z "$never" ] || {{ echo 'sudo: a password is required' >&2; exit 1; }}
    for attempt in 1 2 3; do
      IFS= read -r line || exit 1
      [ "$line" != '{PASSWORD}' ] || exec env BECAME="$user" "$@"
      echo "$line" >> "${{0%/*}}/wrong"
      echo 'Sorry, try again.' >&2
    done
    echo 'sudo: 3 incorrect password attempts' >&2; exit 1;;
  denied) echo 'alice is not in the sudoers file.' >&2; exit 1;;
  tty) echo 'sudo: sorry, you must have a tty to run sudo' >&2; exit 1;;
  user) echo "sudo: unknown user $user" >&2; exit 1;;
esac
"""


@pytest.fixture
def sudo(tmp_path: Path) -> Path:
    """A folder with a sudo whose mood is in the file `mode`."""
    folder = tmp_path / "sudo"
    fake(folder, "sudo", SUDO)
    return folder


def becoming(sudo: Path, mode: str, options: TransportOptions, **fields: object) -> tuple[Connection, TransportOptions]:
    """A local connection through that sudo."""
    (sudo / "mode").write_text(mode)
    way = Connection(host="gpu1", kind=ConnectionKind.LOCAL, become=True, **fields)  # type: ignore[arg-type]
    return way, dataclasses.replace(options, environ={"PATH": f"{sudo}:/usr/bin:/bin"})


@pytest.mark.parametrize(("mode", "password"), [("free", None), ("password", PASSWORD), ("free", PASSWORD)])
def test_become(sudo: Path, options: TransportOptions, standin: Archive, mode: str, password: str | None) -> None:
    """The agent runs as the other user; a password that sudo did not ask for after all does no harm."""
    secret = Secret(password) if password else None
    way, who = becoming(sudo, mode, options, become_user="vllm", become_password=secret)
    with open_session(way, who, archive=standin) as session:
        env = session.request({"do": "echo"})["env"]
    assert isinstance(env, dict)
    assert env["BECAME"] == "vllm"
    assert PASSWORD not in (sudo / "argv").read_text()


def test_become_over_ssh(sudo: Path, tmp_path: Path, options: TransportOptions, standin: Archive) -> None:
    """The same over SSH, with a password."""
    (sudo / "mode").write_text("password")
    with running(tmp_path / "sshd", environment={"PATH": f"{sudo}:/usr/bin:/bin"}) as host:
        way = dataclasses.replace(to(host), become=True, become_password=Secret(PASSWORD))
        with open_session(way, person(host, options), archive=standin) as session:
            env = session.request({"do": "big", "text": "a" * 100_000, "answer": 5})
    assert env["received"] == 100_000


@pytest.mark.parametrize(
    ("mode", "password", "reason"),
    [
        ("password", None, "sudo needs a password"),
        ("password", "wrong battery", "sudo refused the password"),
        ("denied", None, "sudo does not allow alice to become root"),
        ("denied", "any", "sudo does not allow alice to become root"),
        ("tty", None, "sudo insists on a terminal"),
        ("user", None, "there is no user root to become"),
    ],
)
def test_become_refused(
    sudo: Path, options: TransportOptions, standin: Archive, mode: str, password: str | None, reason: str
) -> None:
    """Each refusal has its own line and remedy; a wrong password is the only thing that sudo gets to read."""
    secret = Secret(password) if password else None
    way, who = becoming(sudo, mode, options, user="alice", become_password=secret)
    error = refusal(way, who, standin)
    assert error.reason == reason
    assert error.remedy
    if mode == "password" and password:
        assert (sudo / "wrong").read_text() == "wrong battery\n"
    assert "battery" not in "".join(traceback.format_exception(error))


def test_no_sudo(tmp_path: Path, options: TransportOptions, standin: Archive) -> None:
    """A host without sudo."""
    (tmp_path / "env").symlink_to("/usr/bin/env")
    way = Connection(host="gpu1", kind=ConnectionKind.LOCAL, become=True)
    who = dataclasses.replace(options, environ={"PATH": str(tmp_path)})
    assert refusal(way, who, standin).reason == "sudo is not installed"


def wait_for(condition: object, seconds: float = 10) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)

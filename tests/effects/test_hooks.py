"""Hooks: real commands in sessions of their own; what they get, how they end, what is kept of what they say."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from vmreconcile.effects import hooks
from vmreconcile.effects.hooks import Controller, Hook, HookError, run_hook, without_secrets
from vmreconcile.model.secret import Secret

pytestmark = pytest.mark.slow  # starts many processes, or waits

TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up
PATH = {"PATH": os.environ["PATH"]}


def run(command: tuple[str, ...] | str, timeout: float = 10.0, **facts: str) -> None:
    """Run a hook in a bare environment."""
    around = Controller(environ=PATH, secrets=(Secret("plain-Secret-of-this-run"),))
    run_hook(Hook(command=command, timeout=timeout, facts=facts), around, lambda _: None)


def refused(command: tuple[str, ...] | str, timeout: float = 10.0) -> HookError:
    """Why a hook failed."""
    with pytest.raises(HookError) as caught:
        run(command, timeout)
    return caught.value


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_text_is_for_a_shell_and_a_list_runs_as_it_is(tmp_path: Path) -> None:
    """Variables are expanded in text, by the shell; words of a list are handed over untouched."""
    run(f"echo $VMRECONCILE_SERVER > {tmp_path}/text", VMRECONCILE_SERVER="m@h")
    run(("sh", "-c", 'printf %s "$1" > "$0"', f"{tmp_path}/list", "$VMRECONCILE_SERVER"), VMRECONCILE_SERVER="m@h")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "m@h\n"
    assert (tmp_path / "list").read_text(encoding="utf-8") == "$VMRECONCILE_SERVER"


def test_it_runs_where_the_command_was_run_in_a_session_of_its_own(tmp_path: Path) -> None:
    """Same folder, no input, and no terminal's Ctrl-C: it leads a session and a process group."""
    run(
        f"cd -P . && pwd > {tmp_path}/cwd; wc -c > {tmp_path}/input; "
        f"ps -o sid=,pgid= -p $$ > {tmp_path}/ids; echo $$ >> {tmp_path}/ids"
    )
    assert (tmp_path / "cwd").read_text(encoding="utf-8").strip() == str(Path.cwd())
    assert (tmp_path / "input").read_text(encoding="utf-8").strip() == "0"
    session, group, pid = (tmp_path / "ids").read_text(encoding="utf-8").split()
    assert session == group == pid


def test_a_failing_hook_tells_its_status_and_its_last_lines() -> None:
    """Three lines at most, of both outputs; a signal has its name."""
    error = refused("for n in 1 2 3 4; do echo line $n; done; echo no such server >&2; exit 3")
    assert (str(error), error.evidence) == ("exit status 3", "line 3 / line 4 / no such server")
    assert str(refused("kill -9 $$")) == "ended by SIGKILL"


@pytest.mark.parametrize("command", [("/nowhere/lb", "x"), ("no-such-program",), ("/etc/passwd",)])
def test_a_program_that_cannot_be_started(command: tuple[str, ...]) -> None:
    """It is named, with the system's reason."""
    assert str(refused(command)) in {f"{command[0]}: no such file or directory", f"{command[0]}: permission denied"}


def test_what_it_prints_is_shown_without_tokens() -> None:
    """What looks like a token, and what is one of this run, colours or none in the midst of it."""
    error = refused(f"echo using {TOKEN}; printf 'pl\\033[1main-Secret-of-this-run\\n'; exit 1")
    assert error.evidence == "using *** / ***"


@pytest.mark.parametrize("secret", [TOKEN, "plain-Secret-of-this-run"])
@pytest.mark.parametrize("shown", [5, 20])
def test_no_end_of_a_secret_is_shown_where_the_output_was_cut(secret: str, shown: int) -> None:
    """One long line, of which what is kept begins in the midst of a secret; nor one that control characters part."""
    rest = hooks.KEPT - shown
    error = refused(("python3", "-c", f"print('x' * 9 + {secret!r} + 'y' * {rest}, end=''); exit(1)"))
    assert error.evidence
    assert not set(error.evidence) - {"y"}
    assert refused(f"printf '{secret[:6]}\\000\\010{secret[6:]}'; exit 1").evidence == "***"


def test_a_hook_that_may_not_be_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that became root: it is named, and the run goes on."""
    started: list[int] = []

    def killpg(pid: int, number: int) -> None:
        started.append(pid)
        raise PermissionError(number)

    monkeypatch.setattr(hooks, "GRACE_S", 0.2)
    monkeypatch.setattr("os.killpg", killpg)
    begun = time.monotonic()
    try:
        error = refused(("sleep", "20"), timeout=0.2)
        assert time.monotonic() - begun < 10
        assert str(error) == f"no end within 0.2 s; pid {started[0]} of it cannot be ended from here"
    finally:
        os.kill(started[0], signal.SIGKILL)
        os.waitpid(started[0], 0)


@pytest.mark.parametrize("command", ["exit 0", "sleep 0.3"])
def test_a_parent_that_ignores_ends_of_children(command: str) -> None:
    """Some schedulers start us so: the kernel keeps no status then, and nothing breaks."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        run(command)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_much_output_is_read_and_its_end_kept() -> None:
    """A megabyte does not block it, nor stay."""
    error = refused("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1")
    assert error.evidence.endswith("the end")
    assert len(error.evidence) < 1000


@pytest.mark.parametrize("deaf", ["", "trap '' TERM;"])
def test_at_the_timeout_the_whole_group_is_ended(tmp_path: Path, deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TERM, and KILL for those that do not mind; the shell's children with it."""
    monkeypatch.setattr(hooks, "GRACE_S", 0.3)
    begun = time.monotonic()
    error = refused(
        f"{deaf} sh -c '{deaf} echo $$ > {tmp_path}/pid; echo waiting; sleep 60; sleep 60' & sleep 60; sleep 60", 0.7
    )
    assert time.monotonic() - begun < 5
    assert str(error) == "no end within 0.7 s; it was ended with all that it started"
    assert error.evidence == "waiting"
    child = int((tmp_path / "pid").read_text(encoding="ascii"))
    until = time.monotonic() + 2
    while alive(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(child)


def test_what_it_leaves_in_the_background_is_not_waited_for(tmp_path: Path) -> None:
    """A good end is an end, whoever still holds its output; and what was left goes on."""
    begun = time.monotonic()
    run(f"sleep 1.5 & echo $! > {tmp_path}/pid; exit 0")
    assert time.monotonic() - begun < 1
    assert alive(int((tmp_path / "pid").read_text(encoding="ascii")))


def test_a_hook_that_closes_its_output_is_waited_for_all_the_same(tmp_path: Path) -> None:
    """Its end counts, not its output's."""
    run(f"exec >&- 2>&-; sleep 0.3; : > {tmp_path}/done")
    assert (tmp_path / "done").exists()


def test_how_long_it_has_taken_is_told() -> None:
    """The one who waits can say so."""
    said: list[float] = []
    run_hook(Hook(command="sleep 0.3", timeout=5, facts={}), Controller(environ=PATH), said.append)
    assert said == sorted(said)
    assert said[-1] > 0.2


def test_no_secret_is_in_a_hooks_environment() -> None:
    """By name, by look, by source, and by what this run has read; what an ssh of the hook needs stays."""
    environ = {
        "PATH": "/bin",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "HF_TOKEN": "x",
        "HUGGING_FACE_HUB_TOKEN": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "MY_VAULT": "x",
        "NOTE": f"see {TOKEN}",
        "PROXY": "http://me:pass@proxy:3128",
        "OTHER": "has odd-text-of-a-file in it",
    }
    environ |= dict.fromkeys(("SSHPASS", "ANSIBLE_BECOME_PASS", "DB_PASS_2", "RESTIC_PASSPHRASE", "MYSQL_PWD"), "x")
    environ |= {"PWD": "/here", "OLDPWD": "/"}
    kept = without_secrets(environ, ["MY_VAULT"], [Secret("odd-text-of-a-file"), Secret("")])
    assert kept == {"PATH": "/bin", "SSH_AUTH_SOCK": "/tmp/agent", "PWD": "/here", "OLDPWD": "/"}

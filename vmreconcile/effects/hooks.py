"""A hook: a person's command on this controller, in a session of its own, bounded in time and in what is kept of it.

A Ctrl-C at the terminal does not reach it; at its timeout its whole process group is ended. Decides nothing.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from vmreconcile.errors import Diagnostic, Severity
from vmreconcile.model.document import Document, Path
from vmreconcile.model.launch import TOKEN_VARIABLES
from vmreconcile.model.secret import Secret
from vmreconcile.model.showing import SECRET_NAME, holds_token, masked, shown, without_escapes
from vmreconcile.model.values import JsonValue

SHELL = "/bin/sh"
LOOK_S = 0.1
GRACE_S = 3.0
"""Between TERM and KILL at the timeout, in seconds."""

KEPT = 1 << 16
"""Bytes of its output that are kept: the last ones."""

LONGEST_SECRET = 4096
"""Letters of an output that was cut which may be the end of a secret."""

CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
"""What no terminal shows, in the midst of a secret or elsewhere."""

LINES = 3
LONGEST_LINE = 300

PASS_NAME = re.compile(r"PASS$|(?:^|_)PASS_|PASSPHRASE|.+_PWD$", re.IGNORECASE)
"""Names of variables that are secret on a controller, though on no host: SSHPASS, MYSQL_PWD; not PWD itself."""

NO_SECRETS = frozenset({"SSH_AUTH_SOCK"})
"""Variables that only sound secret: where the person's SSH agent listens, which a hook that uses ssh needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """What to run: text for a shell, or words as they are; for at most `timeout` seconds, with `facts` as variables."""

    command: tuple[str, ...] | str
    timeout: float
    facts: Mapping[str, str]

    @property
    def words(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return (SHELL, "-c", self.command) if isinstance(self.command, str) else self.command


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """What hooks are run in: the environment of the person, without secrets; and how each host is reached.

    `secrets` are what this run has read, to be looked for in what a hook prints.
    """

    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    addresses: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[Secret, ...] = ()


class HookError(Exception):
    """A hook that failed: `evidence` are the last lines that it printed, on one line, without anything secret."""

    def __init__(self, why: str, evidence: str = "") -> None:
        """Keep both."""
        super().__init__(why)
        self.evidence = evidence


def without_secrets(
    environ: Mapping[str, str], names: Iterable[str] = (), secrets: Iterable[Secret] = ()
) -> dict[str, str]:
    """The variables that a hook may have: no token, nothing whose name or value looks secret, none of `names`.

    Nor any that holds one of `secrets`, whatever it is called.
    """
    hidden = {*names, *TOKEN_VARIABLES}
    known = [secret.reveal() for secret in secrets if secret]
    return {
        name: value
        for name, value in environ.items()
        if name in NO_SECRETS
        or not (
            name in hidden
            or SECRET_NAME.search(name)
            or PASS_NAME.search(name)
            or holds_token(value)
            or masked(value) != value
            or any(text in value for text in known)
        )
    }


def missing_programs(documents: Iterable[Document]) -> tuple[Diagnostic, ...]:
    """A warning for each hook that is a list of words whose program is not found on this controller.

    Text is left to the shell. What overrides say is looked at, too.
    """
    return tuple(
        Diagnostic(
            place=document.place(*path),
            code="hook-program-missing",
            summary=f"{'.'.join(map(str, path[-2:]))} runs {shown(command[0])}, which is not found here.",
            why="Hooks run on the controller, in the folder of the command.",
            remedy="Give the program's whole path, or put it on PATH of the controller that applies.",
            severity=Severity.WARNING,
        )
        for document in documents
        for path, command in _lists(document)
        if shutil.which(str(command[0])) is None
    )


def _lists(document: Document) -> Iterator[tuple[Path, list[JsonValue]]]:
    """The hooks of a document that are lists of words, each with its place."""
    overrides = document.get("overrides")
    keys = overrides if isinstance(overrides, dict) else {}
    for above in ((), *(("overrides", key) for key in keys)):
        for name in ("before_stop", "after_ready"):
            command = document.get(*above, "hooks", name)
            if isinstance(command, list) and command:
                yield (*above, "hooks", name), command


def run_hook(hook: Hook, around: Controller, tell: Callable[[float], None]) -> None:
    """Run a hook to its end; `tell` hears now and then how many seconds it has taken.

    What it leaves running in the background after a good end is left alone, and not waited for.

    Raises:
        HookError: it cannot be started, ends with another status than 0, or takes longer than its timeout.
    """
    try:
        running = subprocess.Popen(  # noqa: S603 - the command that the user wrote
            hook.words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**around.environ, **hook.facts},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise HookError(f"{hook.words[0]}: {why.lower()}") from None
    watched = _Watched(running)
    begun, ended = time.monotonic(), False
    try:
        while not ended and time.monotonic() - begun < hook.timeout:
            watched.read(LOOK_S)
            ended = _has_ended(running)
            tell(time.monotonic() - begun)
        if not ended:
            _end_group(running, watched)
        watched.read(0.0)
    finally:
        watched.close()
        gone = _has_ended(running)
        if gone:
            running.wait()
        else:
            running.returncode = -signal.SIGKILL  # left to itself: nobody waits for it any more
    evidence = _said(watched, around.secrets)
    if not ended:
        how = "it was ended with all that it started" if gone else f"pid {running.pid} of it cannot be ended from here"
        raise HookError(f"no end within {hook.timeout:g} s; {how}", evidence)
    if running.returncode:
        status = running.returncode
        how = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
        raise HookError(how, evidence)


class _Watched:
    """The output of a running program, of which the end is kept."""

    def __init__(self, running: subprocess.Popen[bytes]) -> None:
        self.kept = b""
        self.cut = False
        self.over = False
        self._stream = running.stdout
        self._number = running.stdout.fileno() if running.stdout else -1
        os.set_blocking(self._number, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._number, selectors.EVENT_READ)

    def read(self, seconds: float) -> None:
        """Take what is there, waiting for it so long at most; a closed pipe waits, too."""
        if self.over:
            time.sleep(seconds)
            return
        wait = seconds
        while self._selector.select(wait):
            block = os.read(self._number, KEPT)
            self.cut = self.cut or len(self.kept) + len(block) > KEPT
            self.kept = (self.kept + block)[-KEPT:]
            if not block:
                self.over = True
                return
            if seconds:
                return
            wait = 0.0

    def close(self) -> None:
        """Look no more."""
        self._selector.close()
        if self._stream:
            self._stream.close()


def _has_ended(running: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended; it is not reaped yet, so that its number, which is its group's, stays its own."""
    try:
        return os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # whoever started us has children's ends ignored: the kernel keeps no zombie
        return True


def _end_group(running: subprocess.Popen[bytes], watched: _Watched) -> None:
    """TERM to the whole group, KILL to what is left of it: while something holds its output, something is left."""
    for number, seconds in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, number)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (watched.over and _has_ended(running)):
            watched.read(LOOK_S)


def _said(watched: _Watched, secrets: Iterable[Secret]) -> str:
    """The last lines of an output on one line, without anything that is or looks like a token.

    Nor half of one: where the output was cut, its beginning is left out.
    """
    text = CONTROL.sub("", without_escapes(watched.kept.decode("utf-8", "replace")))
    for secret in secrets:
        if secret:
            text = text.replace(secret.reveal(), "***")
    text = masked(text)[LONGEST_SECRET if watched.cut else 0 :]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = re.sub(r"\s+", " ", " / ".join(line[:LONGEST_LINE] for line in lines[-LINES:]))
    return "".join(letter if letter.isprintable() else "?" for letter in said)

"""The request `fetch`: a model's files into the host's cache, by the Hub's own client in vLLM's environment.

Goes on only as long as the controller listens: files that came stay, and the next fetch asks for the others.
"""

from __future__ import annotations

import os
import select
import time

from . import command, jsontext, masks, survey, versions
from .fetch_program import PREFIX, PROGRAM
from .folders import Folders, is_slug
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, Callable

    from .frames import Channel
else:
    import _signal  # the signal module loads enum, 6 ms

LOOK_S = 0.5
TELL_S = 2.0
PATIENCE_S = 60.0  # until the Hub has said how large the model is
LONGEST = 1 << 20


def fetch(request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]) -> dict[str, Any]:
    """Fetch, telling `at` every two seconds; the last answer is `done`.

    Raises:
        Problem: `bad-request`, `not-found` (no vLLM, no interpreter of its own), or `fetch-…` with the program's kind.
    """
    slug, model = request.get("slug"), request.get("model")
    env, secrets = request.get("env") or {}, request.get("secrets") or {}
    texts = [model, request.get("revision", ""), request.get("executable", ""), request.get("load_format", "")]
    good = is_slug(slug) and model and isinstance(env, dict) and isinstance(secrets, dict)
    if not good or not all(isinstance(text, str) for text in texts):
        raise Problem("bad-request", "fetch needs slug, model, executable and env")
    python = _python(str(request.get("executable", "")), folders)
    kept = survey.Survey(folders).environment(str(slug))[0]
    named = request.get("token")
    token = "" if named is None else str(secrets.get(named) or kept.get(survey.TOKEN, ""))
    spec = {
        "model": model,
        "revision": request.get("revision", ""),
        "load_format": request.get("load_format", ""),
        "env": {str(name): str(value) for name, value in env.items()},
        "token": token,
    }
    child = _Child(python, folders)
    try:
        child.tell(spec)
        return _follow(child, channel, progress, token)
    finally:
        child.end()


def _python(asked: str, folders: Folders) -> str:
    """The interpreter that vLLM runs under.

    Raises:
        Problem: `not-found`.
    """
    executable = versions.find(asked, folders.home)
    if not executable:
        raise Problem("not-found", "{}: no such executable file".format(asked or "vllm"), asked)
    with open(executable, encoding="utf-8", errors="replace") as file:
        named = versions.interpreter(file.read(4096))
    found = versions.find(named, folders.home) if named else ""
    if not found:
        raise Problem("not-found", executable + ": names no interpreter", executable)
    return found


class _Child:
    """The program at work: its standard input, its words, its end."""

    def __init__(self, python: str, folders: Folders) -> None:
        """Start it with a plain environment; what it needs to know follows on its standard input."""
        inside, self.sink = os.pipe()
        self.source, outside = os.pipe()
        env = {"PATH": command.environment()["PATH"], "HOME": folders.home, "USER": folders.user, "LANG": "C.UTF-8"}
        actions = [(os.POSIX_SPAWN_DUP2, fd, at) for fd, at in ((inside, 0), (outside, 1), (outside, 2))]
        defaults = [_signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE]
        try:
            argv = [python, "-c", PROGRAM]
            self.pid = os.posix_spawn(python, argv, env, file_actions=actions, setsigdef=defaults)
        finally:
            os.close(inside)
            os.close(outside)

    def tell(self, spec: dict[str, Any]) -> None:
        """Send the one line."""
        data = (jsontext.dumps(spec) + "\n").encode("ascii")
        try:
            while data:
                data = data[os.write(self.sink, data) :]
        except BrokenPipeError:
            pass  # it ended at once; what it said tells why

    def end(self) -> None:
        """Let its standard input end, which ends it, and wait; what does not go is killed."""
        os.close(self.sink)
        until = time.monotonic() + 5.0
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.kill(self.pid, _signal.SIGKILL)  # our own child, not yet waited for
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.02)
        os.close(self.source)


class _Words:
    """What the program says, line by line: its last event, and its last line that is none."""

    def __init__(self) -> None:
        """Nothing so far."""
        self.last: dict[str, Any] = {}
        self.noise = ""
        self._held = b""

    def take(self, data: bytes, progress: Callable[..., None]) -> None:
        """Take what was read; the size of the whole is told on at once."""
        *lines, self._held = (self._held + data)[-LONGEST:].split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            if not text.startswith(PREFIX):
                self.noise = text.strip() or self.noise
                continue
            self.last = jsontext.loads(text[len(PREFIX) :])
            if self.last.get("event") == "size":
                progress(**self.last)

    def outcome(self, token: str) -> dict[str, Any]:
        """The last word as an answer.

        Raises:
            Problem: the program failed.
        """
        if self.last.get("event") == "done":
            return {name: self.last.get(name) for name in ("fetched", "total", "path")}
        said = str(self.last.get("message") or self.noise or "the fetching program ended without a word")
        said = masks.mask_text(said.replace(token, masks.STARS) if token else said)
        raise Problem("fetch-" + str(self.last.get("kind") or "failed").replace("_", "-"), said)


def _follow(child: _Child, channel: Channel, progress: Callable[..., None], token: str) -> dict[str, Any]:
    """Pass on what the program says, until it is done, failed, or nobody listens.

    Raises:
        Problem: it failed, the Hub says nothing, or the controller is gone.
    """
    poll = select.poll()
    poll.register(child.source, select.POLLIN | select.POLLHUP)
    words = _Words()
    begun = told = time.monotonic()
    while True:
        if channel.interrupted(0):
            raise Problem("interrupted", "the controller has gone away; what was fetched stays")
        if poll.poll(LOOK_S * 1000):
            data = os.read(child.source, 1 << 16)
            if not data:
                return words.outcome(token)
            words.take(data, progress)
        now = time.monotonic()
        if not words.last and now - begun > PATIENCE_S:
            raise Problem("fetch-hub-unreachable", "the Hub gave no whole answer within {:g} s".format(PATIENCE_S))
        if now - told >= TELL_S:
            told = now
            progress(**(words.last if words.last.get("event") == "at" else {"event": "at", "done": 0, "total": 0}))

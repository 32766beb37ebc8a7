"""Runs one server, simulated or real, for a test, and looks at it from outside: HTTP, `/proc`, log, exit code.

Owns every process it starts: leaving the `with` kills the whole session. Must not know which of the two it runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of a server's session; `words` is its command line without empty words."""

    pid: int
    parent: int
    group: int
    session: int
    comm: str
    words: tuple[str, ...]

    @property
    def title(self) -> str:
        """The first word, which is the title of a process that has one."""
        return self.words[0] if self.words else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back over HTTP."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> dict[str, object]:
        """The body as JSON."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


@dataclass(slots=True, kw_only=True)
class Server:
    """A started server."""

    popen: subprocess.Popen[bytes]
    port: int
    log_path: Path

    @property
    def pid(self) -> int:
        """The root's pid, which is also its session and group."""
        return self.popen.pid

    def log(self) -> str:
        """Everything it has written to standard output and standard error."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def ask(self, path: str, body: object = None, *, key: str = "", timeout: float = 20.0) -> Answer:
        """Send one request: POST with a body, else GET.

        Raises:
            OSError: there was no answer.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Answer(status=response.status, body=response.read(), headers=dict(response.headers))
        except urllib.error.HTTPError as refused:
            with refused:
                return Answer(status=refused.code, body=refused.read(), headers=dict(refused.headers))

    def wait_ready(self, timeout: float) -> None:
        """Wait until `/health` answers 200."""
        self.wait_until(self._healthy, timeout, "not ready")

    def wait_until(self, true: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until the callable `true` holds; the failure shows the log's end."""
        ends = time.monotonic() + timeout
        while not true():
            tail = self.log()[-3000:]
            assert time.monotonic() < ends, f"{what} after {timeout} s:\n{tail}"
            time.sleep(POLL_SECONDS)

    def wait_for_log(self, text: str, timeout: float) -> None:
        """Wait until `text` stands in the log."""
        self.wait_until(lambda: text in self.log(), timeout, f"{text!r} not logged")

    def end(self, timeout: float) -> int:
        """Wait for the root's end; return its exit code, negative for a signal."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s:\n{self.log()[-3000:]}") from None

    def processes(self) -> list[Process]:
        """Every living process of the session, by pid."""
        return session_of(self.pid)

    def engines(self) -> list[Process]:
        """The engine processes."""
        return [process for process in self.processes() if process.title.startswith("VLLM::EngineCore")]

    def _healthy(self) -> bool:
        """Whether `/health` says 200; an end of the root is a failure at once."""
        assert self.popen.poll() is None, f"ended with {self.popen.returncode}:\n{self.log()[-3000:]}"
        try:
            return self.ask("/health", timeout=5.0).status == 200
        except OSError:
            return False


@contextlib.contextmanager
def running(
    vllm: Path, model: str, log_path: Path, *words: str, env: Mapping[str, str] | None = None, port: int = 0
) -> Iterator[Server]:
    """Start `vllm serve MODEL WORDS` on a free loopback port in a session of its own; kill what is left of it after."""
    port = port or free_port()
    argv = [str(vllm), "serve", model, "--host", "127.0.0.1", "--port", str(port), *words]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "HF_", "PYTHON"))}
    with log_path.open("wb") as log:
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean | dict(env or {}),
            cwd=log_path.parent,
            start_new_session=True,
        )
    try:
        yield Server(popen=popen, port=port, log_path=log_path)
    finally:
        for process in session_of(popen.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        popen.wait()


def session_of(session: int) -> list[Process]:
    """Every process of a session that is no zombie, by pid."""
    found = [process for process in map(_read_process, _pids()) if process is not None]
    return sorted((process for process in found if process.session == session), key=lambda process: process.pid)


def environment_of(pid: int) -> dict[str, str]:
    """What `/proc/PID/environ` shows."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (word.decode(errors="replace").partition("=") for word in words if word)
    return {name: value for name, _, value in pairs}


def free_port() -> int:
    """A loopback port that nobody holds right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def _pids() -> list[int]:
    """Every pid there is."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _read_process(pid: int) -> Process | None:
    """Read one process; None for one that is gone, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    comm, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] in {"Z", "X"}:
        return None
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        comm=comm,
        words=tuple(word.decode(errors="replace") for word in words if word),
    )

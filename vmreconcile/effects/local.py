"""A command on the controller itself, for `ansible_connection: local`. Knows nothing of what is said over it."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from vmreconcile.effects.transport import STDERR_KEPT, TransportOptions
from vmreconcile.errors import UnreachableError

CHUNK = 262144
KEPT_NAMES = frozenset(
    {
        "DBUS_SESSION_BUS_ADDRESS",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TMPDIR",
        "TZ",
        "USER",
    }
)
KEPT_PREFIXES = ("LC_", "XDG_")


class LocalChannel:
    """A process of its own session, so that Ctrl-C at the terminal does not end the agent in the middle of a step."""

    def __init__(self, argv: Sequence[str], options: TransportOptions) -> None:
        """Start `argv`.

        Raises:
            OSError: where it cannot be started.
        """
        self._stderr = bytearray()
        self._process = subprocess.Popen(  # noqa: S603 - an argv of our own making, no shell
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=login_environment(options),
            start_new_session=True,
        )
        self._selector = selectors.DefaultSelector()
        for stream in (self._process.stdout, self._process.stderr):
            self._selector.register(_opened(stream), selectors.EVENT_READ)

    @property
    def stderr(self) -> bytes:
        """What came on standard error so far."""
        return bytes(self._stderr)

    def send(self, data: bytes) -> None:
        """Write all of `data` to standard input."""
        stream = _opened(self._process.stdin)
        view = memoryview(data)
        while view:
            view = view[stream.write(view) :]

    def receive(self, timeout: float) -> bytes:
        """Wait for standard output; b"" is its end."""
        deadline = time.monotonic() + timeout
        while events := self._selector.select(max(0.0, deadline - time.monotonic())):
            for key, _ in events:
                data = os.read(key.fd, CHUNK)
                if key.fileobj is self._process.stderr:
                    self._keep(data)
                    continue
                if not data:
                    self._drain_stderr()
                return data
        raise TimeoutError

    def exit_status(self, timeout: float) -> int | None:
        """Wait for the process's end; a signal shows as its negative number."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self, *, wait: float) -> None:
        """End standard input and reap the process; one that goes on (a step under way) is reaped when it ends."""
        with contextlib.suppress(OSError):
            _opened(self._process.stdin).close()
        if self.exit_status(max(wait, 0.1)) is None:
            threading.Thread(target=self._process.wait, daemon=True).start()
        self._selector.close()
        _opened(self._process.stdout).close()
        _opened(self._process.stderr).close()

    def _keep(self, data: bytes) -> None:
        if not data:
            self._selector.unregister(_opened(self._process.stderr))
        self._stderr += data[: STDERR_KEPT - len(self._stderr)]

    def _drain_stderr(self) -> None:
        """Read what is left of standard error once standard output has ended; a child may hold it open for longer."""
        stream = _opened(self._process.stderr)
        with contextlib.suppress(KeyError):
            self._selector.unregister(_opened(self._process.stdout))
        while stream in self._selector.get_map() and self._selector.select(0.2):
            self._keep(os.read(stream.fileno(), CHUNK))


def start_local(line: str, options: TransportOptions) -> LocalChannel:
    """Run a shell line on the controller.

    Raises:
        UnreachableError: where not even a shell can be started.
    """
    try:
        return LocalChannel(("/bin/sh", "-c", line), options)
    except OSError as error:
        raise UnreachableError(f"cannot start a shell here ({error.strerror})") from None


def login_environment(options: TransportOptions) -> dict[str, str]:
    """The environment of a fresh login: nothing else of ours (tokens above all) reaches the agent or vLLM."""
    kept: Mapping[str, str] = {
        name: value for name, value in options.environ.items() if name in KEPT_NAMES or name.startswith(KEPT_PREFIXES)
    }
    return {**kept, "HOME": str(options.home)}


def _opened(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - all three are pipes
    return stream

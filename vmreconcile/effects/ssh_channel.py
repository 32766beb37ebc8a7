"""A command on a host over SSH, as a `transport.Channel`. Opens no connection."""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING

from vmreconcile.effects.transport import STDERR_KEPT

if TYPE_CHECKING:
    from collections.abc import Callable

    import paramiko

CHUNK = 262144


class SshChannel:
    """Wraps a paramiko channel on which a command was started.

    Standard output and standard error share one window, so both are read whenever there is something: a host that
    writes much to standard error would else stop.
    """

    def __init__(self, channel: paramiko.Channel, hang_up: Callable[[], None]) -> None:
        """Take the channel; `hang_up` closes the connection under it."""
        self._channel = channel
        self._hang_up = hang_up
        self._stderr = bytearray()
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)

    @property
    def stderr(self) -> bytes:
        """What came on standard error so far."""
        return bytes(self._stderr)

    def send(self, data: bytes) -> None:
        """Write all of `data` to standard input."""
        for start in range(0, len(data), CHUNK):
            self._channel.sendall(data[start : start + CHUNK])

    def receive(self, timeout: float) -> bytes:
        """Wait for standard output; b"" is its end."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self._channel.eof_received or self._channel.closed
            while self._channel.recv_stderr_ready():
                self._stderr += self._channel.recv_stderr(CHUNK)[: STDERR_KEPT - len(self._stderr)]
            if self._channel.recv_ready():
                return self._channel.recv(CHUNK)
            if ended:
                return b""
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll.poll(left * 1000):
                raise TimeoutError

    def exit_status(self, timeout: float) -> int | None:
        """Wait for the command's end; None where the host did not say (killed, or the connection was lost)."""
        self._channel.status_event.wait(timeout)
        return None if self._channel.exit_status < 0 else self._channel.exit_status

    def close(self, *, wait: float) -> None:
        """End standard input, wait for the command's end, hang up."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()
            if wait:
                self._channel.status_event.wait(wait)
            self._channel.close()
        self._hang_up()

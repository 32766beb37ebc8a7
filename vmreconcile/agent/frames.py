"""The agent's end of the channel: request lines in, `VMRECONCILE/1 <json>` lines out. Interprets no request."""

from __future__ import annotations

import os
import select

from . import jsontext
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

MAGIC = b"VMRECONCILE/1 "
LINE_LIMIT = 1 << 26


class Channel:
    """Two file descriptors. A peer that has gone away never raises: what is under way is finished first."""

    def __init__(self, fd_in: int, fd_out: int, pending: bytes = b"") -> None:
        """Take the descriptors and what was already read from `fd_in`."""
        self.fd_in = fd_in
        self.fd_out = fd_out
        self.pending = pending
        self.ended = False
        self.lease = 0.0  # seconds of silence between requests after which `lapse` is called; 0: none
        self.lapse: Callable[[], None] | None = None

    def receive(self) -> Any:  # noqa: ANN401 - a request is any JSON until it is checked
        """Return the next request; None at the end of input.

        Raises:
            Problem: `bad-request` where the line is not JSON or too long.
        """
        while b"\n" not in self.pending:
            if len(self.pending) > LINE_LIMIT:
                self.pending, self.ended = b"", True
                raise Problem("bad-request", "a request line is longer than {} bytes".format(LINE_LIMIT))
            if self.ended or not self._read():
                return None
        line, _, self.pending = self.pending.partition(b"\n")
        if not line.strip():
            return self.receive()
        try:
            return jsontext.loads(line.decode("ascii"))
        except (ValueError, RecursionError):
            raise Problem("bad-request", "a request line is not JSON in ASCII") from None

    def _read(self) -> bool:
        """Read once; False at the end of input."""
        if self.lease and self.lapse and not self._heard(self.lease):
            self.lapse()
        try:
            data = os.read(self.fd_in, 1 << 16)
        except OSError:
            data = b""
        self.pending += data
        self.ended = not data
        return bool(data)

    def interrupted(self, seconds: float) -> bool:
        """Wait up to `seconds`; True as soon as the controller says something more or goes away."""
        if self.pending or self.ended:
            return True
        if self._heard(seconds):
            self._read()
            return True
        return False

    def _heard(self, seconds: float) -> bool:
        """Whether something, or the end, comes within `seconds`."""
        poll = select.poll()
        poll.register(self.fd_in, select.POLLIN | select.POLLHUP)
        return bool(poll.poll(seconds * 1000))

    def send(self, answer: dict[str, Any]) -> None:
        """Write one answer; a peer that is gone is not an error here."""
        data = MAGIC + jsontext.dumps(answer).encode("ascii") + b"\n"
        try:
            while data:
                data = data[os.write(self.fd_out, data) :]
        except OSError:
            self.ended = True

"""The seam between a session with the agent and the wire beneath it. Holds no SSH and starts nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

STDERR_KEPT = 65536
"""Bytes of standard error kept for diagnosis; what comes after them is read and dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """What holds for every host of a run.

    `connect_timeout` bounds reaching a host up to the end of the login, in seconds. `command_timeout` is the wait for
    an answer of the agent where a request names none. With `accept_new_host_keys` an unknown host key is recorded (a
    changed one is never accepted). `environ` and `home` are those of the person at the controller.
    """

    connect_timeout: float = 10.0
    command_timeout: float = 60.0
    accept_new_host_keys: bool = False
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    home: Path = field(default_factory=Path.home)


class Channel(Protocol):
    """A command that was started somewhere, with its standard streams."""

    @property
    def stderr(self) -> bytes:
        """What came on standard error so far, at most `STDERR_KEPT` bytes."""

    def send(self, data: bytes) -> None:
        """Write all of `data` to standard input; blocks while the other side does not read.

        Raises:
            OSError: where the other side is gone.
        """

    def receive(self, timeout: float) -> bytes:
        """Wait up to `timeout` seconds for standard output; b"" is its end. Standard error is read meanwhile.

        Raises:
            TimeoutError: where nothing came in time.
            OSError: where the connection broke.
        """

    def exit_status(self, timeout: float) -> int | None:
        """Wait up to `timeout` seconds for the command's end: its exit status, or None where it is not known."""

    def close(self, *, wait: float) -> None:
        """End standard input, wait up to `wait` seconds for the command, release everything. May be called twice."""

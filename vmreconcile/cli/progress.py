"""What `apply` says while it works: a live display on a terminal, plain lines elsewhere. Writes to standard error."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from vmreconcile.cli.output import lasting
from vmreconcile.cli.terminal import Style, printable
from vmreconcile.model.names import ServerId
from vmreconcile.model.outcome import Result, Status
from vmreconcile.model.plan import Change

if TYPE_CHECKING:
    from rich.status import Status as Spinner

PLAIN_EVERY_S = 15.0


class Progress:
    """Tells of each server's begin, wait and end; safe to call from several threads."""

    def __init__(self, style: Style, *, live: bool) -> None:
        """`live` shows what is waited for in one moving line."""
        self._style = style
        self._lock = threading.Lock()
        self._waiting: dict[ServerId, str] = {}
        self._said: dict[ServerId, float] = {}
        self._spinner = _spinner() if live else None

    def begins(self, change: Change) -> None:
        """Say that a change's steps are sent."""
        self._line(f"{change.server}: {change.action.value} ({change.reason.value})")

    def waits(self, server: ServerId, seconds: float, line: str) -> None:
        """Show what is waited for; plain lines come every 15 seconds."""
        with self._lock:
            self._waiting[server] = f"{server} {seconds:.0f} s: {printable(line)}"
            if self._spinner:
                with lasting(sys.stderr):
                    from rich.markup import escape  # noqa: PLC0415 - rich is there already

                    self._spinner.update(escape("; ".join(self._waiting[name] for name in sorted(self._waiting))))
                    self._spinner.start()
                return
        now = time.monotonic()
        if now - self._said.setdefault(server, now) >= PLAIN_EVERY_S:
            self._said[server] = now
            self._line(f"{server}: waiting, {seconds:.0f} s so far ({printable(line)})")

    def says(self, server: ServerId, line: str) -> None:
        """Say it at once, whatever is waited for."""
        self._line(f"{server}: {printable(line)}")

    def rests(self, server: ServerId) -> None:
        """A server is no longer waited for."""
        with self._lock:
            self._waiting.pop(server, None)
            if self._spinner and not self._waiting:
                with lasting(sys.stderr):
                    self._spinner.stop()

    def ends(self, result: Result) -> None:
        """Say how a server ended; one that was in order is not mentioned."""
        self.rests(result.server)
        if result.status is Status.OK:
            return
        color = "green" if result.status is Status.CHANGED else "red"
        self._line(f"{result.server}: {self._style.paint(result.status.value, color)} ({result.seconds:.1f} s)")

    def queues(self, host: str, holder: str) -> None:
        """Say who holds a host that is waited for."""
        self._line(f"{host}: waiting for its lock, held by {printable(holder)}")

    def interrupted(self) -> None:
        """Say what the first Ctrl-C does."""
        self._line("interrupted: steps under way are finished, nothing more begins (again: leave at once)")

    def close(self) -> None:
        """Take the live line away."""
        if self._spinner:
            with lasting(sys.stderr):
                self._spinner.stop()

    def _line(self, text: str) -> None:
        with self._lock, lasting(sys.stderr):
            print(text, file=sys.stderr, flush=True)


def _spinner() -> Spinner:
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs rich, and it takes 60 ms to import

    return Console(stderr=True).status("", spinner="line")

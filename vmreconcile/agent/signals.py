"""Signalling a process that is proven to be the one meant: pinned by a pidfd where the kernel and Python have them.

Owns no judgement (see `classify`); only makes sure that a signal reaches what was judged, and nothing that came later.
"""

from __future__ import annotations

import os
import select
import time

from . import proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Callable, Iterable
else:
    import _signal  # the signal module loads enum, 6 ms

TERM, KILL = _signal.SIGTERM, _signal.SIGKILL
STEP = 0.05  # seconds between looks, where the kernel cannot wake us


class Pinned:
    """One process, by pid and start time. Once pinned, its number cannot come to mean another process."""

    def __init__(self, pid: int, start_ticks: int) -> None:
        """Open a pidfd first and compare the start time afterwards, so that what was compared is what is pinned."""
        self.pid = pid
        self.start_ticks = start_ticks
        self.fd = -1
        opener: Callable[[int], int] | None = getattr(os, "pidfd_open", None)
        if opener is not None and hasattr(_signal, "pidfd_send_signal") and pid > 1:
            try:
                self.fd = opener(pid)
            except OSError:
                self.fd = -1  # gone, or a kernel before 5.3: `alive` tells

    def alive(self) -> bool:
        """Whether this very process still runs."""
        seen = proc.stat(self.pid) if self.pid > 1 and self.pid != os.getpid() else None
        return seen is not None and seen.start_ticks == self.start_ticks and not seen.gone

    def signal(self, number: int) -> bool:
        """Send a signal; False where the process is gone, or is another by now."""
        if not self.alive():
            return False
        try:
            if self.fd >= 0:
                _signal.pidfd_send_signal(self.fd, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let the pidfd go."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def wait(pinned: Iterable[Pinned], seconds: float) -> list[Pinned]:
    """Wait until all have ended, `seconds` at most; return those that have not."""
    until = time.monotonic() + max(seconds, 0.0)
    left = [process for process in pinned if process.alive()]
    while left and time.monotonic() < until:
        remaining = until - time.monotonic()
        if all(process.fd >= 0 for process in left):
            poll = select.poll()
            for process in left:
                poll.register(process.fd, select.POLLIN)
            poll.poll(max(remaining, 0.001) * 1000)
        else:
            time.sleep(min(STEP, max(remaining, 0.001)))
        left = [process for process in left if process.alive()]
    return left


def send(pinned: Iterable[Pinned], number: int) -> bool:
    """Signal each; whether any was there to be signalled."""
    reached = [process.signal(number) for process in pinned]
    return any(reached)


def close(pinned: Iterable[Pinned]) -> None:
    """Let all pidfds go."""
    for process in pinned:
        process.close()

"""A person's own program, run for what it prints: bounded in time and size, and ended with what it started.

It stays in our process group and session: programs that keep secrets ask at the terminal.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.05


class Endless(Exception):  # noqa: N818 - says what it would not stop doing
    """The program ran too long, or printed too much; it and its children were ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended: its status (negative: by that signal) and what it printed."""

    status: int
    out: bytes
    err: bytes


def run(words: Sequence[str], environ: Mapping[str, str], seconds: float, limit: int) -> Ended:
    """Run a program until it exits; what it leaves running in the background is not waited for.

    Raises:
        Endless: it did not exit within `seconds`, or printed more than `limit` bytes.
        OSError: it cannot be started.
    """
    with subprocess.Popen(  # noqa: S603 - the program that the user names, and no shell
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environ)
    ) as running:
        try:
            return _followed(running, seconds, limit)
        finally:
            _end(running)


def _followed(running: subprocess.Popen[bytes], seconds: float, limit: int) -> Ended:
    """Read what it prints while it runs, and then what is left in the pipes.

    Raises:
        Endless: as above.
    """
    printed: dict[int, bytes] = {}
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for stream in (running.stdout, running.stderr):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
                printed[stream.fileno()] = b""
        out, err = printed
        while True:
            over = running.poll() is not None
            ready = selector.select(0 if over else LOOK_S) if selector.get_map() else []
            for key, _ in ready:
                block = os.read(key.fd, 1 << 16)
                printed[key.fd] = (printed[key.fd] + block)[-limit - 1 :]
                if not block:
                    selector.unregister(key.fileobj)
            if len(printed[out]) > limit:
                raise Endless(f"it prints more than {limit} bytes")
            if over and not ready:
                return Ended(status=running.returncode, out=printed[out], err=printed[err])
            if not over and time.monotonic() > deadline:
                raise Endless(f"no end within {seconds:g} s")
            if not over and not selector.get_map():
                time.sleep(LOOK_S)


def _end(running: subprocess.Popen[bytes]) -> None:
    """End it where it still runs, and its children, which are known only as long as it is there.

    Each is pinned first and looked for again then, so that no number that was given anew is signalled.
    """
    if running.poll() is not None:
        return
    pinned: dict[int, int] = {}
    for pid in _children(running.pid):
        with suppress(OSError):
            pinned[pid] = os.pidfd_open(pid)
    still = frozenset(_children(running.pid))
    running.kill()
    for pid, handle in pinned.items():
        with suppress(OSError):
            if pid in still:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)


def _children(pid: int) -> list[int]:
    """Children, and theirs, where /proc tells; each was started by the program that was started here."""
    found: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in path.read_text(encoding="ascii").split():
                found += [*_children(int(child)), int(child)]
    return found

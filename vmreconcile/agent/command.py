"""Running a program of the host (systemctl, journalctl, nvidia-smi) with a time limit; `subprocess` loads in 10 ms.

Knows no program. Arguments are lists; no shell is ever involved.
"""

from __future__ import annotations

import os
import select
import time

from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Mapping, Sequence
else:
    import _signal  # the signal module loads enum, 6 ms

OUTPUT_LIMIT = 1 << 24


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """A plain environment for the host's programs: their words in English, no pager, nothing of the login's."""
    plain = {
        "PATH": os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "SYSTEMD_COLORS": "0",
        "SYSTEMD_PAGER": "cat",
        "HOME": os.environ.get("HOME", "/"),
    }
    plain.update(extra or {})
    return plain


def start(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, int]:
    """Start a program whose standard output and error we read: (pid, descriptor).

    Raises:
        Problem: `not-found` where there is no such program.
    """
    source, sink = os.pipe()
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, sink, 1),
        (os.POSIX_SPAWN_DUP2, sink, 2),
    ]
    defaults = [_signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE]
    try:
        for folder in env["PATH"].split(":"):
            program = folder + "/" + argv[0]
            if folder and os.access(program, os.X_OK):
                return os.posix_spawn(program, list(argv), env, file_actions=actions, setsigdef=defaults), source
        os.close(source)
        raise Problem("not-found", "{}: no such program on this host".format(argv[0]))
    finally:
        os.close(sink)


def run(argv: Sequence[str], timeout: float = 30.0, extra: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a program to its end: (exit status, what it said). A negative status is the signal that ended it.

    Raises:
        Problem: `not-found`, or `timeout` after `timeout` seconds, the program then being ended.
    """
    pid, source = start(argv, environment(extra))
    until = time.monotonic() + timeout
    chunks: list[bytes] = []
    poll = select.poll()
    poll.register(source, select.POLLIN | select.POLLHUP)
    try:
        while sum(map(len, chunks)) < OUTPUT_LIMIT:
            left = until - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                end(pid)
                raise Problem("timeout", "{} did not answer within {:g} s".format(" ".join(argv[:3]), timeout))
            data = os.read(source, 1 << 16)
            if not data:
                break
            chunks.append(data)
    finally:
        os.close(source)
    status = os.waitpid(pid, 0)[1]
    code = -(status & 127) if status & 127 else status >> 8
    return code, b"".join(chunks).decode("utf-8", "backslashreplace")


def end(pid: int) -> None:
    """End a program that we started ourselves and have not yet waited for (its pid can be nobody else's)."""
    os.kill(pid, 9)
    os.waitpid(pid, 0)

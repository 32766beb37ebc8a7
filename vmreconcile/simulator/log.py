"""vLLM's log lines: `(Proc pid=N) LEVEL MM-DD HH:MM:SS [file.py:line] text`, as version 0.32.0 writes them.

Owns the shape of a line and where it goes (standard output, unbuffered, one write a line). Must not decide what is
said.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Log:
    """The log of one process of the tree; `proc` is vLLM's name for it ('APIServer', 'EngineCore')."""

    proc: str

    def __call__(self, source: str, text: str, *, level: str = "INFO") -> None:
        """Write `text` line by line, each with its prefix; `source` is vLLM's `file.py:line`."""
        now = time.strftime("%m-%d %H:%M:%S")
        prefix = f"({self.proc} pid={os.getpid()}) {level} {now} [{source}] "
        write("".join(f"{prefix}{line}\n" for line in text.split("\n")))


def write(text: str) -> None:
    """Write raw text to standard output at once; a closed output is not an error, as a server outlives its reader."""
    _put(1, text)


def write_error(text: str) -> None:
    """Write raw text to standard error at once, where vLLM's tracebacks and uvicorn's own lines go."""
    _put(2, text)


def _put(descriptor: int, text: str) -> None:
    """Write everything to a file descriptor, past Python's buffers, so that forked children never repeat it."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        return


def die(code: int) -> NoReturn:
    """Leave at once with `code`, skipping interpreter teardown (quick, and no thread can hold it up)."""
    sys.stdout.flush()
    os._exit(code)

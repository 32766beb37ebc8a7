"""The form of a vLLM log: what stands before its lines, where a start begins, when it is ready. Explains nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

PREFIX = re.compile(r"^(?:\([^()]* pid=\d+\)\s?)?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?")
"""What vLLM puts before a line: '(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] '."""

BEGIN = re.compile(r"non-default args: |vLLM API server version |^usage: vllm\b")
"""A line that each start prints, and early; a log may hold several starts. A refused argument prints the usage."""

READY = "Application startup complete."
ACCESS = re.compile(r' - "[A-Z]+ /\S* HTTP/[\d.]+" \d{3}')
"""A line of uvicorn's access log, such as our own questions leave."""

SERVING = re.compile(rf"{re.escape(READY)}|{ACCESS.pattern}| Avg prompt throughput: ")
"""A line that only a server prints that is, or was, ready; what is left of a long log may hold no other sign."""

ERROR = re.compile(
    r"^(?:\[rank\d+\]:\s*)?(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Timeout|Terminated|NotFound)(?::\s|:?$)"
)
"""The line of a traceback that names its exception: "KeyError: 'x'", 'torch.OutOfMemoryError: CUDA out of …'."""


def bare(line: str) -> str:
    """A line without what vLLM puts before it."""
    return PREFIX.sub("", line, count=1)


def latest_start(lines: Sequence[str]) -> int:
    """The index of the line that begins the latest start; 0 where none does."""
    return next((number for number in range(len(lines) - 1, -1, -1) if BEGIN.search(lines[number])), 0)


def after_ready(lines: Sequence[str], start: int) -> int | None:
    """The index of the line after that by which the start at `start` was ready; None where it was not."""
    return next((number + 1 for number in range(start, len(lines)) if SERVING.search(lines[number])), None)


def is_logged(line: str) -> bool:
    """Whether a line went through vLLM's logger; what ends a process is printed without it."""
    found = PREFIX.match(line)
    return found is not None and "[" in found[0]

"""What vLLM measured at a start, as the ownership record may hold it: numbers and short texts of fixed names only.

Owns that form (docs/wire.md) and nothing else: the controller reads it back on every look at the host, so that it has
to stay small. With texts of this length it is always below 8 KiB.
"""

from __future__ import annotations

from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LONGEST = 200  # letters of a text
NUMBER = 1 << 62
FIGURES = ("beside", "graphs", "kv_bytes", "kv_tokens", "weights")
TEXTS = ("gpu", "key", "vllm_version")
NUMBERS = ("gpu_memory", "max_model_len", "utilization")
PARTS = ("figures", "predicted")


def check(measured: dict[str, Any]) -> None:
    """Look at a measurement before it is kept.

    Raises:
        Problem: `bad-request`, naming the part that has no place in a record.
    """
    _only(measured, (*TEXTS, *NUMBERS, *PARTS))
    for name in TEXTS:
        value = measured.get(name)
        if not isinstance(value, str) or len(value) > LONGEST or not value.isprintable():
            raise Problem("bad-request", "note-measured: {} is a short text".format(name))
    if not measured["key"] or set(measured["key"]) - set("0123456789abcdef"):
        raise Problem("bad-request", "note-measured: key has hexadecimal digits")
    _numbers(measured, NUMBERS)
    for part in PARTS:
        figures = measured.get(part)
        if isinstance(figures, dict):
            _only(figures, FIGURES)
            _numbers(figures, FIGURES)
        elif part == "figures" or figures is not None:
            raise Problem("bad-request", "note-measured: {} is an object".format(part))


def _only(found: dict[str, Any], names: tuple[str, ...]) -> None:
    """No name but these."""
    foreign = sorted(set(found) - set(names))
    if foreign:
        raise Problem("bad-request", "note-measured: {!r} has no place in it".format(foreign[0][:40]))


def _numbers(found: dict[str, Any], names: tuple[str, ...]) -> None:
    """Numbers under these names, or null."""
    for name in names:
        value = found.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < NUMBER
        if value is not None and not is_number:
            raise Problem("bad-request", "note-measured: {} is a number".format(name))

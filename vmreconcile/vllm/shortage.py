"""How much memory a start lacked, from the log of a start that failed for memory. Pure; says nothing of what to do.

Which class of failure it is, `signatures` knows; this reads the numbers that stand in such lines and before them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmreconcile.vllm.log import bare, latest_start
from vmreconcile.vllm.measured import figures_of
from vmreconcile.vllm.memory.sizes import GIB
from vmreconcile.vllm.signatures import signatures


class Lack(enum.StrEnum):
    """The classes of failure that are about memory of a GPU, as `signatures` calls them."""

    NO_KV = "no_kv_memory"
    KV_SMALL = "kv_too_small"
    USED = "gpu_already_used"
    MOVED = "memory_moved"
    FULL = "out_of_memory"


class Reached(enum.IntEnum):
    """How far a start came before it failed."""

    NOTHING = 0
    LOADED = 1
    """The weights are on the GPU; what is left was not measured yet."""
    MEASURED = 2
    """The KV cache was given its memory: what came later is its warming up and CUDA's graphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What a failed start says in numbers; bytes of one GPU, None for what it does not say.

    `left` is what the KV cache would get, below zero where even the rest does not fit; `needed` what it takes for one
    request, `length` the longest context that would fit into what is left. `free` is what vLLM found free at first.
    """

    lack: Lack
    reached: Reached = Reached.NOTHING
    left: int | None = None
    needed: int | None = None
    length: int | None = None
    free: int | None = None


def shortage_of(kind: str, lines: Sequence[str]) -> Shortage | None:
    """The shortage of a failure of class `kind`, None where that is not about memory of a GPU."""
    if kind not in {*Lack}:
        return None
    said, seen = _numbers(kind, lines), figures_of(lines, {})
    available = _bytes(said.get("available"))
    return Shortage(
        lack=Lack(kind),
        reached=Reached.MEASURED if seen.kv_bytes is not None else Reached(seen.weights is not None),
        left=seen.kv_bytes if available is None else available,
        needed=_bytes(said.get("needed")),
        length=_count(said.get("estimate")),
        free=_bytes(said.get("free")),
    )


def _numbers(kind: str, lines: Sequence[str]) -> Mapping[str, str | None]:
    """The named numbers of the first line of the latest start that shows this class."""
    patterns = [pattern for signature in signatures() if signature.kind == kind for pattern in signature.patterns]
    for line in lines[latest_start(lines) :]:
        for pattern in patterns:
            if match := pattern.search(bare(line)):
                return match.groupdict()
    return {}


def _bytes(gib: str | None) -> int | None:
    """GiB as vLLM writes them, in bytes."""
    try:
        return None if gib is None else round(float(gib) * GIB)
    except (ValueError, OverflowError):
        return None


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 16 else None

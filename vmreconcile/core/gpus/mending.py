"""With which numbers a start that failed for memory may be tried once more. Pure.

Works out what would do, whoever owns the numbers; whether they may be changed is for who asks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from vmreconcile.core.gpus.demand import LENGTH, MEASURED_AGAIN, SHARE, gib
from vmreconcile.core.gpus.rounding import STEP, down, shorter, up
from vmreconcile.model.gpus import Figures
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.sizes import GIB
from vmreconcile.vllm.shortage import Lack, Reached, Shortage

ONE_REQUEST = GIB
"""What the KV cache is given where nobody knows what one request takes."""

SPARE = GIB // 10
"""By how much less than what vLLM found free is asked for: other programs' memory moves a little."""

LOWEST = 0.6
"""Which part of a share must be left of it, where nobody knows what the model needs."""

BACK = 0.05
"""By how much a share is lowered for a start that ran out of memory beside its KV cache."""

SHORTER = 0.95
"""Which part of vLLM's estimate of a context is taken: two starts do not find exactly the same memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A start that failed, as it was tried, and what its GPUs can give. Bytes of the tightest of them.

    `room` is what a start may take for itself now, beside CUDA's context and what others are still to get. `least` is
    what the model takes at least, as far as anybody knows, and `floor` the least share that a tuning rule allows.
    """

    share: float
    total: int
    room: int
    least: Figures | None = None
    floor: float = 0.0

    @property
    def ceiling(self) -> float:
        """The largest share that there is room for."""
        return down(self.room / self.total)

    @property
    def kv(self) -> int | None:
        """What the KV cache is to have at least."""
        return self.least.kv_bytes if self.least else None

    def bears(self, share: float) -> bool:
        """Whether a smaller share may be tried: rules allow it, and it can be enough."""
        if share < self.floor - STEP / 2 or share <= 0:
            return False
        if self.least is None or self.least.beside is None or self.least.kv_bytes is None:
            return share >= LOWEST * self.share
        return share * self.total >= self.least.beside + self.least.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """Numbers to try instead, none where the same ones may do now; `why` for a person."""

    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    why: str = ""

    def __str__(self) -> str:
        """Render 'gpu_memory_utilization 0.26'."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items()) or "the same numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mends:
    """What may be tried, the best first, and what speaks against better ones."""

    ways: tuple[Mend, ...] = ()
    against: str = ""


def mends(shortage: Shortage, attempt: Attempt) -> Mends:
    """What would do for a start that failed for want of memory."""
    match shortage.lack:
        case Lack.NO_KV:
            return _more(attempt, shortage.left, attempt.kv or ONE_REQUEST)
        case Lack.KV_SMALL:
            return _more_or_shorter(shortage, attempt)
        case Lack.USED:
            return _less_than_free(shortage, attempt)
        case Lack.MOVED:
            return Mends(ways=(Mend(why="another program gave back memory while vLLM measured it"),))
        case Lack.FULL:
            return _a_little_less(shortage, attempt)
        case _:
            assert_never(shortage.lack)


def _more(attempt: Attempt, left: int | None, needed: int) -> Mends:
    """A share with which the KV cache gets what it needs."""
    if left is None or needed <= left:
        return Mends(against="its log does not tell how much is missing")
    missing = needed - left
    wanted = up(attempt.share + (missing + MEASURED_AGAIN) / attempt.total)
    told = f"{gib(max(0, left))} GiB were left for a KV cache that needs {gib(needed)}"
    if left < 0:
        told = f"{gib(-left)} GiB were missing, and the KV cache needs {gib(needed)}"
    if wanted <= attempt.ceiling:
        return Mends(ways=(Mend(settings={SHARE: wanted}, why=told),))
    there = f"there is room for {max(0.0, attempt.ceiling):g}"
    return Mends(against=f"{told}: {SHARE} {wanted:g} would do, {there}")


def _more_or_shorter(shortage: Shortage, attempt: Attempt) -> Mends:
    found = _more(attempt, shortage.left, max(shortage.needed or ONE_REQUEST, attempt.kv or 0))
    length = shorter(int((shortage.length or 0) * SHORTER))
    if not length:
        return found
    less = Mend(settings={LENGTH: length}, why=f"vLLM's estimate of what fits is {shortage.length}")
    return Mends(ways=(*found.ways, less), against=found.against)


def _less_than_free(shortage: Shortage, attempt: Attempt) -> Mends:
    """A share of what is free; the same one where that is enough by now."""
    if attempt.room >= math.ceil(attempt.share * attempt.total):
        return Mends(ways=(Mend(why="the memory that was held is free now"),))
    free = attempt.room if shortage.free is None else min(attempt.room, shortage.free - SPARE)
    return _smaller(attempt, down(free / attempt.total), f"{gib(max(0, free))} GiB are free for it")


def _a_little_less(shortage: Shortage, attempt: Attempt) -> Mends:
    """Less for the KV cache leaves more for what comes after it; before that, its size changes nothing."""
    if shortage.reached is Reached.NOTHING:
        return Mends(against="the weights alone found no room, whatever the KV cache gets")
    if shortage.reached is Reached.LOADED:
        return Mends(against="memory ran out before the KV cache got any, so another share changes nothing")
    return _smaller(attempt, round(attempt.share - BACK, 2), "memory ran out beside the KV cache")


def _smaller(attempt: Attempt, share: float, why: str) -> Mends:
    if attempt.bears(share):
        return Mends(ways=(Mend(settings={SHARE: share}, why=why),))
    return Mends(against=f"{why}: {SHARE} {max(0.0, share):g} would be too little")

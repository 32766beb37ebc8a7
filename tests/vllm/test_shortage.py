"""How much memory a start lacked, as its log says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmreconcile.vllm.shortage import Lack, Reached, Shortage, shortage_of
from vmreconcile.vllm.signatures import explain

LOGS = Path(__file__).parent / "logs"
GIB = 1 << 30


def read(name: str) -> Shortage | None:
    """The shortage of a recorded log."""
    lines = (LOGS / f"{name}.log").read_text().splitlines()
    found = explain(lines)
    assert found is not None
    return shortage_of(found.kind, lines)


def test_memory_that_others_hold() -> None:
    """What vLLM found free, of the recorded start beside 73.6 GiB of another process."""
    assert read("gpu_already_used") == Shortage(lack=Lack.USED, free=round(5.06 * GIB))


@pytest.mark.parametrize(
    ("name", "lack", "reached"),
    [
        ("memory_moved", Lack.MOVED, Reached.LOADED),
        ("out_of_memory", Lack.FULL, Reached.NOTHING),
        ("out_of_memory-warming_up", Lack.FULL, Reached.LOADED),
    ],
)
def test_how_far_it_came(name: str, lack: Lack, reached: Reached) -> None:
    """The recorded warming up was that of measuring, before the KV cache had its memory."""
    assert read(name) == Shortage(lack=lack, reached=reached)


def test_a_cache_that_is_too_small() -> None:
    """Every number of the line; the one that vLLM leaves out at times is left out."""
    text = (
        "ValueError: To serve at least one request with the model's max seq len (32768), (1.75 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (1.49 GiB)."
    )
    estimate = " Based on the available memory, the estimated maximum model length is 27856."
    before = ["non-default args: {}", "Model loading took 14.29 GiB memory and 9.3 seconds"]
    found = shortage_of("kv_too_small", [*before, "Available KV cache memory: 1.49 GiB", text + estimate])
    assert found == Shortage(
        lack=Lack.KV_SMALL,
        reached=Reached.MEASURED,
        left=round(1.49 * GIB),
        needed=round(1.75 * GIB),
        length=27856,
    )
    found = shortage_of("kv_too_small", [*before, text])
    assert found is not None
    assert (found.left, found.length) == (round(1.49 * GIB), None)


def test_what_was_missing_is_below_zero() -> None:
    """Of the latest start alone, and of the worker with the least."""
    earlier = [
        "non-default args: {}",
        "Available KV cache memory: 9.00 GiB",
        "No available memory for the cache blocks.",
    ]
    lines = [
        "non-default args: {}",
        "(Worker_TP0 pid=7) INFO 01-31 12:00:00 [gpu_worker.py:436] Available KV cache memory: -0.80 GiB",
        "(Worker_TP1 pid=8) INFO 01-31 12:00:00 [gpu_worker.py:436] Available KV cache memory: -0.88 GiB",
        "ValueError: No available memory for the cache blocks.",
    ]
    found = shortage_of("no_kv_memory", [*earlier, *lines])
    assert found is not None
    assert found.left == round(-0.88 * GIB)


def test_other_failures_have_none() -> None:
    """A gated model lacks no memory; a log without the words has no numbers."""
    assert shortage_of("gated", []) is None
    assert shortage_of("gpu_already_used", ["nothing"]) == Shortage(lack=Lack.USED)

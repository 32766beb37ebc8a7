"""With which numbers a failed start may be tried again: every class, and every refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmreconcile.core.gpus.mending import Attempt, Mend, Mends, mends
from vmreconcile.model.gpus import Figures
from vmreconcile.vllm.shortage import Lack, Reached, Shortage

GIB = 1 << 30
TOTAL = round(79.18 * GIB)
"""An H100, as CUDA names its memory."""


def attempt(share: float = 0.2, room: float = 78.0, **fields: object) -> Attempt:
    """A start with this share on a GPU that gives so many GiB."""
    tried = Attempt(share=share, total=TOTAL, room=round(room * GIB))
    return replace(tried, **fields)  # type: ignore[arg-type]  # fields of Attempt


def knows(beside: float, kv: float) -> Figures:
    """GiB that the model takes at least."""
    return Figures(beside=round(beside * GIB), kv_bytes=round(kv * GIB))


def lacking(lack: Lack, **gib: float) -> Shortage:
    """A failure with these numbers in GiB."""
    return Shortage(lack=lack, **{name: round(size * GIB) for name, size in gib.items()})


def only(found: Mends) -> Mend:
    """The one way that there is."""
    (way,) = found.ways
    return way


def test_what_is_missing_and_one_request() -> None:
    """0.88 GiB were missing at 0.2 on an H100 (the recorded run): with 1.75 GiB for a request it takes 0.24."""
    found = only(mends(lacking(Lack.NO_KV, left=-0.88), attempt(least=knows(16.7, 1.75))))
    assert found.settings == {"gpu_memory_utilization": 0.24}
    assert found.why == "0.9 GiB were missing, and the KV cache needs 1.8"
    assert str(found) == "gpu_memory_utilization 0.24"


def test_a_request_of_unknown_size_counts_a_gibibyte() -> None:
    """Where nobody knows the model; in a small GPU the same bytes are more of it."""
    assert only(mends(lacking(Lack.NO_KV, left=-0.88), attempt())).settings == {"gpu_memory_utilization": 0.23}
    small = attempt(total=8 * GIB, room=7.5)
    assert only(mends(lacking(Lack.NO_KV, left=-0.88), small)).settings == {"gpu_memory_utilization": 0.47}


def test_no_more_than_there_is_room_for() -> None:
    """The numbers are told."""
    found = mends(lacking(Lack.NO_KV, left=-0.88), attempt(room=18.0))
    assert found.ways == ()
    assert found.against.endswith("gpu_memory_utilization 0.23 would do, there is room for 0.22")
    assert mends(lacking(Lack.NO_KV, left=-0.88), attempt(room=18.22)).ways
    assert mends(lacking(Lack.NO_KV, left=-0.88), attempt(room=-3.0)).against.endswith("there is room for 0")


def test_without_the_number_nothing_is_guessed() -> None:
    """A log that says only that there is no memory."""
    assert mends(Shortage(lack=Lack.NO_KV), attempt()) == Mends(against="its log does not tell how much is missing")


def test_a_cache_that_is_too_small_gets_the_difference() -> None:
    """1.49 GiB are there and 1.75 needed at 0.23, as recorded: 0.24; stated needs count where they are more."""
    short = lacking(Lack.KV_SMALL, left=1.49, needed=1.75)
    assert only(mends(short, attempt(0.23))).settings == {"gpu_memory_utilization": 0.24}
    assert only(mends(short, attempt(0.23, least=knows(16.7, 4.0)))).settings == {"gpu_memory_utilization": 0.27}


def test_a_shorter_context_is_the_second_way() -> None:
    """A little less than vLLM's estimate; the only way where there is no room, and none where the estimate is tiny."""
    short = replace(lacking(Lack.KV_SMALL, left=1.49, needed=1.75), length=27856)
    share, length = mends(short, attempt(0.23)).ways
    assert share.settings == {"gpu_memory_utilization": 0.24}
    assert length.settings == {"max_model_len": 26368}
    assert "27856" in length.why
    tight = mends(short, attempt(0.23, room=18.3))
    assert only(tight).settings == {"max_model_len": 26368}
    assert tight.against.endswith("gpu_memory_utilization 0.24 would do, there is room for 0.23")
    assert mends(replace(short, length=200), attempt(0.23, room=18.3)).ways == ()


def test_memory_that_others_hold_is_left_to_them() -> None:
    """A little less than vLLM found free, and no more than there is now."""
    used = lacking(Lack.USED, free=50.0)
    assert only(mends(used, attempt(0.92, room=60.0))).settings == {"gpu_memory_utilization": 0.63}
    assert only(mends(used, attempt(0.92, room=49.0))).settings == {"gpu_memory_utilization": 0.61}


def test_memory_that_came_free_meanwhile_needs_no_other_number() -> None:
    """The same share has room now."""
    found = only(mends(lacking(Lack.USED, free=5.0), attempt(0.92, room=75.0)))
    assert (found.settings, str(found)) == ({}, "the same numbers")


@pytest.mark.parametrize(
    ("least", "floor", "tried"),
    [
        (None, 0.0, True),  # 0.63 is more than 60 % of 0.92
        (None, 0.8, False),
        (knows(40.0, 9.0), 0.0, True),
        (knows(40.0, 12.0), 0.0, False),
    ],
)
def test_a_smaller_share_must_be_enough(least: Figures | None, floor: float, *, tried: bool) -> None:
    """For what the model is known to take, for what a rule asks; else for most of what was to be."""
    found = mends(lacking(Lack.USED, free=50.0), attempt(0.92, room=60.0, least=least, floor=floor))
    assert bool(found.ways) is tried
    assert tried or found.against == "49.9 GiB are free for it: gpu_memory_utilization 0.63 would be too little"


def test_much_less_than_was_to_be_is_not_tried_blindly() -> None:
    """Five GiB for a server that was to have seventy."""
    assert mends(lacking(Lack.USED, free=5.06), attempt(0.92, room=5.0)).ways == ()


def test_the_same_again_where_memory_only_moved() -> None:
    """Once is enough: the other program has done."""
    assert only(mends(lacking(Lack.MOVED), attempt())).settings == {}


@pytest.mark.parametrize(
    ("reached", "words"),
    [(Reached.NOTHING, "the weights alone found no room"), (Reached.LOADED, "another share changes nothing")],
)
def test_running_out_before_the_cache_has_its_memory(reached: Reached, words: str) -> None:
    """No share helps."""
    found = mends(replace(lacking(Lack.FULL), reached=reached), attempt(0.9))
    assert found.ways == ()
    assert words in found.against


def test_running_out_beside_the_cache_gives_some_back() -> None:
    """In warming up or capturing graphs; not below what the model takes."""
    full = replace(lacking(Lack.FULL), reached=Reached.MEASURED)
    assert only(mends(full, attempt(0.92))).settings == {"gpu_memory_utilization": 0.87}
    assert mends(full, attempt(0.92, least=knows(60.0, 9.5))).ways == ()
    assert mends(full, attempt(0.05)).ways == ()


@pytest.mark.parametrize("lack", [Lack.NO_KV, Lack.KV_SMALL])
def test_a_log_that_says_that_nothing_is_missing_is_not_followed(lack: Lack) -> None:
    """Whatever printed it: more memory left than is needed would make the share smaller, or less than nothing."""
    for left in (5.0, 1e12):
        assert mends(lacking(lack, left=left, needed=1.0), attempt(least=knows(16.7, 1.0))).ways == ()

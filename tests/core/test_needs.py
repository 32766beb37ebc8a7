"""Words of a model file about its KV cache and about cordons, as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreconcile.core.needs import cordon_of, cordoned_gpus_of, needs_of, requests_of, tokens_of
from vmreconcile.model.desired import CORDONED
from vmreconcile.model.gpus import Needs
from vmreconcile.model.values import JsonValue


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (1, 1), ("200k", 200_000), ("256K", 262_144), ("1.5m", 1_500_000), ("1M", 1_048_576), ("4096", 4096),
        (0, None), (-1, None), (True, None), (1.0, None), ("0k", None), ("1.5K", None), ("auto", None), ("", None),
        (10**13, None), ("9t", None), (None, None), ([], None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_tokens(written: object, expected: int | None) -> None:
    """As vLLM reads its counts of tokens; what is none, or more than any memory holds, is nothing."""
    assert tokens_of(written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [(4, 4.0), (0.5, 0.5), (0, None), (-1, None), (True, None), ("4", None), (float("inf"), None), (None, None)],
)
def test_requests(written: object, expected: float | None) -> None:
    """A number above 0."""
    assert requests_of(written) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (True, CORDONED), ("true", CORDONED), (" Yes ", CORDONED), ("1", CORDONED),
        (False, ""), (None, ""), ("false", ""), ("off", ""), (1, ""), ({}, ""),
        ("new  memory ", "new memory"), ("not now", "not now"),
    ],
)  # fmt: skip
def test_cordons(written: JsonValue, expected: str) -> None:
    """A reason, or none; what Ansible takes for true and false is no reason."""
    assert cordon_of(written) == expected


def test_cordoned_gpus_are_named_once_in_their_order() -> None:
    """As they were written; anything but a list is none."""
    assert cordoned_gpus_of([3, "GPU-1", 3, 0]) == ("3", "GPU-1", "0")
    assert cordoned_gpus_of(None) == cordoned_gpus_of("3") == ()


def test_needs() -> None:
    """Each key by itself; nothing said is nothing needed."""
    assert needs_of({"kv_tokens": "8k"}) == Needs(kv_tokens=8000)
    assert needs_of({"kv_tokens": None, "concurrency": 3}) == Needs(concurrency=3.0)
    assert not needs_of(None).stated


@given(st.one_of(st.none(), st.text(), st.integers(), st.floats(), st.booleans()))
def test_nothing_raises(written: JsonValue) -> None:
    """Whatever stands there."""
    found = needs_of({"kv_tokens": written, "concurrency": written})
    assert found.kv_tokens is None or found.kv_tokens > 0
    assert found.concurrency is None or found.concurrency > 0
    assert isinstance(cordon_of(written), str)

"""The pretended GPU agrees with what was measured on a real one."""

from __future__ import annotations

import pytest

from vmreconcile.simulator.memory import Wanted, profile


def wanted(utilization: float, *, eager: bool = True, max_model_len: int = 4096, kv_bytes: int = 0) -> Wanted:
    """Qwen2.5-7B on an H100."""
    return Wanted(
        total_gib=79.65,
        weights_gib=14.29,
        utilization=utilization,
        kv_bytes=kv_bytes,
        max_model_len=max_model_len,
        eager=eager,
    )


def test_against_the_real_one() -> None:
    """At 0.8 without graphs, 46.62 GiB and 872,992 tokens were found; at 0.92 with graphs, 55.6 GiB."""
    assert profile(wanted(0.8)).tokens == pytest.approx(872992, rel=0.001)
    assert profile(wanted(0.8)).kv_gib == pytest.approx(46.62, abs=0.05)
    assert profile(wanted(0.92, eager=False)).kv_gib == pytest.approx(55.6, abs=0.05)


def test_too_little() -> None:
    """At 0.2 nothing is left; at 0.23 there is too little for a request of 32,768 tokens."""
    assert profile(wanted(0.2)).failure == "no-kv-memory"
    assert profile(wanted(0.23, max_model_len=32768)).failure == "kv-too-small"
    assert profile(wanted(0.23, max_model_len=8192)).failure == ""


def test_a_given_size() -> None:
    """Bytes for the cache bypass utilization."""
    found = profile(wanted(0.01, kv_bytes=57344 * 16 * 10, max_model_len=80))
    assert (found.tokens, found.blocks, found.concurrency, found.failure) == (160, 10, 2.0, "")

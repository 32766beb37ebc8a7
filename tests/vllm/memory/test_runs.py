"""The prediction beside what real vLLM measured, on every recorded run: the accuracy that docs/fit.md promises."""

from __future__ import annotations

import pytest

from tests.vllm.memory.recorded import GIB, Run, runs

RECORDED = list(runs())
READY = [run for run in RECORDED if run.row["outcome"] == "ready"]
ENDED = [run for run in RECORDED if run.row["outcome"] is not None]
LOADED = [run for run in RECORDED if run.row["weights_gib"] is not None]
SIZED = [run for run in RECORDED if run.row["kv_gib"] is not None]
TIGHTEST = [run for run in READY if not run.row["arguments"].get("pipeline_parallel_size")]
"""Without pipelines: their log is that of the first stage, which need not be the tightest."""

WEIGHTS, TOKENS, SMALL_POOL_GIB, SMALL_ERROR_GIB = 0.01, 0.05, 10.0, 0.7


@pytest.mark.parametrize("run", LOADED, ids=str)
def test_weights_are_right_within_one_percent(run: Run) -> None:
    """From config.json alone."""
    assert run.predicted().terms.weights / GIB == pytest.approx(run.row["weights_gib"], rel=WEIGHTS)


@pytest.mark.parametrize("run", SIZED, ids=str)
def test_the_kv_cache_is_right(run: Run) -> None:
    """Tokens within 5 % where the pool exceeds 10 GiB, memory within 0.7 GiB where it does not."""
    found = run.predicted()
    if run.row["kv_gib"] > SMALL_POOL_GIB and run.row["kv_tokens"]:
        assert found.tokens == pytest.approx(run.row["kv_tokens"], rel=TOKENS)
    else:
        assert found.kv_bytes / GIB == pytest.approx(run.row["kv_gib"], abs=SMALL_ERROR_GIB)


@pytest.mark.parametrize("run", ENDED, ids=str)
def test_the_verdict_is_right(run: Run) -> None:
    """What came of the start is what was said."""
    expected = "ok" if run.row["outcome"] == "ready" else run.row["outcome"]
    assert run.predicted().verdict == expected


@pytest.mark.parametrize("run", TIGHTEST, ids=str)
def test_the_uncertainty_covers_the_error(run: Run) -> None:
    """The bracket of the KV cache holds what was measured."""
    found = run.predicted()
    assert abs(found.kv_bytes / GIB - run.row["kv_gib"]) <= found.uncertainty / GIB


@pytest.mark.parametrize("run", [run for run in RECORDED if run.row.get("longest")], ids=str)
def test_the_suggested_length_is_vllms_own(run: Run) -> None:
    """Within what the error of the pool makes of it, and never so long that it would fail by much."""
    found = run.predicted()
    share = abs(found.kv_bytes / GIB / run.row["kv_gib"] - 1) + 0.01
    assert found.better_length == pytest.approx(run.row["longest"], rel=share)


def test_there_is_something_of_each_kind() -> None:
    """Dense, experts, latent attention, windows, fp8 caches, graphs, several GPUs, and failures."""
    models = {run.row["model"] for run in RECORDED}
    assert models >= {"llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "gemma-2-9b", "gpt-oss-20b"}
    arguments = [run.row["arguments"] for run in RECORDED]
    assert any("kv_cache_dtype" in one for one in arguments)
    assert any("tensor_parallel_size" in one for one in arguments)
    assert any(not one.get("enforce_eager") for one in arguments)
    assert {run.row["outcome"] for run in RECORDED} >= {"ready", "no_kv_memory", "kv_too_small"}

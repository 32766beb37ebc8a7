"""What a measurement holds for: which changes make another key of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.worlds import FILE, wanted
from vmreconcile.core.gpus.keys import HARMLESS, OPEN, memory_key
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.memory.arguments import UNCOUNTED

SERVER = wanted(args={"tensor_parallel_size": 2, "kv_cache_dtype": "fp8"}, env={"VLLM_USE_V1": "1"})
KEY = memory_key(SERVER)
MATTERING = {
    *("tensor_parallel_size", "pipeline_parallel_size", "dtype", "quantization", "kv_cache_dtype", "enforce_eager"),
    *("max_num_seqs", "max_num_batched_tokens", "block_size", "enable_expert_parallel", "kv_cache_memory_bytes"),
    *("compilation_config", "cudagraph_capture_sizes", "disable_hybrid_kv_cache_manager", "limit_mm_per_prompt"),
    *UNCOUNTED,
}
"""What the memory model reads, and what it knows that it does not count."""


def with_args(**args: JsonValue) -> str:
    """The key with more arguments."""
    more = {name: Setting(value=value, origin=FILE) for name, value in args.items()}
    return memory_key(replace(SERVER, settings={**SERVER.settings, **more}))


def test_a_key_is_a_short_digest() -> None:
    """Hexadecimal, and the same each time, in whatever order settings were written and by whom."""
    assert len(KEY) == 16
    assert set(KEY) <= set("0123456789abcdef")
    rule = Origin(kind=OriginKind.TUNING, note="a rule")
    turned = {name: replace(SERVER.settings[name], origin=rule) for name in sorted(SERVER.settings, reverse=True)}
    assert memory_key(replace(SERVER, settings=turned)) == KEY


@pytest.mark.parametrize("change", [{"model": "org/other"}, {"revision": "v2"}, {"settings": {}}, {"env": {}}])
def test_other_models_and_settings_have_another_key(change: dict[str, object]) -> None:
    """Model, revision, any one setting."""
    assert memory_key(replace(SERVER, **change)) != KEY  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(MATTERING))
def test_what_the_memory_model_knows_counts(name: str) -> None:
    """No argument of its is taken for harmless."""
    assert name not in HARMLESS | OPEN
    assert with_args(**{name: 7}) != KEY


@pytest.mark.parametrize("name", sorted(HARMLESS | OPEN))
def test_the_rest_does_not(name: str) -> None:
    """Neither what has nothing to do with memory, nor what a measurement is asked about."""
    assert with_args(**{name: "x"}) == KEY


def test_harmless_arguments_are_vllms() -> None:
    """Each is one of some version: a slip of the pen would never be seen."""
    versions = ("0.10.2", "0.11.2", "0.22.1", "0.26.0", "0.32.0")
    known = {name for version in versions for name in catalogue_for(version).arguments}
    assert HARMLESS - known == set()


def test_what_nobody_says_is_the_same_as_null() -> None:
    """Both leave vLLM's default."""
    assert with_args(dtype=None) == KEY


def test_where_it_runs_is_none_of_it() -> None:
    """Port, GPUs, how they are named, priority, token; a revision that is not given is none."""
    assert memory_key(replace(SERVER, port=9, gpus=(3,), visible=("GPU-3",), priority=1, token=None)) == KEY
    assert memory_key(replace(SERVER, id=wanted("other@h9").id, revision="")) == KEY


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", True),
        ("PYTORCH_CUDA_ALLOC_CONF", True),
        ("NCCL_NVLS_ENABLE", True),
        ("VLLM_LOGGING_LEVEL", False),
        ("VLLM_API_KEY", False),
        ("HF_HOME", False),
        ("CUDA_VISIBLE_DEVICES", False),
        ("MY_OWN", False),
    ],
)
def test_variables_that_may_decide_about_memory_count(name: str, counts: bool) -> None:  # noqa: FBT001 - a parameter
    """And no secret is ever part of a digest."""
    env = {**SERVER.env, name: Setting(value="s3cret", origin=FILE)}
    assert (memory_key(replace(SERVER, env=env)) != KEY) is counts

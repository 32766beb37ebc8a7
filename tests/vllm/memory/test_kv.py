"""The KV cache by hand: pages, groups, tokens, and requests at once, as vLLM's allocator works them out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.vllm.memory.recorded import MODELS, said
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.arguments import Gpu, planned
from vmreconcile.vllm.memory.kv import Pool, UnevenPagesError, pool
from vmreconcile.vllm.memory.reading import read_shape

GPU = Gpu(total=80 << 30)


def made(model: str, changes: dict[str, JsonValue] | None = None, **arguments: JsonValue) -> Pool:
    """The KV cache of a model, the whole of it on one stage."""
    plan = planned(read_shape({**MODELS[model], **(changes or {})}), arguments, GPU, "0.22.1")
    return pool(plan.shape.layers, plan.shape.layers, plan.serving)


@pytest.mark.parametrize(
    ("model", "arguments", "block_bytes"),
    [
        ("llama-3.1-8b", {}, 32 * 16 * 8 * 256 * 2),  # grouped-query: 8 heads of 128 for keys, as many for values
        ("llama-3.1-8b", {"kv_cache_dtype": "fp8"}, 32 * 16 * 8 * 256),
        ("llama-3.1-8b", {"tensor_parallel_size": 4}, 32 * 16 * 2 * 256 * 2),
        ("llama-3.1-8b", {"tensor_parallel_size": 16}, 32 * 16 * 1 * 256 * 2),  # half a head is a whole one
        ("llama-3.1-8b", {"block_size": 32}, 32 * 32 * 8 * 256 * 2),
        ("codellama-7b", {}, 32 * 16 * 32 * 256 * 2),  # every head has its own keys
        ("deepseek-v2-lite", {}, 27 * 16 * 576 * 2),  # one latent vector of 512 + 64
        ("deepseek-v2-lite", {"tensor_parallel_size": 8}, 27 * 16 * 576 * 2),  # which is not split
        ("gemma-2-9b", {}, 21 * 16 * 8 * 512 * 2),  # two groups of 21 layers share the blocks
        ("gemma-3-27b", {}, 10 * 16 * 16 * 256 * 2),  # 10 see all, 52 a window: groups of 10
        ("gpt-oss-20b", {}, 12 * 16 * 8 * 128 * 2),
    ],
)
def test_bytes_of_a_block(model: str, arguments: dict[str, JsonValue], block_bytes: int) -> None:
    """Sixteen tokens over all layers that share a block."""
    assert made(model, **arguments).block_bytes == block_bytes


def test_multi_query_attention_has_one_head() -> None:
    """Falcon and StarCoder."""
    config: dict[str, JsonValue] = {"model_type": "gpt_bigcode", "n_embd": 6144, "n_head": 48, "n_layer": 40}
    shape = read_shape({**config, "vocab_size": 49152, "n_positions": 8192, "n_inner": 24576, "multi_query": True})
    plan = planned(shape, {}, GPU, "0.22.1")
    assert pool(shape.layers, shape.layers, plan.serving).block_bytes == 40 * 16 * 1 * 256 * 2


def test_a_window_bounds_what_a_request_holds() -> None:
    """Mistral 7B v0.1: the window's 4095 tokens, a batch of 8192 in flight, and one block for an uneven start."""
    cache = made("mistral-7b-v0.1", max_num_batched_tokens=8192)
    assert cache.blocks_a_request(32768, 8192) == -(-(4095 + 8192) // 16) + 1 == 769
    assert cache.blocks_a_request(4096, 8192) == 4096 // 16 + 1
    size = 769 * 10 * cache.block_bytes
    assert cache.concurrency(size, 32768, 8192) == 10.0
    assert cache.tokens(size, 32768, 8192) == 327680


def test_hybrid_layers_hold_blocks_of_each_group() -> None:
    """Gemma 3 27B: one group that keeps everything, six that keep a window of 1024."""
    cache = made("gemma-3-27b")
    assert len(cache.groups) == 1 + 6
    window = -(-(1023 + 8192) // 16) + 1
    assert cache.blocks_a_request(131072, 8192) == 131072 // 16 + 6 * window


def test_groups_of_nearly_one_size_are_padded_to_the_larger() -> None:
    """Thirteen layers of one kind and twelve of another make two groups of thirteen, not three of twelve."""
    kinds: list[JsonValue] = ["full_attention"] * 13 + ["sliding_attention"] * 12
    cache = made("gpt-oss-20b", {"num_hidden_layers": 25, "layer_types": kinds})
    assert len(cache.groups) == 2
    assert cache.block_bytes == 13 * 16 * 8 * 128 * 2


def test_without_the_hybrid_cache_every_layer_keeps_everything() -> None:
    """`--disable-hybrid-kv-cache-manager`."""
    cache = made("gemma-3-27b", disable_hybrid_kv_cache_manager=True)
    assert cache.block_bytes == 62 * 16 * 16 * 256 * 2
    assert cache.blocks_a_request(131072, 8192) == 131072 // 16


def test_pages_of_different_sizes_are_made_equal_or_refused() -> None:
    """A smaller page gets more tokens, where the larger is a multiple of it."""
    shape = read_shape(MODELS["gpt-oss-20b"])
    plan = planned(shape, {}, GPU, "0.22.1")
    first, second = shape.layers[:2]
    smaller = replace(first, attention=replace(first.attention, kv_heads=4))
    cache = pool((smaller, second), (smaller, second), plan.serving)
    assert {page.block for page in cache.groups} == {16, 32}
    uneven = replace(first, attention=replace(first.attention, kv_heads=3))
    with pytest.raises(UnevenPagesError):
        pool((uneven, second), (uneven, second), plan.serving)


def test_windows_that_a_model_does_not_use_do_not_count() -> None:
    """Qwen2.5 names a window and says `use_sliding_window: false`."""
    assert made("qwen2.5-72b").groups[0].window is None
    used = made("qwen2.5-72b", {"use_sliding_window": True, "max_window_layers": 40})
    assert {page.window for page in used.groups} == {None, 131072}
    assert made("mistral-7b-v0.1", {"sliding_window": None}).groups[0].window is None


def test_a_pipeline_stage_has_its_own_layers() -> None:
    """The tightest stage decides: the last, which has the head and samples."""
    found = said("llama-3.1-8b", pipeline_parallel_size=2)
    assert found.tokens < 2 * said("llama-3.1-8b").tokens + 2 * 120000
    assert found.terms.weights == pytest.approx(said("llama-3.1-8b").terms.weights / 2, rel=0.01)


def test_newer_versions_keep_two_batches_in_flight() -> None:
    """From 0.26 on a window holds twice the batch, and fewer requests fit."""
    assert said("mistral-7b-v0.1", version="0.32.0").concurrency < said("mistral-7b-v0.1").concurrency


def test_a_given_size_of_the_cache_is_taken() -> None:
    """`--kv-cache-memory-bytes` goes past all else."""
    found = said("llama-3.1-8b", kv_cache_memory_bytes=1 << 34, gpu_memory_utilization=0.1)
    assert (found.kv_bytes, found.verdict) == (1 << 34, "ok")


def test_the_context_may_follow_the_memory() -> None:
    """`--max-model-len auto` shortens it until one request fits."""
    found = said("llama-3.1-8b", max_model_len="auto", gpu_memory_utilization=0.3)
    assert found.verdict == "ok"
    assert found.planned.serving.max_model_len == said("llama-3.1-8b", gpu_memory_utilization=0.3).better_length

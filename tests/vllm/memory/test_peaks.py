"""Peaks and graphs by hand, and what depends on version and GPU."""

from __future__ import annotations

import pytest

from tests.vllm.memory.recorded import GIB, MODELS, said
from vmreconcile.vllm.memory.activation import LATENT_PREFILL, LIBRARIES, peak
from vmreconcile.vllm.memory.arguments import Gpu, planned
from vmreconcile.vllm.memory.defaults import Batch, batch, behaviour, release
from vmreconcile.vllm.memory.graphs import capture_sizes
from vmreconcile.vllm.memory.predict import GROUP
from vmreconcile.vllm.memory.reading import read_shape
from vmreconcile.vllm.memory.weights import Stage


def test_sampling_dominates_a_large_vocabulary() -> None:
    """Llama 3.1: 1024 rows of logits in 16 bits and three times in 32, a buffer of 132 rows, and the hidden states."""
    rows, words, hidden = 1024, 128256, 8192 * 4096 * 2
    assert said("llama-3.1-8b").terms.activation == LIBRARIES + rows * words * 14 + 132 * words * 4 + hidden


def test_the_dense_part_dominates_a_small_vocabulary() -> None:
    """CodeLlama: gate, up and their product, and three hidden states, for 8192 tokens."""
    assert said("codellama-7b").terms.activation == LIBRARIES + 8192 * 2 * (3 * 11008 + 3 * 4096)


def test_experts_keep_a_workspace() -> None:
    """Qwen3 30B-A3B: 8 experts a token, 768 wide, 2048 hidden: both buffers are as wide as the hidden states."""
    plain = said("qwen3-30b-a3b", max_num_batched_tokens=4096).terms.activation
    doubled = said("qwen3-30b-a3b", max_num_batched_tokens=8192).terms.activation
    assert doubled - plain == 4096 * 2 * (8 * (2048 + 2048) + 2048)


def test_latent_attention_unpacks_its_context() -> None:
    """DeepSeek: up to 64 Ki tokens of keys and values for every head, where sampling is not higher still."""
    plan = planned(read_shape(MODELS["deepseek-v2-lite"]), {}, Gpu(total=80 * GIB), "0.22.1")
    found = peak(plan.shape, Stage(layers=plan.shape.layers), plan.serving, plan.behaviour)
    attention = 8192 * 2 * (16 * 192 + 512 + 64 + 16 * 128 + 2 * 2048) + LATENT_PREFILL * 16 * 256 * 2
    assert found.forward == attention
    short = planned(read_shape(MODELS["deepseek-v2-lite"]), {"max_model_len": 1024}, Gpu(total=80 * GIB), "0.22.1")
    assert peak(short.shape, Stage(layers=short.shape.layers), short.serving, short.behaviour).forward == attention


def test_the_newer_runner_samples_from_fewer_copies() -> None:
    """Qwen3 in 0.22.1: logits in 16 and 32 bits; a Llama only from 0.32 on, and then in place."""
    assert said("qwen3-8b").terms.activation == LIBRARIES + 8192 * 4096 * 2 + 1024 * 151936 * 6
    assert not behaviour("0.22.1", read_shape(MODELS["llama-3.1-8b"])).second_runner
    newest = behaviour("0.32.0", read_shape(MODELS["llama-3.1-8b"]))
    assert (newest.second_runner, newest.copies_logits) == (True, False)


@pytest.mark.parametrize(("version", "gib"), [("0.15.0", 5.64), ("0.16.0", 5.64), ("0.17.0", 2.23), ("0.19.0", 2.21)])
def test_older_versions_sorted_every_logit(version: str, gib: float) -> None:
    """Qwen3 14B on an H100, measured over versions (the same public source as the runs of 0.19.0)."""
    assert said("qwen3-14b", version=version).terms.activation / GIB == pytest.approx(gib, rel=0.02)


def test_capture_sizes_are_vllms_own() -> None:
    """51 sizes up to 512, as its log says; fewer requests, fewer sizes; gpt-oss up to 1024."""
    plan = said("llama-3.1-8b").planned
    sizes = capture_sizes(plan.shape, plan.serving)
    assert (len(sizes), sizes[:4], sizes[-1]) == (51, (1, 2, 4, 8), 512)
    few = said("llama-3.1-8b", max_num_seqs=4).planned.serving.capture_sizes
    assert few == (1, 2, 4, 8)
    assert len(said("gpt-oss-20b").planned.serving.capture_sizes) == 83


@pytest.mark.parametrize(
    "arguments",
    [
        {"enforce_eager": True},
        {"compilation_config": {"cudagraph_mode": "NONE"}},
        {"optimization_level": 0},
    ],
)
def test_no_graphs_take_no_memory(arguments: dict[str, object]) -> None:
    """However that is said."""
    assert said("llama-3.1-8b", **arguments).terms.graphs == 0  # type: ignore[arg-type]
    assert said("llama-3.1-8b").terms.graphs > 0


def test_graphs_may_be_fewer() -> None:
    """Sizes that are given, and a cap."""
    all_sizes = said("llama-3.1-8b").terms.graphs
    assert said("llama-3.1-8b", compilation_config={"cudagraph_capture_sizes": [1, 2, 4]}).terms.graphs < all_sizes / 2
    assert said("llama-3.1-8b", max_cudagraph_capture_size=8).terms.graphs < all_sizes / 2


def test_older_versions_set_nothing_aside_for_graphs() -> None:
    """Before 0.20, and the newer runner before 0.32."""
    assert said("llama-3.1-8b", version="0.19.0").terms.graphs == 0
    assert said("qwen3-8b").terms.graphs == 0
    assert said("qwen3-8b", version="0.32.0").terms.graphs > 0


def test_a_group_of_gpus_talks() -> None:
    """Two GPUs and four take the same for it; one takes nothing."""
    one, two, four = (said("llama-3.1-8b", tensor_parallel_size=count).terms.overhead for count in (1, 2, 4))
    assert (two - one, four - one) == (GROUP, GROUP)


@pytest.mark.parametrize(
    ("version", "gib", "name", "expected"),
    [
        ("0.22.1", 79.18, "NVIDIA H100 80GB HBM3", Batch(seqs=1024, tokens=8192)),
        ("0.22.1", 79.20, "NVIDIA A100-SXM4-80GB", Batch(seqs=256, tokens=2048)),
        ("0.22.1", 44.39, "NVIDIA L40S", Batch(seqs=256, tokens=2048)),
        ("0.22.1", 178.35, "NVIDIA B200", Batch(seqs=1024, tokens=8192)),
        ("0.32.0", 178.35, "NVIDIA B200", Batch(seqs=1024, tokens=16384)),
        ("0.32.0", 139.80, "NVIDIA H200", Batch(seqs=1024, tokens=8192)),
    ],
)
def test_batches_depend_on_the_gpu(version: str, gib: float, name: str, expected: Batch) -> None:
    """As vLLM's own table has it."""
    assert batch(version, int(gib * GIB), name) == expected


def test_utilization_depends_on_the_version() -> None:
    """0.9 before 0.20, 0.92 since; an unknown version counts as the newest."""
    shape = read_shape(MODELS["llama-3.1-8b"])
    assert [behaviour(one, shape).utilization for one in ("0.11.2", "0.18.0", "0.20.0", "0.32.0", None, "dev")] == [
        *(0.9, 0.9, 0.92, 0.92, 0.92, 0.92)
    ]
    assert release("v0.22.1rc3+cu130") == (0, 22, 1)


def test_a_short_context_bounds_the_batch() -> None:
    """max_num_seqs times max_model_len, where that is less than the default."""
    found = said("llama-3.1-8b", max_model_len=16, max_num_seqs=4).planned.serving
    assert found.max_num_batched_tokens == 64
    assert said("llama-3.1-8b", enable_chunked_prefill=False).planned.serving.max_num_batched_tokens == 131072

"""What depends on the version of vLLM and on the GPU: defaults of arguments, and what the profiling run does. Pure.

Read in the sources of 0.11.2, 0.15.0, 0.18.0, 0.20.0, 0.22.1, 0.26.0 and 0.32.0. Where a change lies between two of
them, the newer one is taken as its first version, except where measurements tell it (0.17.0, docs/fit.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmreconcile.vllm.memory.shape import Shape
from vmreconcile.vllm.memory.sizes import GIB

NEWEST = (10**6,)
"""Of an unknown version: taken as the newest."""

LARGE_GPU = 70 * GIB
HUGE_GPU = 160 * GIB
"""vllm/engine/arg_utils.py: get_batch_defaults (0.22.1; the second from 0.32.0 on)."""

SECOND_RUNNER_22 = frozenset({"Qwen3ForCausalLM"})
SECOND_RUNNER_26 = frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"})
"""Architectures that get the newer model runner: vllm/config/vllm.py: DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES."""


NON_TORCH = GIB // 4
"""What loaded kernels and the driver take beside PyTorch's pool: measured alike for 0.18.0 to 0.22.1 over all dense
models and models with experts (docs/fit.md); half of it before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What one version does when it profiles a model, and its default utilization.

    `counts_graphs`: sets memory aside for CUDA graphs. `second_runner`: uses the newer model runner, which, with
    `copies_logits`, makes a 32-bit copy of the logits. `sorts`: samples through a sort. `batches` may be in flight.
    `tokens_by_group`: reports tokens as blocks a group. `non_torch` bytes go to kernels and the driver.
    `measured`: the prediction was compared with real runs of about this version (docs/fit.md).
    """

    utilization: float
    counts_graphs: bool
    second_runner: bool
    copies_logits: bool
    sorts: bool
    batches: int
    tokens_by_group: bool
    non_torch: int
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """`max_num_seqs` and `max_num_batched_tokens` of `vllm serve`."""

    seqs: int
    tokens: int


def release(version: str | None) -> tuple[int, ...]:
    """The numbers that a version begins with; the newest for none and for what is no version."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version or "")
    return tuple(int(part[:9]) for part in match[1].split(".")) if match else NEWEST


def behaviour(version: str | None, shape: Shape) -> Behaviour:
    """What a version does with a model of this shape.

    Graphs: vllm/envs.py (0.18.0, 0.20.0). Runner: vllm/config/vllm.py (0.22.1, 0.26.0, 0.32.0),
    v1/worker/gpu/model_runner.py: profile_cudagraph_memory counts nothing before 0.32.0.
    """
    number = release(version)
    second = _second_runner(number, shape)
    return Behaviour(
        utilization=default_utilization(version),
        counts_graphs=number >= ((0, 32) if second else (0, 20)),
        second_runner=second,
        copies_logits=number < (0, 26),
        sorts=number < (0, 17),
        batches=2 if number >= (0, 26) else 1,
        tokens_by_group=number < (0, 22),
        non_torch=NON_TORCH if number >= (0, 18) else NON_TORCH // 2,
        measured=(0, 17) <= number < (0, 23),
    )


def default_utilization(version: str | None) -> float:
    """The share of a GPU that a version takes where nothing is said: vllm/config/cache.py (0.18.0, 0.20.0)."""
    return 0.92 if release(version) >= (0, 20) else 0.9


def _second_runner(number: tuple[int, ...], shape: Shape) -> bool:
    if number >= (0, 32):
        return True
    if number >= (0, 26):
        return shape.architecture in SECOND_RUNNER_26
    plain = shape.quantisation is None and not any(layer.experts for layer in shape.layers)
    return number >= (0, 22) and plain and shape.architecture in SECOND_RUNNER_22


def batch(version: str | None, total: int, gpu: str) -> Batch:
    """Defaults of the server by the GPU's memory in bytes, as CUDA tells it, and its name.

    vllm/engine/arg_utils.py: get_batch_defaults (0.22.1, 0.32.0): an A100 counts as small whatever its memory.
    """
    if total >= HUGE_GPU and release(version) >= (0, 32):
        return Batch(seqs=1024, tokens=16384)
    if total >= LARGE_GPU and "a100" not in gpu.lower():
        return Batch(seqs=1024, tokens=8192)
    return Batch(seqs=256, tokens=2048)

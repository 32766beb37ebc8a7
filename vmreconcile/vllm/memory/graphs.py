"""CUDA graphs: which batch sizes vLLM captures, and what it sets aside for them. Pure."""

from __future__ import annotations

from vmreconcile.vllm.memory.defaults import Behaviour
from vmreconcile.vllm.memory.serving import Serving
from vmreconcile.vllm.memory.shape import Layer, Shape
from vmreconcile.vllm.memory.sizes import MIB
from vmreconcile.vllm.memory.weights import Stage

FIRST = 164 * MIB
"""The first capture: its memory pool and libraries, the same for all."""

PER_LAYER = MIB * 16 // 100
"""One layer in one graph: kernel nodes and pool, for a dense layer."""

EXPERTS, LATENT = 0.5, 1.0
"""How much more a layer with experts, and one with latent attention, launches than a dense one."""

LARGEST = 512


def capture_sizes(shape: Shape, serving: Serving) -> tuple[int, ...]:
    """The batch sizes that are captured: vllm/config/vllm.py: _set_cudagraph_sizes (0.22.1).

    gpt-oss goes to 1024 (vllm/model_executor/models/config.py: GptOssForCausalLMConfig).
    """
    if serving.capture_sizes:
        return tuple(sorted({size for size in serving.capture_sizes if size <= serving.max_num_batched_tokens}))
    cap = 1024 if shape.model_type == "gpt_oss" else LARGEST
    largest = min(serving.max_num_seqs * 2, cap, serving.max_num_batched_tokens)
    sizes = {size for size in (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)) if size <= largest}
    return tuple(sorted(sizes))


def graph_bytes(shape: Shape, stage: Stage, serving: Serving, behaviour: Behaviour) -> int:
    """What vLLM sets aside for graphs before it sizes the KV cache; 0 where it does not.

    vllm/v1/worker/gpu_model_runner.py: profile_cudagraph_memory (0.22.1) captures two sizes of each kind, piecewise for
    all and full for pure decoding up to max_num_seqs, and extrapolates: the first capture, then so much a graph.
    """
    if serving.eager or not behaviour.counts_graphs:
        return 0
    sizes = capture_sizes(shape, serving)
    full = [size for size in sizes if size <= serving.max_num_seqs]
    work = sum(_work(layer) for layer in stage.layers)
    return int(FIRST + (len(sizes) + len(full)) * max(MIB, PER_LAYER * work))


def _work(layer: Layer) -> float:
    return 1.0 + (EXPERTS if layer.experts else 0.0) + (LATENT if layer.attention.latent else 0.0)

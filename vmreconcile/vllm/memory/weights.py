"""Bytes of weights on one GPU, from the shape alone: every matrix as vLLM allocates it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmreconcile.vllm.memory.serving import Serving
from vmreconcile.vllm.memory.shape import Attention, Experts, Layer, Shape
from vmreconcile.vllm.memory.sizes import allocated, over

VOCABULARY_GRAIN = 64
"""vllm/model_executor/layers/vocab_parallel_embedding.py: DEFAULT_VOCAB_PADDING_SIZE (0.22.1)."""

MXFP4_INNER, MXFP4_HIDDEN = 128, 256
"""To what MXFP4 experts are padded: …/fused_moe/oracle/mxfp4.py:
mxfp4_round_up_hidden_size_and_intermediate_size, Marlin (0.22.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """One tensor on one GPU: elements, and whether its layer is quantised; `expert`: it belongs to routed experts."""

    elements: int
    linear: bool = False
    expert: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one GPU of a pipeline stage holds: its layers, and whether it has the embedding and the head."""

    layers: tuple[Layer, ...]
    first: bool = True
    last: bool = True


def padded_vocabulary(shape: Shape) -> int:
    """Rows of the embedding, padded as vLLM does."""
    return over(shape.vocabulary, VOCABULARY_GRAIN) * VOCABULARY_GRAIN


def weigh(shape: Shape, stage: Stage, serving: Serving) -> int:
    """Bytes of a stage's weights on one GPU, rounded as the allocator rounds each tensor."""
    matrices = list(_ends(shape, stage, serving))
    for layer in stage.layers:
        matrices += _layer(shape, layer, serving)
    return sum(allocated(matrix.elements * item_bytes(shape, matrix)) for matrix in matrices)


def slack(shape: Shape, stage: Stage, serving: Serving) -> int:
    """Bytes that tables and the allocator's rounding add to the stored weights, as far as the shape tells."""
    matrices = [matrix for layer in stage.layers for matrix in _layer(shape, layer, serving)]
    sizes = [matrix.elements * item_bytes(shape, matrix) for matrix in matrices]
    return sum(allocated(size) - int(size) for size in sizes) + rotary_table(shape) * shape.itemsize


def item_bytes(shape: Shape, matrix: Matrix) -> float:
    """Bytes of one element: the quantised size in linear layers, else the model's own."""
    quantised = shape.quantisation
    if quantised is None or not matrix.linear or (quantised.experts_only and not matrix.expert):
        return float(shape.itemsize)
    return quantised.weight_bytes


def rotary_table(shape: Shape) -> int:
    """Elements of the tables of rotations."""
    return shape.context.rows * shape.rotary_dim


def _ends(shape: Shape, stage: Stage, serving: Serving) -> Iterator[Matrix]:
    """Embedding, positions, head, final norm, table of rotations, and parts beside the decoder."""
    table = Matrix(elements=serving.share(padded_vocabulary(shape)) * shape.embedding)
    if stage.first or (stage.last and shape.tied):
        yield table
    if stage.first and shape.learned_positions:
        yield Matrix(elements=shape.learned_positions * shape.hidden)
    if stage.first and shape.embedding != shape.hidden:
        yield Matrix(elements=2 * shape.embedding * shape.hidden)
    if stage.first and shape.extra:
        yield Matrix(elements=shape.extra // serving.tensor_parallel)
    if stage.last:
        yield Matrix(elements=shape.hidden * 2)
        if not shape.tied:
            yield table
    if shape.rotary_dim:
        yield Matrix(elements=rotary_table(shape))


def _layer(shape: Shape, layer: Layer, serving: Serving) -> Iterator[Matrix]:
    traits = shape.traits
    yield from _attention(shape, layer.attention, serving)
    if layer.inner:
        yield from _mlp(shape, layer.inner, serving, bias=traits.mlp_bias)
    if layer.experts:
        yield from _experts(shape, layer.experts, serving)
    yield Matrix(elements=shape.hidden * traits.norms * (2 if traits.norm_bias else 1))


def _attention(shape: Shape, attention: Attention, serving: Serving) -> Iterator[Matrix]:
    heads = serving.share(attention.heads)
    yield Matrix(elements=heads * attention.value_dim * shape.hidden, linear=True)
    if latent := attention.latent:
        kv_b = latent.kv_rank * heads * (latent.nope + attention.value_dim)
        yield Matrix(elements=(latent.q_rank + latent.kv_rank + latent.rope) * shape.hidden, linear=True)
        yield Matrix(elements=(latent.q_rank or shape.hidden) * heads * attention.head_dim, linear=True)
        yield Matrix(elements=kv_b, linear=True)
        if shape.quantisation is not None and not shape.quantisation.experts_only:
            yield Matrix(elements=kv_b)  # a 16-bit copy: …/layers/attention/mla_attention.py (0.22.1)
        return
    kv_heads = serving.share(attention.kv_heads)
    width = heads * attention.head_dim + kv_heads * (attention.head_dim + attention.value_dim)
    yield Matrix(elements=shape.hidden * width, linear=True)
    bias = (width if shape.traits.qkv_bias else 0) + (shape.hidden if shape.traits.out_bias else 0)
    if extra := bias + (2 * attention.head_dim if shape.traits.qk_norm else 0) + (heads if attention.sinks else 0):
        yield Matrix(elements=extra)


def _mlp(shape: Shape, inner: int, serving: Serving, *, bias: bool) -> Iterator[Matrix]:
    width = serving.share(inner)
    yield Matrix(elements=shape.hidden * width * (2 if shape.traits.gated else 1), linear=True)
    yield Matrix(elements=shape.hidden * width, linear=True)
    if bias:
        yield Matrix(elements=width + shape.hidden)


def _experts(shape: Shape, experts: Experts, serving: Serving) -> Iterator[Matrix]:
    count = serving.share(experts.count) if serving.expert_parallel else experts.count
    inner = experts.inner if serving.expert_parallel else serving.share(experts.inner)
    hidden = shape.hidden
    if shape.quantisation is not None and shape.quantisation.experts_only:
        inner = over(inner, MXFP4_INNER) * MXFP4_INNER
        hidden = over(hidden, MXFP4_HIDDEN) * MXFP4_HIDDEN
    yield Matrix(elements=count * 2 * inner * hidden, linear=True, expert=True)
    yield Matrix(elements=count * inner * hidden, linear=True, expert=True)
    yield Matrix(elements=experts.count * shape.hidden)
    if shape.traits.expert_bias:
        yield Matrix(elements=count * (2 * inner + shape.hidden))
    if experts.shared:
        yield from _mlp(shape, experts.shared, serving, bias=False)
    if experts.shared_gate:
        yield Matrix(elements=shape.hidden)
    if experts.correction:
        yield Matrix(elements=2 * experts.count)

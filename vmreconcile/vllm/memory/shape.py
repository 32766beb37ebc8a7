"""The shape of a decoder: what its memory depends on, and nothing else. Only values; `reading` makes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmreconcile.vllm.memory.context import Context
from vmreconcile.vllm.memory.quantisation import Quantisation


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek): ranks and head sizes, in elements. `q_rank` 0: queries are not packed."""

    kv_rank: int
    rope: int
    nope: int
    q_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One layer's attention. Heads of the whole model, before any split; sizes of one head in elements.

    `window` is the number of tokens that a layer looks back at, None for all; `chunk` the size of the chunks that a
    layer keeps to (Llama 4). `sinks`: one learned number a head (gpt-oss).
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    chunk: int | None = None
    latent: Latent | None = None
    sinks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A layer's experts: how many there are and how many a token passes, and the width of each.

    `shared` is the width of the experts that every token passes, all together; 0 for none. `shared_gate`: they have
    a gate of their own (Qwen2-MoE). `correction`: the router has a bias an expert (DeepSeek-V3).
    """

    count: int
    active: int
    inner: int
    shared: int = 0
    shared_gate: bool = False
    correction: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer: its attention, and either a dense part of width `inner` or experts, or both."""

    attention: Attention
    inner: int = 0
    experts: Experts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a family of models has beside its matrices. Norms are vectors of the hidden size in each layer."""

    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    expert_bias: bool = False
    norms: int = 2
    norm_bias: bool = False
    qk_norm: bool = False
    head_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A whole model. `itemsize` is that of its 16-bit (or 32-bit) numbers in bytes.

    `learned_positions` counts rows of a position table, 0 for none; `embedding` is the width of the embedding where
    it is not the hidden size (OPT-350m). `rotary_dim` numbers make one row of the rotation tables, 0 without them.
    `extra` counts parameters outside the decoder (a vision tower), estimated, and `beside` says of what. `doubts` say
    why the decoder may be another than this; `known`: the family is known, and there is no doubt.
    """

    architecture: str
    model_type: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    itemsize: int
    context: Context
    tied: bool
    traits: Traits = field(default_factory=Traits)
    embedding: int = 0
    learned_positions: int = 0
    rotary_dim: int = 0
    extra: int = 0
    quantisation: Quantisation | None = None
    known: bool = True
    doubts: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

"""From a config.json to a `Shape`, by the keys that vLLM reads. Pure; what it cannot know for sure becomes a doubt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.context import read_context
from vmreconcile.vllm.memory.families import FAMILIES, Family
from vmreconcile.vllm.memory.keys import (
    ACTIVE,
    EXPERTS,
    HEADS,
    HIDDEN,
    INNER,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    Keys,
    text_part,
)
from vmreconcile.vllm.memory.quantisation import Quantisation, read_quantisation
from vmreconcile.vllm.memory.shape import Attention, Experts, Latent, Layer, Shape, Traits

MOST_LAYERS = 2048
MOST_DOUBTS, LONGEST_WORD = 8, 64
"""Doubts that are told, and letters of a name in them: a config.json may hold a megabyte of either."""

STRANGE = (
    *("ssm_", "mamba", "linear_", "conv_", "state_size", "rwkv", "time_mix", "hybrid_override_pattern"),
    *("layers_block_type", "attn_layer_period", "block_configs", "num_kv_shared_layers", "compress_ratios"),
    *("index_topk", "attn_type_list", "layer_group_size", "hybrid_attention", "hidden_size_per_layer_input"),
)
"""Beginnings of keys that tell of layers that this model of memory does not know."""

GATED = frozenset({"silu", "swish", "swiglu", "geglu", "gelu_pytorch_tanh"})
"""Activations that almost always come with a gate; without one a third of a layer's dense part is not there."""

KINDS = {"full_attention": "full", "attention": "full", "sliding_attention": "window", "chunked_attention": "chunk"}
"""What `layer_types` may say of a layer."""


class UnknownShapeError(ValueError):
    """A config.json that does not say what is needed; the message is one line for a person."""


def read_shape(config: Mapping[str, JsonValue], *, itemsize: int = 2) -> Shape:
    """The shape of a model. `itemsize` in bytes is that of the numbers it is served in.

    vLLM serves 32-bit models in 16 bits unless told otherwise (vllm/config/model.py: _resolve_auto_dtype, 0.22.1).

    Raises:
        UnknownShapeError: sizes are missing without which nothing can be said.
    """
    text = text_part(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    family = FAMILIES.get(kind, Family())
    keys = Keys(text, family.defaults)
    hidden, layers, heads = keys.count(*HIDDEN), keys.count(*LAYERS), keys.count(*HEADS)
    vocabulary = keys.count(*VOCABULARY)
    needed = {HIDDEN[0]: hidden, LAYERS[0]: layers, HEADS[0]: heads, VOCABULARY[0]: vocabulary}
    missing = [name for name, value in needed.items() if not value]
    if not hidden or not layers or not heads or not vocabulary:
        raise UnknownShapeError(
            f"config.json ({kind[:LONGEST_WORD] or 'no model_type'}) does not say {' and '.join(missing)}"
        )
    if layers > MOST_LAYERS:
        raise UnknownShapeError(f"config.json says {layers} layers")
    traits = _traits(keys, family)
    attention = _attention(keys, family, hidden, heads)
    if not attention.head_dim or not attention.value_dim:
        raise UnknownShapeError("config.json does not say how large a head is")
    doubts = _doubts(keys, kind)
    return Shape(
        architecture=_architecture(config),
        model_type=kind,
        hidden=hidden,
        vocabulary=vocabulary,
        layers=_layers(keys, family, attention, layers),
        itemsize=itemsize,
        context=read_context(keys, kind),
        tied=Keys(config, {}).flag(
            "tie_word_embeddings", default=keys.flag("tie_word_embeddings", default=family.tied)
        ),
        traits=traits,
        embedding=keys.count("word_embed_proj_dim") or hidden,
        learned_positions=_positions(keys, family),
        rotary_dim=_rotary_dim(keys, family, attention),
        extra=_outside(config),
        quantisation=_quantisation(config, text),
        known=kind in FAMILIES and not doubts,
        doubts=tuple(doubts),
        beside=tuple(name for name, _ in _parts(config)),
    )


def _architecture(config: Mapping[str, JsonValue]) -> str:
    said = config.get("architectures")
    return str(said[0]) if isinstance(said, list) and said else ""


def _quantisation(config: Mapping[str, JsonValue], text: Mapping[str, JsonValue]) -> Quantisation | None:
    return read_quantisation(config) or read_quantisation(text)


def _doubts(keys: Keys, kind: str) -> list[str]:
    """Why the text model may not be what its standard keys say."""
    strange = [name for name in keys.names() if name.startswith(STRANGE) and keys.count(name) != 0]
    kinds = sorted(set(keys.texts("layer_types")) - set(KINDS))
    found = [f"it has {name[:LONGEST_WORD]}" for name in strange[:MOST_DOUBTS]]
    found += [f"it has layers of the kind {one[:LONGEST_WORD]}" for one in kinds[:MOST_DOUBTS]]
    if keys.flag("is_encoder_decoder"):
        found.append("it has an encoder")
    if kind not in FAMILIES and not keys.count(*INNER) and not keys.count("moe_intermediate_size"):
        found.append("it does not say how wide its layers are")
    if kind not in FAMILIES and (keys.text("hidden_act") or keys.text("hidden_activation")) not in GATED:
        found.append("its layers may have one matrix less")
    return found


def _traits(keys: Keys, family: Family) -> Traits:
    """The family's traits, with the biases that config.json speaks of."""
    traits = family.traits
    if "attention_bias" in keys:
        bias = keys.flag("attention_bias")
        out = bias if traits.out_bias or keys.text("model_type") in {"llama", "gpt_oss", "olmo2"} else False
        traits = replace(traits, qkv_bias=bias, out_bias=out)
    if keys.text("model_type") == "phi" and keys.flag("qk_layernorm"):
        traits = replace(traits, qk_norm=True)
    if keys.flag("use_qk_norm"):
        traits = replace(traits, qk_norm=True)
    if keys.text("model_type") == "mpt" and keys.flag("no_bias"):
        traits = replace(traits, qkv_bias=False, out_bias=False, mlp_bias=False, norm_bias=False)
    return traits


def _attention(keys: Keys, family: Family, hidden: int, heads: int) -> Attention:
    """The attention of a layer that sees everything."""
    kv_heads = keys.count(*KV_HEADS)
    if keys.flag("multi_query", default=keys.text("model_type") in {"falcon", "gpt_bigcode"}) and not keys.flag(
        "new_decoder_architecture"
    ):
        kv_heads = 1
    head_dim = keys.count("head_dim", "kv_channels", "hidden_size_per_head") or family.head_dim or hidden // heads
    rank = keys.count("kv_lora_rank")
    if rank and (family.latent or keys.count("qk_rope_head_dim")):
        nope, rope = keys.count("qk_nope_head_dim") or 0, keys.count("qk_rope_head_dim") or 0
        latent = Latent(kv_rank=rank, rope=rope, nope=nope, q_rank=keys.count("q_lora_rank") or 0)
        value = keys.count("v_head_dim") or nope
        return Attention(heads=heads, kv_heads=heads, head_dim=nope + rope, value_dim=value, latent=latent)
    sinks = keys.text("model_type") == "gpt_oss"
    return Attention(heads=heads, kv_heads=kv_heads or heads, head_dim=head_dim, value_dim=head_dim, sinks=sinks)


def _layers(keys: Keys, family: Family, attention: Attention, count: int) -> tuple[Layer, ...]:
    sight = _sight(keys, family, count)
    window, chunk = keys.count("sliding_window") or None, keys.count("attention_chunk_size") or None
    views = {
        "full": attention,
        "window": replace(attention, window=window),
        "chunk": replace(attention, chunk=chunk),
    }
    experts, dense = _experts(keys), _inner(keys, family)
    sparse = _sparse(keys, count) if experts else frozenset[int]()
    return tuple(
        Layer(attention=views[kind], experts=experts) if index in sparse else Layer(attention=views[kind], inner=dense)
        for index, kind in enumerate(sight)
    )


def _sight(keys: Keys, family: Family, count: int) -> list[str]:
    """For each layer whether it sees everything, a window or a chunk.

    `layer_types` where it is given; else the family's period; else one `sliding_window` holds for all layers
    (vllm/engine/arg_utils.py: create_engine_config; vllm/model_executor/layers/attention/attention.py, 0.22.1).
    """
    named = [KINDS.get(one, "full") for one in keys.texts("layer_types")]
    window = keys.count("sliding_window")
    if len(named) >= count:
        kinds = named[:count]
    elif keys.text("model_type") == "llama4_text":
        kinds = ["full" if (index + 1) % 4 == 0 else "chunk" for index in range(count)]
    elif not window or not keys.flag("use_sliding_window", default="use_sliding_window" not in keys):
        kinds = ["full"] * count
    elif "use_sliding_window" in keys and "max_window_layers" in keys:
        first = keys.count("max_window_layers") or 0
        kinds = ["window" if index >= first else "full" for index in range(count)]
    else:
        period = keys.count("sliding_window_pattern", "_sliding_window_pattern") or family.window_period
        kinds = [("full" if period and (index + 1) % period == 0 else "window") for index in range(count)]
    return [kind if kind != "window" or window else "full" for kind in kinds]


def _inner(keys: Keys, family: Family) -> int:
    hidden = keys.count(*HIDDEN) or 0
    if keys.text("model_type") == "llama4_text":
        return keys.count("intermediate_size_mlp", "intermediate_size") or 0
    ratio = keys.number("expansion_ratio")
    said = keys.count(*INNER)
    return said or int(hidden * (ratio or (4 if not family.traits.gated else 0)))


def _experts(keys: Keys) -> Experts | None:
    count = keys.count(*EXPERTS)
    if not count:
        return None
    inner = keys.count("moe_intermediate_size", "expert_intermediate_size", *INNER) or 0
    shared = (keys.count("n_shared_experts", "num_shared_experts") or 0) * inner
    shared = keys.count("shared_expert_intermediate_size", "shared_intermediate_size") or shared
    if keys.text("model_type") == "llama4_text":
        shared = inner
    return Experts(
        count=count,
        active=max(1, keys.count(*ACTIVE) or 1),
        inner=inner,
        shared=shared,
        shared_gate=keys.text("model_type") == "qwen2_moe" and shared > 0,
        correction=keys.text("topk_method") == "noaux_tc" or keys.text("model_type") in {"deepseek_v3", "kimi_k2"},
    )


def _sparse(keys: Keys, count: int) -> frozenset[int]:
    """Which of the layers of a model with experts have them.

    DeepSeek: deepseek_v2.py: DeepseekV2DecoderLayer; Qwen: qwen2_moe.py: Qwen2MoeDecoderLayer; Llama 4:
    llama4.py: Llama4DecoderLayer, all in vllm/model_executor/models (0.22.1).
    """
    layers = set(range(count)).difference(keys.counts("mlp_only_layers"))
    layers -= set(range(min(count, keys.count("first_k_dense_replace") or 0)))
    chosen = keys.counts("moe_layers")
    if chosen:
        return frozenset(layers.intersection(chosen))
    step, frequency = keys.count("decoder_sparse_step", "interleave_moe_layer_step") or 1, keys.count("moe_layer_freq")
    return frozenset(index for index in layers if (index + 1) % step == 0 and index % (frequency or 1) == 0)


def _positions(keys: Keys, family: Family) -> int:
    if not family.learned_positions:
        return 0
    return (keys.count("max_position_embeddings", "n_positions", "n_ctx") or 0) + family.position_offset


def _rotary_dim(keys: Keys, family: Family, attention: Attention) -> int:
    """Numbers a position in the table of rotations, 0 for models with learned positions or ALiBi."""
    if family.learned_positions or keys.text("model_type") in {"bloom", "mpt"}:
        return 0
    if attention.latent:
        return attention.latent.rope
    share = keys.number("partial_rotary_factor") or keys.number("rotary_pct") or 1.0
    return keys.count("rotary_dim") or int(attention.head_dim * share)


def _parts(config: Mapping[str, JsonValue]) -> list[tuple[str, Keys]]:
    names = ("vision_config", "audio_config", "encoder_config", "vision_tower_config")
    found = [(name, part) for name in names if isinstance(part := config.get(name), Mapping) and part]
    return [(name.removesuffix("_config").removesuffix("_tower"), Keys(part, {})) for name, part in found]


def _outside(config: Mapping[str, JsonValue]) -> int:
    """Parameters of parts beside the text model, as those of a plain encoder with these sizes."""
    total = 0
    for _, keys in _parts(config):
        width = keys.count("hidden_size", "embed_dim", "width", "d_model") or 0
        depth = keys.count("num_hidden_layers", "depth", "layers", "encoder_layers") or 0
        inner = keys.count("intermediate_size", "encoder_ffn_dim") or 4 * width
        total += depth * (4 * width * width + 2 * width * inner) + 3 * width * (keys.count("patch_size") or 14) ** 2
    return total

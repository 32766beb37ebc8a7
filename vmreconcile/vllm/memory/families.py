"""What families of models have in common and their config.json leaves unsaid, by `model_type`. Pure, only a table.

Defaults are those of the configuration classes of transformers 5.19; norms, biases and the parts of a layer are those
of vllm/model_executor/models (0.22.1). A model_type that is not here is read by its standard keys, as a Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.shape import Traits


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family. `window_period` n: every n-th layer sees everything, those before it look through the window.

    `first_window`: the pattern starts with a window. `defaults` stand for keys that config.json leaves out.
    `position_offset` rows lie before the table of learned positions.
    """

    traits: Traits = field(default_factory=Traits)
    tied: bool = False
    head_dim: int = 0
    window_period: int = 0
    learned_positions: bool = False
    position_offset: int = 0
    latent: bool = False
    defaults: Mapping[str, JsonValue] = field(default_factory=dict)


_OLD = Traits(gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, norm_bias=True)
_GPT2 = Family(traits=_OLD, tied=True, learned_positions=True)
_GEMMA3 = Family(
    traits=Traits(norms=4, qk_norm=True),
    tied=True,
    head_dim=256,
    window_period=6,
    defaults={
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 9216,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
)
_QWEN2 = Family(traits=Traits(qkv_bias=True))
_DEEPSEEK = Family(latent=True, defaults={"n_group": 1})

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(),
        "mistral": Family(defaults={"sliding_window": 4096}),
        "mistral3": Family(),
        "ministral": Family(defaults={"sliding_window": 4096}),
        "mixtral": Family(defaults={"num_local_experts": 8, "num_experts_per_tok": 2}),
        "qwen2": _QWEN2,
        "qwen2_moe": Family(traits=Traits(qkv_bias=True), defaults={"num_experts_per_tok": 4}),
        "qwen2_vl_text": _QWEN2,
        "qwen2_5_vl_text": _QWEN2,
        "qwen3": Family(traits=Traits(qk_norm=True), head_dim=128),
        "qwen3_moe": Family(traits=Traits(qk_norm=True), defaults={"num_experts_per_tok": 8}),
        "gemma": Family(tied=True, head_dim=256),
        "gemma2": Family(
            traits=Traits(norms=4), tied=True, head_dim=256, window_period=2, defaults={"sliding_window": 4096}
        ),
        "gemma3_text": _GEMMA3,
        "gemma3": _GEMMA3,
        "phi": Family(
            traits=Traits(
                gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, norms=1, norm_bias=True, head_bias=True
            )
        ),
        "phi3": Family(),
        "phimoe": Family(traits=Traits(norm_bias=True)),
        "deepseek": Family(),
        "deepseek_v2": _DEEPSEEK,
        "deepseek_v3": _DEEPSEEK,
        "kimi_k2": _DEEPSEEK,
        "gpt_oss": Family(traits=Traits(qkv_bias=True, out_bias=True, expert_bias=True), head_dim=64, window_period=2),
        "gpt2": _GPT2,
        "gpt_bigcode": _GPT2,
        "gpt_neo": Family(
            traits=Traits(gated=False, out_bias=True, mlp_bias=True, norm_bias=True), tied=True, learned_positions=True
        ),
        "opt": Family(traits=_OLD, tied=True, learned_positions=True, position_offset=2),
        "gpt_neox": Family(traits=_OLD),
        "gptj": Family(traits=Traits(gated=False, mlp_bias=True, norms=1, norm_bias=True, head_bias=True)),
        "codegen": Family(traits=Traits(gated=False, mlp_bias=True, norms=1, norm_bias=True, head_bias=True)),
        "falcon": Family(traits=Traits(gated=False, norm_bias=True), tied=True),
        "bloom": Family(traits=_OLD, tied=True),
        "mpt": Family(traits=Traits(gated=False), tied=True),
        "starcoder2": Family(traits=_OLD, tied=True),
        "stablelm": Family(traits=Traits(norm_bias=True)),
        "cohere": Family(traits=Traits(norms=1), tied=True),
        "cohere2": Family(traits=Traits(norms=1), tied=True, head_dim=128, window_period=4),
        "olmo": Family(traits=Traits(norms=0)),
        "olmo2": Family(traits=Traits(qk_norm=True)),
        "olmo3": Family(traits=Traits(qk_norm=True), window_period=4, defaults={"sliding_window": 4096}),
        "olmoe": Family(traits=Traits(qk_norm=True), defaults={"num_experts_per_tok": 8}),
        "granite": Family(),
        "granitemoe": Family(defaults={"num_experts_per_tok": 2}),
        "internlm2": Family(),
        "baichuan": Family(),
        "chatglm": Family(traits=Traits(qkv_bias=True)),
        "glm": Family(traits=Traits(qkv_bias=True), head_dim=128),
        "glm4": Family(traits=Traits(qkv_bias=True, norms=4), head_dim=128),
        "glm4_moe": Family(traits=Traits(qkv_bias=True)),
        "nemotron": Family(traits=Traits(gated=False, norm_bias=True)),
        "apertus": Family(traits=Traits(gated=False, qk_norm=True)),
        "arcee": Family(traits=Traits(gated=False)),
        "exaone": Family(),
        "smollm3": Family(tied=True),
        "ernie4_5": Family(tied=True),
        "seed_oss": Family(traits=Traits(qkv_bias=True)),
        "llama4_text": Family(head_dim=128, defaults={"num_experts_per_tok": 1, "attention_chunk_size": 8192}),
    }
)
"""By `model_type` of the part of config.json that describes the text model."""

"""Values of a config.json by any of the names that models give them. Pure; knows names, not what they mean."""

from __future__ import annotations

from collections.abc import Mapping

from vmreconcile.model.values import JsonValue

HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num")
INNER = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")
VOCABULARY = ("vocab_size", "padded_vocab_size", "n_vocab")
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
ACTIVE = ("num_experts_per_tok", "moe_k", "moe_top_k", "num_experts_per_token")
LONGEST = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""vllm/transformers_utils/model_arch_config_convertor.py: derive_max_model_len_and_key (0.22.1)."""

TEXT_PARTS = ("text_config", "llm_config", "language_config")
LARGEST = 1 << 40
"""No size in a config.json means more; a larger one is a mistake or a joke."""


class Keys:
    """A config.json, or its part about the text model, with a family's defaults under it."""

    def __init__(self, config: Mapping[str, JsonValue], defaults: Mapping[str, JsonValue]) -> None:
        """Remember both."""
        self._values = {**defaults, **config}

    def __contains__(self, name: str) -> bool:
        """Whether a key is there and not null."""
        return self._values.get(name) is not None

    def names(self) -> tuple[str, ...]:
        """Every key that is not null, sorted."""
        return tuple(sorted(name for name, value in self._values.items() if value is not None))

    def count(self, *names: str) -> int | None:
        """The first of these keys that holds a whole number from 0; None for none."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST:
                return value
        return None

    def number(self, name: str) -> float | None:
        """A number above 0, None for anything else."""
        return positive(self._values.get(name))

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A truth value."""
        value = self._values.get(name)
        return value if isinstance(value, bool) else default

    def text(self, name: str) -> str:
        """A text, "" for anything else."""
        value = self._values.get(name)
        return value if isinstance(value, str) else ""

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a list."""
        value = self._values.get(name)
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()

    def counts(self, name: str) -> tuple[int, ...]:
        """The whole numbers of a list."""
        value = self._values.get(name)
        items = value if isinstance(value, list) else []
        return tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))

    def part(self, name: str) -> Mapping[str, JsonValue]:
        """An object, empty for anything else."""
        value = self._values.get(name)
        return value if isinstance(value, Mapping) else {}


def positive(value: JsonValue) -> float | None:
    """A number above 0 that a size or a scale may be, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LARGEST:
        return None
    return float(value)


def text_part(config: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """The part of a config.json about the text model: all of it, unless the model has others."""
    for name in TEXT_PARTS:
        part = config.get(name)
        if isinstance(part, Mapping) and part:
            return part
    return config

"""Context lengths of a model: what vLLM serves by itself and at most, and rows of its rotation tables. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.keys import LARGEST, LONGEST, Keys, positive

WITHOUT_ANY = 2048
"""vllm/config/model.py: _get_and_verify_max_len (0.22.1), where no key says a length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Tokens: the length that vLLM takes by itself, the longest that it allows, and rows of the rotation tables."""

    default: int
    limit: int
    rows: int


def read_context(keys: Keys, model_type: str) -> Context:
    """The smallest length that config.json names, scaled as its rotary embedding is.

    Lengths: vllm/config/model.py: _get_and_verify_max_len (0.22.1). Gemma 3 says its length scaled already; longrope
    stays at the original length unless a longer one is asked for. Rows: vllm/model_executor/layers/rotary_embedding
    (0.22.1), where linear scaling multiplies them, and longrope has a short and a long table.
    """
    said = [value for name in LONGEST if (value := keys.count(name))]
    longest = keys.count("model_max_length") or min(said, default=WITHOUT_ANY)
    rope = _rope(keys)
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    original = _whole(rope.get("original_max_position_embeddings"))
    scale = positive(rope.get("factor")) or 1.0
    match kind:
        case "longrope" | "su":
            original = keys.count("original_max_position_embeddings") or original or longest
            return Context(default=original, limit=longest, rows=longest + original)
        case "llama3" | "default" | "mrope":
            return Context(default=longest, limit=longest, rows=longest)
        case _ if "gemma3" in model_type:
            return Context(default=longest, limit=longest, rows=int(longest * scale) + longest)
        case "yarn" if original:
            longest = original
        case _:
            pass
    scaled = max(1, int(longest * scale))
    return Context(default=scaled, limit=scaled, rows=scaled)


def _rope(keys: Keys) -> Mapping[str, JsonValue]:
    """`rope_scaling`, or `rope_parameters` as newer files have it, alone or one for each kind of layer."""
    rope = keys.part("rope_scaling") or keys.part("rope_parameters")
    parts = [part for part in rope.values() if isinstance(part, Mapping)]
    scaled = [part for part in parts if part.get("factor")]
    return (scaled or parts)[0] if parts and "rope_type" not in rope else rope


def _whole(value: JsonValue) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST else 0

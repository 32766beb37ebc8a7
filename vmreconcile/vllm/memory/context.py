"""The longest context that vLLM takes of a model when no `--max-model-len` is given. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.keys import LONGEST, Keys

WITHOUT_ANY = 2048
"""vllm/config/model.py: _get_and_verify_max_len (0.22.1), where no key says a length."""


def longest_context(keys: Keys, model_type: str) -> int:
    """Tokens: the smallest length that config.json names, scaled as its rotary embedding is.

    vllm/config/model.py: _get_and_verify_max_len (0.22.1). Gemma 3 says its length scaled already; longrope stays at
    the original length unless a longer one is asked for.
    """
    said = [value for name in LONGEST if (value := keys.count(name))]
    longest = keys.count("model_max_length") or min(said, default=WITHOUT_ANY)
    rope = _rope(keys)
    kind = str(rope.get("rope_type") or rope.get("type") or "")
    original = _whole(rope.get("original_max_position_embeddings"))
    if not rope or "gemma3" in model_type:
        return longest
    if kind in {"longrope", "su"}:
        return keys.count("original_max_position_embeddings") or original or longest
    if kind == "llama3":
        return longest
    factor = rope.get("factor")
    scale = float(factor) if isinstance(factor, int | float) and not isinstance(factor, bool) else 1.0
    if kind == "yarn" and original:
        longest = original
    return max(1, int(longest * scale)) if kind not in {"", "default", "mrope"} else longest


def _rope(keys: Keys) -> Mapping[str, JsonValue]:
    """`rope_scaling`, or `rope_parameters` as newer files have it, alone or one for each kind of layer."""
    rope = keys.part("rope_scaling") or keys.part("rope_parameters")
    inner = next((part for part in rope.values() if isinstance(part, Mapping)), None)
    return inner if inner is not None and "rope_type" not in rope else rope


def _whole(value: JsonValue) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

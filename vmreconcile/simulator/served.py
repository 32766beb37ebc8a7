"""What can be known of the model that is to be served without loading it, and the failures that follow from that.

Owns reading a model's folder and the made-up hub ids that fail. Must not ask the Hub: any other hub id is taken to
exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.simulator.memory import BYTES_PER_TOKEN, GIB

DEFAULT_LIMIT = 2048
GATED = "simulator/gated"
MISSING = "simulator/missing"
BAD_TOKEN = "hf_bad"  # noqa: S105 - the start of a token that is made up to be refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model as its folder tells: `limit` tokens of context (0: unknown), bytes of KV cache a token, weights in GiB.

    `weights_gib` is None where there are none to look at. `failure` names a class in `failures.FAILURES`, or "".
    """

    limit: int = 0
    bytes_per_token: int = BYTES_PER_TOKEN
    weights_gib: float | None = None
    failure: str = ""


def look_at(model: str, environ: Mapping[str, str]) -> ServedModel:
    """Find out about `model`, a hub id or a folder's absolute path."""
    if model.startswith(GATED):
        token = environ.get("HF_TOKEN", "")
        return ServedModel(failure="gated" if not token else "bad-token" if token.startswith(BAD_TOKEN) else "")
    if model.startswith(MISSING):
        return ServedModel(failure="no-such-repo")
    if not Path(model).is_absolute():
        return ServedModel()
    try:
        config = json.loads(Path(model, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ServedModel(failure="bad-path")
    return _from_config(config, model)


def _from_config(config: Mapping[str, object], folder: str) -> ServedModel:
    """Work out the sizes from a Hugging Face configuration; what it lacks keeps its default."""

    def number(name: str, default: int = 0) -> int:
        value = config.get(name)
        return value if isinstance(value, int) else default

    heads = number("num_attention_heads", 1)
    head_size = number("head_dim") or number("hidden_size") // max(1, heads)
    width = 4 if config.get("torch_dtype", config.get("dtype")) == "float32" else 2
    per_token = 2 * number("num_hidden_layers") * number("num_key_value_heads", heads) * head_size * width
    sizes = [path.stat().st_size for path in Path(folder).glob("*.safetensors")]
    return ServedModel(
        limit=number("max_position_embeddings"),
        bytes_per_token=per_token or BYTES_PER_TOKEN,
        weights_gib=sum(sizes) / GIB if sizes else None,
    )

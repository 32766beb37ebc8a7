"""What a model says of its KV cache and of cordons, from the words of a file to values. Pure; raises nothing."""

from __future__ import annotations

from vmreconcile.core.connection import FALSE, TRUE
from vmreconcile.model.desired import CORDONED
from vmreconcile.model.gpus import Needs
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.kinds import human_int

MOST_TOKENS = 10**12
"""More than any memory holds."""


def needs_of(value: JsonValue) -> Needs:
    """`needs:` of a model, with its overrides laid over it."""
    said = value if isinstance(value, dict) else {}
    return Needs(kv_tokens=tokens_of(said.get("kv_tokens")), concurrency=requests_of(said.get("concurrency")))


def tokens_of(value: object) -> int | None:
    """Read a count of tokens, as vLLM writes them (200k = 200000, 256K = 262144); None for anything else."""
    if isinstance(value, str):
        try:
            value = human_int(value)
        except (ValueError, OverflowError):
            return None
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_TOKENS
    return value if fits else None  # type: ignore[return-value] # an integer here


def requests_of(value: object) -> float | None:
    """Read a number of requests above 0; None for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MOST_TOKENS
    return float(value) if fits else None  # type: ignore[arg-type] # a number here


def cordon_of(value: JsonValue) -> str:
    """Why nothing is started, "" where there is no cordon.

    INI inventories have no truth values in lower case, so the words that Ansible takes for them count as such.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        return CORDONED if word in TRUE else "" if word in FALSE else " ".join(value.split())
    return CORDONED if value is True else ""


def cordoned_gpus_of(value: JsonValue) -> tuple[str, ...]:
    """GPUs as they were written: indices, and UUIDs or beginnings of them; each once."""
    return tuple(dict.fromkeys(str(item) for item in value)) if isinstance(value, list) else ()

"""Measured memory beside what was predicted, as a person reads it: a cell of `status`, a part of `show`. Pure."""

from __future__ import annotations

from vmreconcile.cli.terminal import printable
from vmreconcile.core.gpus.figures import deviation
from vmreconcile.model.gpus import Measured
from vmreconcile.model.values import JsonValue

GIB = 1 << 30
ROWS = (
    ("weights", "weights_bytes"),
    ("all but KV", "beside_bytes"),
    ("CUDA graphs", "graph_bytes"),
    ("KV cache", "kv_bytes"),
    ("KV tokens", "kv_tokens"),
)


def tokens_cell(measured: Measured | None) -> str:
    """Tokens of the KV cache, and by how much their prediction was off: '872,992 (-0.3 %)'."""
    if measured is None or measured.figures.kv_tokens is None:
        return ""
    tokens, predicted = measured.figures.kv_tokens, measured.predicted
    off = _off(tokens, predicted.kv_tokens if predicted else None)
    return f"{tokens:,} ({off})" if off else f"{tokens:,}"


def memory_lines(memory: JsonValue) -> list[str]:
    """`memory` of a server's document: every figure that is known, both ways, and where it was measured."""
    if not isinstance(memory, dict):
        return []
    measured, predicted = _part(memory, "measured"), _part(memory, "predicted")
    shown = [(name, measured.get(key), predicted.get(key), key) for name, key in ROWS]
    rows = [
        f"  {name:<14}{_size(seen, key):>12}{_size(said, key):>14}{_off(seen, said):>11}".rstrip()
        for name, seen, said, key in shown
        if isinstance(seen, int) or isinstance(said, int)
    ]
    at = f"gpu_memory_utilization {memory['utilization']:g}"
    length = memory.get("max_model_len")
    at += f", a context of {length:,}" if isinstance(length, int) else ""
    where = f"  at {at}, of {memory['gpu']}, vLLM {memory['vllm_version']}"
    return [f"  {'':<14}{'measured':>12}{'predicted':>14}", *rows, printable(where)]


def _part(memory: dict[str, JsonValue], name: str) -> dict[str, JsonValue]:
    part = memory.get(name)
    return part if isinstance(part, dict) else {}


def _size(value: JsonValue, key: str) -> str:
    if not isinstance(value, int):
        return "-"
    return f"{value / GIB:.2f} GiB" if key.endswith("_bytes") else f"{value:,}"


def _off(measured: JsonValue, predicted: JsonValue) -> str:
    """The deviation of a prediction in per cent, "" where it cannot be told."""
    if not isinstance(measured, int) or not isinstance(predicted, int):
        return ""
    off = deviation(measured, predicted)
    return "" if off is None else f"{100 * off:+.1f} %"

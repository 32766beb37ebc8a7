"""A prediction as `Figures`, measured and predicted as JSON, and how far they are apart. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

from vmreconcile.model.gpus import Figures, Measured
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.arguments import Gpu, UnfitArgumentsError, planned
from vmreconcile.vllm.memory.kv import UnevenPagesError
from vmreconcile.vllm.memory.predict import Prediction, predict
from vmreconcile.vllm.memory.reading import UnknownShapeError, read_shape
from vmreconcile.vllm.memory.stored import Checkpoint

KEYS: Mapping[str, str] = {
    "weights": "weights_bytes",
    "beside": "beside_bytes",
    "graphs": "graph_bytes",
    "kv_bytes": "kv_bytes",
    "kv_tokens": "kv_tokens",
}
"""Figures by the names that JSON has for them, where `fit --json` has them the same."""


def figures_from(prediction: Prediction) -> Figures:
    """What was predicted for the tightest GPU."""
    return Figures(
        weights=prediction.terms.weights,
        beside=prediction.terms.total,
        graphs=prediction.terms.graphs,
        kv_bytes=prediction.kv_bytes,
        kv_tokens=prediction.tokens,
    )


def predicted_for(checkpoint: Checkpoint, arguments: Mapping[str, JsonValue], gpu: Gpu, version: str) -> Figures | None:
    """What is predicted for a vLLM that was started with `arguments`, by canonical name; None where nobody can say."""
    try:
        return figures_from(
            predict(planned(read_shape(checkpoint.config), arguments, gpu, version), checkpoint.tensors)
        )
    except (UnknownShapeError, UnevenPagesError, UnfitArgumentsError):
        return None


def completed(measured: Measured, before: Measured | None) -> Measured:
    """A measurement with what only an earlier one of the same start, or of one just like it, still told.

    The beginning of a long log, where most is told, may be out of reach by the time that it is read again.
    """
    if before is None or _held_for(before) != _held_for(measured):
        return measured
    return replace(
        measured,
        figures=Figures(
            **{
                name: getattr(before.figures if getattr(measured.figures, name) is None else measured.figures, name)
                for name in KEYS
            }
        ),
        predicted=measured.predicted or before.predicted,
    )


def _held_for(measured: Measured) -> Measured:
    return replace(measured, figures=Figures(), predicted=None)


def record_json(measured: Measured) -> dict[str, JsonValue]:
    """As the ownership record on the host holds it (docs/wire.md)."""
    return asdict(measured)


def memory_json(measured: Measured | None) -> dict[str, JsonValue] | None:
    """`memory` of `status --json` and `show --json`; bytes and tokens of one GPU, null for what is not known."""
    if measured is None:
        return None
    return {
        "measured": _figures_json(measured.figures),
        "predicted": None if measured.predicted is None else _figures_json(measured.predicted),
        "utilization": measured.utilization,
        "max_model_len": measured.max_model_len,
        "gpu": measured.gpu,
        "vllm_version": measured.vllm_version,
    }


def _figures_json(figures: Figures) -> dict[str, JsonValue]:
    return {key: getattr(figures, name) for name, key in KEYS.items()}


def deviation(measured: int, predicted: int) -> float | None:
    """By how much the prediction is above what was measured, as a part of that; None where there is nothing of it."""
    return predicted / measured - 1 if measured > 0 else None

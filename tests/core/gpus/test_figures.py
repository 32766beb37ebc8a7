"""Figures: of a prediction, as JSON on the wire and outside, and how far two are apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.gpu_views import CONFIGS
from tests.vllm.memory.recorded import RUNS, runs, said
from vmreconcile.core.gpus.figures import (
    KEYS,
    completed,
    deviation,
    figures_from,
    memory_json,
    predicted_for,
    record_json,
)
from vmreconcile.effects.observe import host_view
from vmreconcile.model.gpus import Figures, Measured
from vmreconcile.vllm.memory.gpus import gpu_of
from vmreconcile.vllm.memory.stored import Checkpoint

FOUND = Measured(
    key="0123456789abcdef",
    gpu="NVIDIA H100 80GB HBM3",
    gpu_memory=85_017_755_648,
    vllm_version="0.22.1",
    utilization=0.8,
    max_model_len=None,
    figures=Figures(weights=1, beside=2, kv_bytes=4, kv_tokens=5),
    predicted=Figures(weights=6, beside=7, graphs=8, kv_bytes=9, kv_tokens=10),
)


def test_a_prediction_has_the_same_figures() -> None:
    """Beside is the sum of its terms: what is requested, less the KV cache."""
    found = said("qwen2.5-7b", gpu_memory_utilization=0.8)
    figures = figures_from(found)
    assert (figures.weights, figures.graphs) == (found.terms.weights, found.terms.graphs)
    assert figures.beside == found.planned.serving.requested - found.kv_bytes
    assert (figures.kv_bytes, figures.kv_tokens) == (found.kv_bytes, found.tokens)
    checkpoint = Checkpoint(config=CONFIGS["qwen2.5-7b"], tensors=None, source=str(RUNS))
    assert predicted_for(checkpoint, {"gpu_memory_utilization": 0.8}, gpu_of("H100"), "0.22.1") == figures


@pytest.mark.parametrize("run", [run for run in runs() if run.row["outcome"] == "ready"], ids=str)
def test_predictions_and_measurements_can_be_compared(run: object) -> None:
    """For every recorded run: the deviation that docs/fit.md promises, by the function that status shows."""
    row, found = run.row, figures_from(run.predicted())  # type: ignore[attr-defined]
    off = deviation(row["kv_tokens"], found.kv_tokens or 0)
    assert off is not None
    assert abs(off) < 0.05


@pytest.mark.parametrize(
    ("config", "arguments"),
    [
        ({}, {}),
        ({"architectures": ["Mystery"]}, {}),
        (CONFIGS["qwen2.5-7b"], {"tensor_parallel_size": 5}),
        (CONFIGS["qwen2.5-7b"], {"max_model_len": 1 << 30}),
    ],
)
def test_nobody_can_say(config: dict[str, object], arguments: dict[str, object]) -> None:
    """A model that is not known, or arguments that vLLM refuses."""
    checkpoint = Checkpoint(config=config, tensors=None, source="tests")  # type: ignore[arg-type]
    assert predicted_for(checkpoint, arguments, gpu_of("H100"), "0.22.1") is None  # type: ignore[arg-type]


@pytest.mark.parametrize("measured", [FOUND, Measured(key="f", gpu="", gpu_memory=0, vllm_version="", utilization=0.0)])
def test_a_record_is_read_as_it_was_written(measured: Measured) -> None:
    """Through the answer of a host."""
    server = {"slug": "m", "record": {"server": "m", "measured": record_json(measured)}}
    view = host_view("h1", "00" * 8, {"observation": {"format": 1, "servers": [server]}})
    record = view.server("m").record
    assert record is not None
    assert record.measured == measured


def test_what_was_known_of_the_same_stays_known() -> None:
    """Each figure that the new one does not tell; nothing of a start with another share, key, version or GPU."""
    later = replace(FOUND, figures=Figures(kv_tokens=50), predicted=None)
    assert completed(later, FOUND) == replace(FOUND, figures=replace(FOUND.figures, kv_tokens=50))
    assert completed(FOUND, later) == FOUND
    assert completed(later, None) == later
    for other in ({"utilization": 0.9}, {"key": "f"}, {"vllm_version": "0.23.0"}, {"gpu": "x"}, {"max_model_len": 5}):
        assert completed(later, replace(FOUND, **other)) == later  # type: ignore[arg-type]


def test_documents_have_bytes_in_their_names() -> None:
    """The names of `fit --json`."""
    assert memory_json(None) is None
    assert memory_json(FOUND) == {
        "measured": {"weights_bytes": 1, "beside_bytes": 2, "graph_bytes": None, "kv_bytes": 4, "kv_tokens": 5},
        "predicted": {"weights_bytes": 6, "beside_bytes": 7, "graph_bytes": 8, "kv_bytes": 9, "kv_tokens": 10},
        "utilization": 0.8,
        "max_model_len": None,
        "gpu": "NVIDIA H100 80GB HBM3",
        "vllm_version": "0.22.1",
    }
    assert set(KEYS) == set(Figures.__dataclass_fields__)


def test_a_deviation_is_a_part_of_what_was_measured() -> None:
    """Above zero where more was predicted; none where nothing was measured."""
    assert deviation(872_992, 870_100) == pytest.approx(-0.0033, abs=0.0001)
    assert deviation(0, 5) is None
    assert deviation(-5, 5) is None

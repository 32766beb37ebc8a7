"""How many GPUs of its host one vLLM takes."""

from __future__ import annotations

import pytest

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import catalogue_for, versions
from vmreconcile.vllm.world import WORLD, gpus_needed


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 1),
        ({"tensor_parallel_size": None}, 1),
        ({"tensor_parallel_size": 4}, 4),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 3}, 6),
        ({"tensor_parallel_size": 2, "prefill_context_parallel_size": 2}, 4),
        ({"tensor_parallel_size": 4, "decode_context_parallel_size": 2}, 4),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4}, 8),
        ({"tensor_parallel_size": 2, "data_parallel_size": 8, "data_parallel_size_local": 4}, 8),
        ({"tensor_parallel_size": 2, "data_parallel_size": 8, "data_parallel_size_local": 0}, 0),
        ({"tensor_parallel_size": 2, "data_parallel_size": 8, "data_parallel_rank": 0}, 2),
        ({"data_parallel_size": 8, "data_parallel_external_lb": True}, 1),
        ({"data_parallel_size": 8, "data_parallel_external_lb": False}, 8),
        ({"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "nnodes": 1}, 2),
    ],
)
def test_sizes_are_multiplied(settings: dict[str, JsonValue], expected: int) -> None:
    """As vLLM works out its world, for the engines of this host."""
    assert gpus_needed(settings) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"tensor_parallel_size": 8, "nnodes": 2},
        {"tensor_parallel_size": 8, "distributed_executor_backend": "ray"},
        {"tensor_parallel_size": 8, "distributed_executor_backend": "external_launcher"},
        {"data_parallel_size": 8, "data_parallel_backend": "ray"},
        {"tensor_parallel_size": 0},
        {"tensor_parallel_size": True},
        {"tensor_parallel_size": "2"},
        {"tensor_parallel_size": 10**9},
        {"data_parallel_size_local": False},
    ],
)
def test_what_cannot_be_known_is_not_guessed(settings: dict[str, JsonValue]) -> None:
    """Workers on other hosts, and sizes that are none."""
    assert gpus_needed(settings) is None


def test_the_settings_are_vllms() -> None:
    """Each of them is an argument of the newest version, and most are of the oldest."""
    assert catalogue_for().arguments.keys() >= WORLD
    older = catalogue_for(versions()[0]).arguments.keys()
    assert WORLD - older == {"nnodes", "prefill_context_parallel_size", "data_parallel_external_lb"}

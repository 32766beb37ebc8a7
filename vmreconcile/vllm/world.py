"""How many GPUs of its host one vLLM takes, from its settings. Pure.

After vLLM's own rules (config/parallel.py: ParallelConfig.world_size, engine/arg_utils.py: create_engine_config; read
in 0.32.0). Decode context parallel is not counted: it runs on the GPUs of the tensor-parallel group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vmreconcile.model.values import JsonValue

ENGINE_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
"""What is multiplied for the GPUs of one engine."""

WORLD = frozenset(
    {
        *ENGINE_SIZES,
        "data_parallel_size",
        "data_parallel_size_local",
        "data_parallel_rank",
        "data_parallel_external_lb",
        "data_parallel_backend",
        "distributed_executor_backend",
        "nnodes",
    }
)
"""The settings that decide it."""

LARGEST = 4096
"""A larger size is a slip, and no number of GPUs."""

_ON_THIS_HOST = ("mp", "uni")


def gpus_needed(settings: Mapping[str, JsonValue]) -> int | None:
    """Count the GPUs of this host for one server; None where its settings do not tell (Ray, several hosts).

    `settings` are by canonical name; a size that is not there, or null, is vLLM's default, 1. 0 is possible:
    `data_parallel_size_local: 0` has every engine elsewhere.
    """
    if _spans_hosts(settings):
        return None
    sizes = [_size(settings.get(name)) for name in ENGINE_SIZES]
    engines = _engines(settings)
    known = [size for size in (*sizes, engines) if size is not None]
    return math.prod(known) if len(known) == len(ENGINE_SIZES) + 1 else None


def _spans_hosts(settings: Mapping[str, JsonValue]) -> bool:
    """Whether workers may be on other hosts, or whoever starts them decides where they are."""
    executor = settings.get("distributed_executor_backend")
    return (
        settings.get("nnodes") not in (None, 1)
        or settings.get("data_parallel_backend") == "ray"
        or not (executor is None or executor in _ON_THIS_HOST)
    )


def _engines(settings: Mapping[str, JsonValue]) -> int | None:
    """Data-parallel engines on this host: all, those that are said to be local, or the one that has a rank given."""
    if settings.get("data_parallel_external_lb") is True or settings.get("data_parallel_rank") is not None:
        return 1
    local = settings.get("data_parallel_size_local")
    if local is not None:
        return 0 if local == 0 and not isinstance(local, bool) else _size(local)
    return _size(settings.get("data_parallel_size"))


def _size(value: JsonValue) -> int | None:
    """One size; None for what is none."""
    if value is None:
        return 1
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST
    return int(value) if fits else None  # type: ignore[arg-type] # an integer here

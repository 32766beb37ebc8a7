"""tmp: replaced by branch schema."""

from __future__ import annotations

import math
from collections.abc import Mapping

from vmreconcile.model.values import JsonValue


def gpus_needed(settings: Mapping[str, JsonValue]) -> int | None:
    """Tmp."""
    sizes = [settings.get(n) for n in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")]
    return math.prod(s for s in sizes if isinstance(s, int) and s > 0)

"""The prediction: every term, what is left for the KV cache, whether it suffices, and what would help. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmreconcile.vllm.memory.activation import peak
from vmreconcile.vllm.memory.arguments import Planned
from vmreconcile.vllm.memory.graphs import graph_bytes
from vmreconcile.vllm.memory.kv import Pool, pool
from vmreconcile.vllm.memory.shape import Shape
from vmreconcile.vllm.memory.sizes import GIB, split
from vmreconcile.vllm.memory.stored import Tensor, weigh_stored
from vmreconcile.vllm.memory.weights import Stage, slack, weigh

CONTEXT = GIB // 2
"""What CUDA takes for a process before vLLM looks at what is free: 0.51 GiB on an H100."""

GROUP = GIB * 183 // 100
"""What communication between the GPUs of a tensor-parallel group takes: NCCL's buffers and kernels, measured on
H100s with NVLink for two and four GPUs (docs/fit.md)."""

COARSEST = 0.01
"""Step of a suggested utilization."""


class Verdict(enum.StrEnum):
    """What will become of a start, as `fit --json` says it."""

    OK = "ok"
    NO_KV_MEMORY = "no_kv_memory"
    KV_TOO_SMALL = "kv_too_small"
    WEIGHTS_TOO_LARGE = "weights_too_large"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one GPU holds beside the KV cache, in bytes."""

    weights: int
    activation: int
    overhead: int
    graphs: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.activation + self.overhead + self.graphs


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One GPU of the tightest pipeline stage. Bytes, tokens, and requests of the longest context at once.

    `needed` is the KV cache of one request of the longest context. `better_utilization` and `better_length` are what
    to change, each alone, 0 where that does not help or nothing needs help. `doubts` say why it may be wrong.
    """

    planned: Planned
    terms: Terms
    kv_bytes: int
    needed: int
    tokens: int
    concurrency: float
    verdict: Verdict
    uncertainty: int
    from_files: bool
    better_utilization: float = 0.0
    better_length: int = 0
    doubts: tuple[str, ...] = ()


def predict(planned: Planned, tensors: Sequence[Tensor] | None = None) -> Prediction:
    """Predict with the weights of `tensors` where they are known, else with those that the shape has.

    Raises:
        UnevenPagesError: vLLM cannot give the layers of this model one KV cache.
    """
    stages = _stages(planned.shape, planned.serving.pipeline_parallel)
    stored = weigh_stored(tensors, planned.shape, planned.serving) if tensors and _as_stored(planned) else ()
    found = [_stage(planned, stage, stored[index] if stored else None) for index, stage in enumerate(stages)]
    return min(found, key=lambda one: (one.verdict is Verdict.OK, one.concurrency, one.kv_bytes))


def _as_stored(planned: Planned) -> bool:
    """Whether the model is served as its files hold it, and not quantised while it is loaded."""
    quantised = planned.shape.quantisation
    return quantised is None or quantised.stored


def _stages(shape: Shape, count: int) -> list[Stage]:
    stages = []
    begin = 0
    for index, layers in enumerate(split(len(shape.layers), count)):
        held = shape.layers[begin : begin + layers]
        stages.append(Stage(layers=held, first=index == 0, last=index == count - 1))
        begin += layers
    return stages


def _stage(planned: Planned, stage: Stage, stored: int | None) -> Prediction:
    shape, serving, ways = planned.shape, planned.serving, planned.behaviour
    pages = pool(stage.layers, shape.layers, serving)
    terms = Terms(
        weights=weigh(shape, stage, serving) if stored is None else stored + slack(shape, stage, serving),
        activation=peak(shape, stage, serving, ways).total,
        overhead=ways.non_torch + (GROUP if serving.tensor_parallel > 1 else 0),
        graphs=graph_bytes(shape, stage, serving, ways),
    )
    room = serving.requested - terms.total if serving.kv_bytes is None else serving.kv_bytes
    length = serving.max_model_len
    if planned.fits_itself:
        length = pages.longest(room, length, serving.in_flight) or length
        planned = replace(planned, serving=replace(serving, max_model_len=length))
    size = max(0, room)
    found = Prediction(
        planned=planned,
        terms=terms,
        kv_bytes=room,
        needed=pages.needed(length, serving.in_flight),
        tokens=pages.tokens(size, length, serving.in_flight, by_group=ways.tokens_by_group),
        concurrency=pages.concurrency(size, length, serving.in_flight),
        verdict=Verdict.OK,
        uncertainty=_uncertainty(planned, terms, from_files=stored is not None),
        from_files=stored is not None,
        doubts=(*shape.doubts, *(f"its {part} part is only estimated" for part in shape.beside)),
    )
    found = replace(found, verdict=_verdict(found))
    return found if found.verdict is Verdict.OK else _mended(found, pages)


def _verdict(found: Prediction) -> Verdict:
    """What will happen; unknown where the shape is in doubt and the bracket holds more than one answer."""
    low, high = (_outcome(found, found.kv_bytes + sign * found.uncertainty, sign) for sign in (-1, 1))
    middle = _outcome(found, found.kv_bytes, 0)
    in_doubt = not found.planned.shape.known or bool(found.planned.shape.beside)
    return Verdict.UNKNOWN if in_doubt and not low == middle == high else middle


def _outcome(found: Prediction, room: int, sign: int) -> Verdict:
    """The verdict with `room` for the KV cache (vllm/v1/core/kv_cache_utils.py: _check_enough_kv_cache_memory)."""
    serving, terms = found.planned.serving, found.terms
    loaded = terms.weights + terms.activation + terms.overhead - sign * found.uncertainty
    if loaded > serving.total - CONTEXT:
        return Verdict.WEIGHTS_TOO_LARGE
    if room <= 0:
        return Verdict.NO_KV_MEMORY
    return Verdict.OK if found.needed <= room else Verdict.KV_TOO_SMALL


def _mended(found: Prediction, pages: Pool) -> Prediction:
    """With the smallest utilization, and the longest context, that would do."""
    serving = found.planned.serving
    wanted = (found.terms.total + found.needed) / serving.total
    utilization = math.ceil(round(wanted / COARSEST, 6)) * COARSEST
    ceiling = math.floor((serving.total - CONTEXT) / serving.total / COARSEST) * COARSEST
    helps = serving.kv_bytes is None and serving.utilization < utilization <= ceiling
    length = pages.longest(found.kv_bytes, serving.max_model_len, serving.in_flight) if found.kv_bytes > 0 else 0
    return replace(
        found,
        better_utilization=round(utilization, 2) if helps else 0.0,
        better_length=length if length < serving.max_model_len else 0,
    )


def _uncertainty(planned: Planned, terms: Terms, *, from_files: bool) -> int:
    """Bytes by which the KV cache may differ: what measurements have shown (docs/fit.md), and more for doubts."""
    shape, serving = planned.shape, planned.serving
    weights = 0.005 if from_files else 0.01
    if not shape.known and not from_files:
        weights = 0.35 if shape.doubts else 0.05
    if shape.quantisation is not None and not from_files:
        weights = max(weights, 0.05 if shape.quantisation.known else 0.5)
    rest = 0.05 * terms.activation + 0.4 * terms.graphs + planned.gpu.uncertainty * serving.utilization
    rest += GIB // 2 if serving.tensor_parallel > 1 else 0
    rest += 0 if planned.behaviour.measured else GIB // 2
    rest += (GIB + 0.25 * terms.activation) if shape.doubts or shape.beside else 0.0
    rest += 0.5 * shape.extra * shape.itemsize if not from_files else 0.0
    return int(terms.weights * weights + rest + GIB // 4)

"""What a server needs of each of its GPUs, in bytes: as vLLM measured it before, else as it is predicted. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Measured
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.arguments import Gpu, UnfitArgumentsError, planned
from vmreconcile.vllm.memory.kv import UnevenPagesError
from vmreconcile.vllm.memory.predict import Prediction, predict
from vmreconcile.vllm.memory.reading import UnknownShapeError, read_shape
from vmreconcile.vllm.memory.sizes import GIB, MIB
from vmreconcile.vllm.memory.stored import Checkpoint

SHARE = "gpu_memory_utilization"
LENGTH = "max_model_len"
GIVEN = "kv_cache_memory_bytes"
"""The argument with which somebody says the size of the KV cache, whatever the share."""

ENOUGH = 1 << 42
"""Bytes of a KV cache in which every model has tokens: to learn what a token takes."""

STARTING_LENGTH = 4096
"""Tokens that a context left to the tool has at least, where the model's own is not shorter."""

MEASURED_AGAIN = 256 * MIB
"""By how much two starts of one model on one kind of GPU were seen to differ, and a little more (docs/fit.md)."""

UNREAD = "the files of its model could not be read"

OTHER_LENGTH = 1.1
"""Layers with a window make a token's share depend on the context; measured at another one it is taken with this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Bytes on each GPU.

    `beside` the KV cache, `least` for one request of the longest context, `asked` for needs that were stated (0 for
    none), `token` for one token. `basis` is 'measured' or 'predicted'. `limit` is the model's own context in tokens, 0
    where that was not read.
    """

    beside: int
    least: int
    asked: int
    token: float
    basis: str
    limit: int = 0

    @property
    def total(self) -> int:
        """What it does not start without, or does not meet its needs."""
        return self.beside + max(self.least, self.asked)

    def longest(self, room: int, requests: float) -> int:
        """The longest context of which so many requests fit into `room` bytes of KV cache."""
        return int(room / self.token / max(1.0, requests)) if self.token else 0


def demand_of(
    server: DesiredServer, gpu: Gpu, version: str, checkpoint: Checkpoint | None, measured: Measured | None
) -> Demand | str:
    """What is needed, or in words why nobody can say. `measured` is of the same key, version and kind of GPU."""
    figures = measured.figures if measured else None
    if measured and figures and figures.beside and figures.kv_bytes and figures.kv_tokens and not is_open(server):
        return _from_measured(server, measured, figures.beside, figures.kv_bytes / figures.kv_tokens)
    if checkpoint is None:
        return UNREAD
    try:
        return _predicted(server, gpu, version, checkpoint)
    except UnknownShapeError as error:
        return f"its model is not known here: {error}"
    except UnevenPagesError as error:
        return f"the layers of its model have caches of different sizes ({error})"
    except UnfitArgumentsError as error:
        return f"vLLM does not start so: {error}"


def _from_measured(server: DesiredServer, measured: Measured, beside: int, token: float) -> Demand:
    length = length_of(server) or measured.max_model_len or 0
    if length != measured.max_model_len:
        token *= OTHER_LENGTH
    least = math.ceil(length * token)
    return Demand(
        beside=beside + MEASURED_AGAIN,
        least=least,
        asked=_given(server) or _asked(server, token, least),
        token=token,
        basis="measured",
    )


def _predicted(server: DesiredServer, gpu: Gpu, version: str, checkpoint: Checkpoint) -> Demand:
    shape = read_shape(checkpoint.config)
    arguments: dict[str, JsonValue] = {name: setting.value for name, setting in server.settings.items()}
    arguments.pop(SHARE, None)
    if is_open(server):
        arguments[LENGTH] = min(STARTING_LENGTH, shape.context.default)

    def told(more: dict[str, JsonValue]) -> Prediction:
        return predict(planned(shape, arguments | more, gpu, version), checkpoint.tensors)

    plain, wide = told({}), told({GIVEN: ENOUGH})
    token = ENOUGH / wide.tokens if wide.tokens else 0.0
    return Demand(
        beside=plain.terms.total + plain.uncertainty,
        least=plain.needed,
        asked=_given(server) or _asked(server, token, plain.needed),
        token=token,
        basis="predicted",
        limit=shape.context.default,
    )


def _given(server: DesiredServer) -> int:
    """The bytes that somebody wrote for the KV cache, which vLLM takes whatever it needs; 0 for none."""
    setting = server.settings.get(GIVEN)
    value = setting.value if setting else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _asked(server: DesiredServer, token: float, least: int) -> int:
    tokens, requests = server.needs.kv_tokens or 0, server.needs.concurrency or 0.0
    return math.ceil(max(tokens * token, requests * least))


def length_of(server: DesiredServer) -> int | None:
    """The context that somebody wrote, None where nobody did or it is left to the tool."""
    setting = server.settings.get(LENGTH)
    value = setting.value if setting else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def is_open(server: DesiredServer) -> bool:
    """Whether the context is left to the tool (`max_model_len: auto`, which newer vLLM calls -1)."""
    setting = server.settings.get(LENGTH)
    return setting is not None and setting.value in ("auto", -1)


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f}"

"""What a schema cannot say of one model: durations, and GPUs against parallelism. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from vmreconcile.core.checks.environment import GPUS
from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.core.durations import seconds
from vmreconcile.errors import Severity
from vmreconcile.model.document import Document, Path
from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import Catalogue

_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size")


def check_sense(document: Document, catalogue: Catalogue) -> Iterator[Finding]:
    """Look at the model, then at each override laid over it."""
    content = document.get()
    if not isinstance(content, dict):
        return
    yield from _check_layer((), content, {}, catalogue)
    overrides = content.get("overrides")
    for key, layer in overrides.items() if isinstance(overrides, Mapping) else ():
        if isinstance(layer, dict):
            yield from _check_layer(("overrides", key), layer, content, catalogue)


def _check_layer(
    path: Path, layer: Mapping[str, JsonValue], below: Mapping[str, JsonValue], catalogue: Catalogue
) -> Iterator[Finding]:
    yield from _check_duration(path, layer)
    if type(layer.get("gpus")) is int and layer["gpus"] != 0:
        yield Finding(
            path=(*path, "gpus"),
            code="gpus-not-placed",
            summary="A count of GPUs is not placed yet: vLLM takes the first ones it sees.",
            why="Two servers on one host would take the same GPUs.",
            remedy="Give indices where it matters, such as gpus: [2, 3].",
            severity=Severity.WARNING,
        )
    gpus = layer.get("gpus", below.get("gpus"))
    args = {**_mapping(below.get("args")), **_mapping(layer.get("args"))}
    env = {**_mapping(below.get("env")), **_mapping(layer.get("env"))}
    if not layer.keys() & {"gpus", "args", "env"}:
        return
    count = len(gpus) if isinstance(gpus, list) else gpus
    wanted = _world(args, catalogue)
    if isinstance(count, int) and not isinstance(count, bool) and wanted > count > 0:
        at = (*path, "gpus") if "gpus" in layer else (*path, "args")
        yield Finding(
            path=at,
            code="too-few-gpus",
            summary=f"{wanted} GPUs are needed, gpus gives {count}.",
            why="tensor_parallel_size x pipeline_parallel_size GPUs make one server.",
            remedy=f"Give {wanted} GPUs, or leave gpus out.",
            at_key=True,
        )
    if isinstance(gpus, list) and env.get(GPUS) is not None:
        yield Finding(
            path=(*path, "env", GPUS) if GPUS in _mapping(layer.get("env")) else (*path, "gpus"),
            code="env-owned",
            summary=f"{GPUS} and gpus say the same thing twice.",
            why="A list of GPUs is handed to the server in this very variable.",
            remedy="Keep gpus and remove the variable.",
            at_key=True,
        )


def _check_duration(path: Path, layer: Mapping[str, JsonValue]) -> Iterator[Finding]:
    timeout = _mapping(layer.get("health")).get("startup_timeout")
    if isinstance(timeout, str) and seconds(timeout) is None:
        at = (*path, "health", "startup_timeout")
        why = "startup_timeout is a number of seconds, or text such as 90s, 15m or 1h30m; a week at most."
        yield Finding(path=at, code="wrong-value", summary=f"{dotted(at)} cannot be {shown(timeout)}.", why=why)


def _world(args: Mapping[str, JsonValue], catalogue: Catalogue) -> int:
    """GPUs that one server takes on one host; 1 where it spans hosts, for then the host's share is not known here."""
    known = {catalogue.canonical(name): value for name, value in args.items()}
    if known.get("nnodes") not in (None, 1) or known.get("distributed_executor_backend") == "ray":
        return 1
    sizes = [known.get(name) for name in _PARALLEL]
    return math.prod(size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 4096)


def _mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}

"""What a schema cannot say of one model: durations, and what its keys mean together on its hosts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmreconcile.core.checks.gpus import check_gpus, check_needs
from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.core.checks.stacks import Stacks, mapping
from vmreconcile.core.durations import seconds
from vmreconcile.model.document import Document, Path
from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue


def check_sense(document: Document, stacks: Stacks) -> Iterator[Finding]:
    """Look at the model and each override by itself, then at what becomes of them on the model's hosts."""
    content = document.get()
    if not isinstance(content, dict):
        return
    yield from _check_duration((), content)
    for key, layer in mapping(document.get("overrides")).items():
        if isinstance(layer, dict):
            yield from _check_duration(("overrides", key), layer)
    for stack in stacks.of(document):
        yield from check_gpus(stack)
        yield from check_needs(stack)


def _check_duration(path: Path, layer: Mapping[str, JsonValue]) -> Iterator[Finding]:
    timeout = mapping(layer.get("health")).get("startup_timeout")
    if isinstance(timeout, str) and seconds(timeout) is None:
        at = (*path, "health", "startup_timeout")
        why = "startup_timeout is a number of seconds, or text such as 90s, 15m or 1h30m; a week at most."
        yield Finding(path=at, code="wrong-value", summary=f"{dotted(at)} cannot be {shown(timeout)}.", why=why)

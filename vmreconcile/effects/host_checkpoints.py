"""The agent's answer to `checkpoint`, parsed into what is known of models; trusts none of it (docs/wire.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from itertools import product

from vmreconcile.effects.checkpoint import MOST_LETTERS, MOST_TENSORS, is_flat, stored_tensor
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.stored import Checkpoint, Tensor

LONGEST_CONFIG = 8 << 20
"""Letters of a config.json as JSON in ASCII; the agent takes files of 1 MiB."""

LONGEST_NAME = 512
STAR = "*"
LARGEST_NUMBER = 10**6


def host_checkpoints(answer: Mapping[str, JsonValue], sources: Mapping[str, str]) -> dict[str, Checkpoint]:
    """By slug what a host has, of models that it was asked about; `sources` says of each where that is.

    A model without a usable config.json is left out; tensors that are not told in full and in form are None.
    """
    rows = answer.get("checkpoints")
    found: dict[str, Checkpoint] = {}
    for row in rows if isinstance(rows, list) else ():
        slug = row.get("slug") if isinstance(row, dict) else None
        config = row.get("config") if isinstance(row, dict) else None
        if isinstance(slug, str) and slug in sources and isinstance(config, dict) and _is_bearable(config):
            found[slug] = Checkpoint(config=config, tensors=_tensors(row), source=sources[slug])
    return found


def _is_bearable(config: dict[str, JsonValue]) -> bool:
    return is_flat(config) and len(json.dumps(config)) <= LONGEST_CONFIG


def _tensors(row: JsonValue) -> tuple[Tensor, ...] | None:
    """The tensors of a row, sorted by name."""
    rows = row.get("tensors") if isinstance(row, dict) else None
    try:
        return expanded(rows) if isinstance(rows, list) else None
    except ValueError:
        return None


def expanded(rows: list[JsonValue]) -> tuple[Tensor, ...]:
    """Every tensor that rows of the wire stand for, sorted by name; the other way round than the agent's `grouped`.

    Raises:
        ValueError: a row has another form, a name comes twice, there are none, or far too many.
    """
    found: dict[str, Tensor] = {}
    count = letters = 0
    for row in rows:
        if not isinstance(row, list) or len(row) not in {3, 4}:
            raise ValueError("a row is a name, a dtype, a shape, and perhaps boxes")
        like = stored_tensor(row[0], row[1], row[2])
        if len(like.name) > LONGEST_NAME:
            raise ValueError("no name is so long")
        boxes = _boxes(row[3], like.name) if len(row) == 4 else [[]]
        more = sum(math.prod(map(_size, box)) for box in boxes)
        count, letters = count + more, letters + more * len(like.name)
        if count > MOST_TENSORS or letters > MOST_LETTERS:
            raise ValueError("no model has so many tensors")
        names = [name for box in boxes for name in _names(like.name, box)] if len(row) == 4 else [like.name]
        found.update((name, Tensor(name=name, dtype=like.dtype, shape=like.shape)) for name in names)
    if len(found) != count or not found:
        raise ValueError("the tensors have not each a name")
    return tuple(found[name] for name in sorted(found))


Runs = list[range]


def _boxes(given: JsonValue, pattern: str) -> list[list[Runs]]:
    """The boxes of a row, each with runs for every star of the pattern."""
    stars = pattern.split(".").count(STAR)
    if not isinstance(given, list) or not stars:
        raise ValueError("boxes are a list, for a pattern with stars")
    boxes: list[list[Runs]] = []
    for box in given:
        if not isinstance(box, list) or len(box) != stars:
            raise ValueError("a box has runs for each star")
        boxes.append([_runs(each) for each in box])
    return boxes


def _runs(given: JsonValue) -> Runs:
    """The runs of one star, at least one: so no list of them is longer than the names that they make."""
    runs: Runs = []
    for run in given if isinstance(given, list) else ():
        match run:
            case [int() as first, int() as last] if 0 <= first <= last < LARGEST_NUMBER:
                runs.append(range(first, last + 1))
            case _:
                raise ValueError("a run has two ends")
    if not runs:
        raise ValueError("there is a run for each star")
    return runs


def _size(runs: Runs) -> int:
    return sum(map(len, runs))


def _names(pattern: str, box: list[Runs]) -> Iterator[str]:
    """Every name that a pattern and a box make."""
    parts = pattern.split(".")
    places = [at for at, part in enumerate(parts) if part == STAR]
    for numbers in product(*([number for run in runs for number in run] for runs in box)):
        for at, number in zip(places, numbers, strict=True):
            parts[at] = str(number)
        yield ".".join(parts)

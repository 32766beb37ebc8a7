"""The request `checkpoint`: what the files of models on this host say of them. Only reads, and no weights.

That is config.json, and names, dtypes and shapes of all tensors from the headers of the safetensors files. Repeated
layers and experts are told once, with their numbers: a model of 90,000 tensors is an answer of a few kilobytes.
"""

from __future__ import annotations

import json  # not `jsontext`: this tells encodings apart, and lets numbers without end be left out
import os
import time

from . import hub_cache, jsontext, proc, survey
from .folders import Folders
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Sequence

    from .frames import Channel

    Numbers = tuple[int, ...]
    Kind = tuple[str, int, str, tuple[int, ...]]

INDEX = "model.safetensors.index.json"
ENDING = ".safetensors"
LARGEST_INDEX = 1 << 25
LARGEST_HEADERS = 1 << 26  # of all files of a model: 200,000 tensors of 300 bytes; the format allows 100 MB for each
LARGEST_ANSWER = 1 << 22  # of one model's tensors; what cannot be told shortly is not told
MOST_TENSORS = 200_000
SECONDS = 10.0  # for the headers of all models of a request
DEEPEST = 50  # levels of a config.json
LONGEST_NAME = 512
LONGEST_DTYPE = 16
MOST_SIDES = 16
LARGEST_SIDE = 1 << 53
MOST_DIGITS = 6
MOST_STARS = 8  # numbers in a name that may be told together; models have up to four


def checkpoint(
    request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]
) -> dict[str, Any]:
    """Answer with config and tensors of each model, null where they are not there in full.

    Raises:
        Problem: `bad-request`.
    """
    del channel, progress
    models = request.get("models")
    if not hub_cache.are_models(models):
        raise Problem("bad-request", "checkpoint needs models with slug, model, revision and env")
    seen = survey.Survey(folders)
    until = time.monotonic() + SECONDS
    return {"checkpoints": [_checkpoint(row, seen, folders, until) for row in models or ()]}


def _checkpoint(row: dict[str, Any], seen: survey.Survey, folders: Folders, until: float) -> dict[str, Any]:
    """One model, at its path or in the cache that its server uses."""
    env = dict(seen.environment(row["slug"])[0])
    env.update(row["env"])
    folder = hub_cache.files_folder(row["model"], row["revision"], hub_cache.cache_folder(env, folders.home))
    config = read_config(folder) if folder else None
    return {"slug": row["slug"], "config": config, "tensors": None if config is None else read_tensors(folder, until)}


def read_config(folder: str) -> dict[str, Any] | None:
    """The whole config.json; None where there is none, or none of a bearable size. Infinite numbers become null."""
    data = _content(folder + "/config.json", hub_cache.LARGEST_CONFIG) or b""
    config = _parsed(data, parse_float=_finite, parse_constant=_nothing)
    return config if isinstance(config, dict) and _is_flat(config, DEEPEST) else None


def _is_flat(value: object, levels: int) -> bool:
    """Whether a value has at most so many levels: what could be read at the edge of the stack cannot be sent there."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inner)


def _finite(text: str) -> float | None:
    """A number, None for one that JSON cannot say again."""
    value = float(text)
    return value if abs(value) < float("inf") else None


def _nothing(name: str) -> None:
    """What stands for NaN and the infinities, which Python writes and JSON has not."""
    del name


def read_tensors(folder: str, until: float) -> list[list[Any]] | None:
    """Rows of all tensors in a folder; None where files are missing, damaged, too many, or take longer than `until`."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    left = LARGEST_HEADERS
    for name in files_of(folder):
        header, size = _header("{}/{}".format(folder, name), left)
        left -= size
        kinds = {tensor: _kind(tensor, row) for tensor, row in (header or {}).items()}
        if header is None or None in kinds.values():
            return None
        found.update((tensor, kind) for tensor, kind in kinds.items() if kind)
        if len(found) > MOST_TENSORS or time.monotonic() > until:
            return None
    rows = grouped(found)
    return rows if rows and len(jsontext.dumps(rows)) <= LARGEST_ANSWER else None


def files_of(folder: str) -> list[str]:
    """The safetensors files that are a model's; none where one of them is missing.

    Those that the index names; without one all, but not Mistral's own copy, and only if no part of a set is missing
    (`model-00001-of-00004.safetensors`): a fetch brings the index last.
    """
    if os.path.lexists("{}/{}".format(folder, INDEX)):
        index = _parsed(_content("{}/{}".format(folder, INDEX), LARGEST_INDEX) or b"")
        held = index.get("weight_map") if isinstance(index, dict) else None
        names = list(held.values()) if isinstance(held, dict) else []
        if not all(isinstance(name, str) and name.endswith(ENDING) and "/" not in name for name in names):
            return []
    else:
        try:
            names = [name for name in os.listdir(folder) if name.endswith(ENDING)]
        except OSError:
            return []
        names = [name for name in names if not name.startswith("consolidated")]
        if not _is_whole(names):
            return []
    names = sorted(set(names))
    return names if all(os.path.isfile("{}/{}".format(folder, name)) for name in names) else []


def _is_whole(names: Sequence[str]) -> bool:
    """Whether of each numbered set of files all are there."""
    sets: dict[tuple[str, int], int] = {}
    for name in names:
        start, of, count = name[: -len(ENDING)].rpartition("-of-")
        stem, dash, number = start.rpartition("-")
        if of and dash and name.isascii() and number.isdigit() and count.isdigit():
            sets[stem, int(count)] = sets.get((stem, int(count)), 0) + 1
    return all(found == count for (_, count), found in sets.items())


def _header(path: str, left: int) -> tuple[dict[str, Any] | None, int]:
    """The header of a safetensors file and its bytes; None where it is none, or has more than `left` bytes.

    Eight bytes of length, then JSON, which begins with a brace (the format's own words).
    """
    begin = _content(path, 9, whole=False) or b""
    size = int.from_bytes(begin[:8], "little")
    if len(begin) < 9 or begin[8:] != b"{" or not 2 <= size <= left:
        return None, 0
    data = _content(path, 8 + size, whole=False) or b""
    header = _parsed(data[8:]) if len(data) == 8 + size else None
    if not isinstance(header, dict):
        return None, size
    header.pop("__metadata__", None)
    return header, size


def _kind(name: str, row: object) -> tuple[str, tuple[int, ...]] | None:
    """The dtype and shape in a header's row; None where they are none."""
    if not isinstance(row, dict) or len(name) > LONGEST_NAME:
        return None
    dtype, shape = row.get("dtype"), row.get("shape")
    if not isinstance(dtype, str) or len(dtype) > LONGEST_DTYPE or not dtype.isascii():
        return None
    if not isinstance(shape, list) or len(shape) > MOST_SIDES or not dtype.replace("_", "").isalnum():
        return None
    good = all(type(side) is int and 0 <= side < LARGEST_SIDE for side in shape)
    return (dtype, tuple(shape)) if good else None


def _content(path: str, limit: int, *, whole: bool = True) -> bytes | None:
    """The first `limit` bytes of a regular file, or with `whole` all of one that is no larger; None for anything else.

    Links are followed: a cache's snapshots are links to its blobs. Nothing else is even opened.
    """
    if not os.path.isfile(path):
        return None
    data = proc.read(path, limit + 1 if whole else limit)
    return None if data is None or (whole and len(data) > limit) else data


def _parsed(data: bytes, **how: Any) -> Any:  # noqa: ANN401 - any JSON, checked by the caller
    """JSON of a file; None where it is none."""
    try:
        return json.loads(data, **how)
    except (ValueError, RecursionError):
        return None


def grouped(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> list[list[Any]]:
    """Rows `[name, dtype, shape]`, and for names that differ in numbers only `[pattern, dtype, shape, boxes]`.

    A `*` in a pattern stands for a number. A box has for each `*` the runs `[first, last]` that its number goes
    through, and means every combination of these.
    """
    kinds: dict[Kind, list[Numbers]] = {}
    for name, (dtype, shape) in tensors.items():
        pattern, numbers = _pattern(name)
        kinds.setdefault((pattern, len(numbers), dtype, shape), []).append(numbers)
    rows: list[list[Any]] = []
    for (pattern, stars, dtype, shape), held in sorted(kinds.items()):
        row = [pattern, dtype, list(shape)]
        rows.append([*row, _boxes(sorted(held))] if stars else row)
    return rows


def _pattern(name: str) -> tuple[str, Numbers]:
    """A name with `*` for each part that is a number, and these numbers."""
    if "*" in name:
        return name, ()
    parts, numbers = name.split("."), []
    for at, part in enumerate(parts):
        if part.isdigit() and part.isascii() and len(part) <= MOST_DIGITS and str(int(part)) == part:
            numbers.append(int(part))
            parts[at] = "*"
    return (".".join(parts), tuple(numbers)) if len(numbers) <= MOST_STARS else (name, ())


def _boxes(rows: Sequence[Numbers]) -> list[list[list[list[int]]]]:
    """Rows of numbers, all equally long, as boxes: those that go on alike are told together."""
    if not rows[0]:
        return [[]]
    below: dict[int, list[Numbers]] = {}
    for row in rows:
        below.setdefault(row[0], []).append(row[1:])
    alike: dict[tuple[Numbers, ...], list[int]] = {}
    for first, rests in below.items():
        alike.setdefault(tuple(rests), []).append(first)
    return [[_runs(firsts), *box] for rests, firsts in alike.items() for box in _boxes(rests)]


def _runs(numbers: Iterable[int]) -> list[list[int]]:
    """Ascending numbers as runs `[first, last]`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs

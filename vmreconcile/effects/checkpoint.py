"""What a model's files say of it: config.json and the headers of its safetensors, from a folder, the cache or the Hub.

Reads no weights. Imports huggingface_hub only when the Hub is asked.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from vmreconcile.effects.deadline import within
from vmreconcile.effects.hub import OVERALL_S, TIMEOUT_S, guard_cache, hub_client, refused
from vmreconcile.errors import Diagnostic, InputError, Place
from vmreconcile.model.access import Question, Verdict
from vmreconcile.model.secret import Secret
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.stored import Checkpoint, Tensor

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
_ID = re.compile(r"[\w][\w.-]*(?:/[\w.-]+)?", re.ASCII)
_REVISION = re.compile(r"[\w][\w./-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{6,64}")
_OF = re.compile(r"(.*)-\d+-of-(\d+)\.safetensors", re.ASCII)
"""One file of a numbered set, as the Hub and Transformers name them."""

LONGEST_TEXT = 32 << 20
LONGEST_HEADER = 100_000_000
"""The safetensors format's own limit."""
HEADERS_S = 60.0
"""For the headers of all files of a model, of which a large one has hundreds."""

DEEPEST = 50
"""Levels of a config.json, as for the agent."""

MOST_TENSORS = 200_000
MOST_LETTERS = 1 << 24
"""Of all names of a model's tensors together; those of 90,000 have half of it. More is not read: a line of an answer
can stand for gigabytes of names."""

MOST_SIDES = 16
MOST_ELEMENTS = 1 << 53
"""Of one tensor; more is a mistake or a joke, and no sum of such has to be borne."""


class HubError(Exception):
    """The Hub does not give a model's files, as its verdict says."""

    def __init__(self, verdict: Verdict) -> None:
        """Keep it; the message is what the Hub or the network said."""
        super().__init__(verdict.detail)
        self.verdict = verdict


def local_folder(text: str) -> Path | None:
    """The folder on this machine that a word means, whether it is there or not; None where it is an id on the Hub."""
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises for a user that nobody knows
    return path if text.startswith(("/", "./", "../", "~")) or _holds(path.is_dir) else None


def read_folder(folder: Path) -> Checkpoint:
    """Read a folder of a model.

    Raises:
        InputError: its config.json is missing or cannot be read, or a safetensors file is damaged.
    """
    path = folder / CONFIG
    if not _holds(path.is_file):
        what = f"{folder} has no {CONFIG}" if _holds(folder.is_dir) else f"{folder} is no folder"
        raise _problem(path, "fit-no-config", what, "name the folder that holds the model's config.json")
    config = _object(path)
    return Checkpoint(config=config, tensors=_tensors(folder), source=str(folder))


def read_cached(model: str, revision: str, cache: Path) -> Checkpoint | None:
    """Read what the Hub's cache has of a model, None for nothing.

    The layout is huggingface_hub's (docs: "Understand caching"): `refs/REVISION` holds a commit, `snapshots/COMMIT` the
    files. Its own function for this would cost its import.

    Raises:
        InputError: what is there is damaged.
    """
    name = revision or "main"
    if not _ID.fullmatch(model) or not _REVISION.fullmatch(name) or ".." in name:
        return None
    place = cache / f"models--{model.replace('/', '--')}"
    try:
        commit = (place / "refs" / name).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = name
    folder = place / "snapshots" / commit
    return read_folder(folder) if _COMMIT.fullmatch(commit) and _holds((folder / CONFIG).is_file) else None


def read_hub(question: Question, token: Secret | None, cache: Path) -> Checkpoint:
    """Ask the Hub for a model's config.json, which goes to the cache, and the headers of its safetensors.

    Without the headers, or where they do not come in time, there is config.json alone.

    Raises:
        HubError: it does not give config.json.
        InputError: the model has no config.json, or what it gives is none.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError  # noqa: PLC0415 - 60 ms

    client = hub_client(question.endpoint, token)
    guard_cache()
    revision = question.revision or None

    def download() -> str:
        client.model_info(question.model, revision=revision, timeout=TIMEOUT_S)  # the other call tries for 20 s
        return client.hf_hub_download(question.model, CONFIG, revision=revision, cache_dir=cache)

    try:
        path = within(OVERALL_S, download)
    except RemoteEntryNotFoundError:
        place = Path(question.model)
        raise _problem(
            place, "fit-no-config", f"it has no {CONFIG}", "name a model in the format of Transformers"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever the network, TLS or an odd answer makes of it
        raise HubError(refused(error, token)) from None
    tensors: tuple[Tensor, ...] | None = None
    with suppress(Exception):  # another format, a damaged file, or a Hub that has become slow: config.json alone tells
        held = within(HEADERS_S, lambda: client.get_safetensors_metadata(question.model, revision=revision))
        rows = {name: row for _, file in sorted(held.files_metadata.items()) for name, row in file.tensors.items()}
        if _is_bearable(rows):
            tensors = tuple(stored_tensor(name, row.dtype, list(row.shape)) for name, row in sorted(rows.items()))
    return Checkpoint(config=_object(Path(path)), tensors=tensors, source=f"{question.address}/{question.model}")


def stored_tensor(name: object, dtype: object, shape: object) -> Tensor:
    """One tensor as a file, a host or the Hub tells it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(shape, list):
        raise ValueError("a tensor has a name, a dtype and a shape")  # noqa: TRY004 - as its docstring says
    if len(shape) > MOST_SIDES or not all(type(side) is int and 0 <= side <= MOST_ELEMENTS for side in shape):
        raise ValueError("a shape is a list of sizes")
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError("no tensor is so large")
    return Tensor(name=name, dtype=dtype, shape=tuple(shape))


def is_flat(value: JsonValue, levels: int = DEEPEST) -> bool:
    """Whether JSON has so many levels at most: what can be read here may be too deep for who looks at it later."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(is_flat(each, levels - 1) for each in inner)


def _object(path: Path) -> dict[str, JsonValue]:
    """A JSON object of moderate size."""
    try:
        if path.stat().st_size > LONGEST_TEXT:
            raise _problem(path, "fit-bad-config", "it is far too long", "is it a config.json of Transformers?")
        content = json.loads(path.read_bytes())
    except OSError as error:
        reason = (error.strerror or "cannot be read").lower()
        raise _problem(path, "fit-bad-config", f"it cannot be read: {reason}", "mend its owner or mode") from None
    except (ValueError, RecursionError):
        raise _problem(path, "fit-bad-config", "it is no JSON", "fetch it again") from None
    if not isinstance(content, dict) or not is_flat(content):
        raise _problem(
            path,
            "fit-bad-config",
            "it holds no object, or one of far too many levels",
            "is it a config.json of Transformers?",
        )
    return content


def _holds(look: Callable[[], bool]) -> bool:
    """What a look at a path says; no, where a part of it is too long or closed to us."""
    try:
        return look()
    except OSError:
        return False


def _tensors(folder: Path) -> tuple[Tensor, ...] | None:
    """The tensors of a folder's safetensors files; None where there are none, or some of them are missing."""
    paths = [folder / name for name in sorted(_files(folder))]
    if not paths or not all(_holds(path.is_file) for path in paths):
        return None
    found = {tensor.name: tensor for path in paths for tensor in _header(path)}
    return tuple(found[name] for name in sorted(found)) or None if _is_bearable(found) else None


def _is_bearable(names: Collection[str]) -> bool:
    """Whether a model may have so many tensors."""
    return len(names) <= MOST_TENSORS and sum(map(len, names)) <= MOST_LETTERS


def _files(folder: Path) -> set[str]:
    """The safetensors files that are a model's; none where it cannot be that these are all.

    The index names them. Without one it is all of them, but not Mistral's own copy: and of a numbered set each has to
    be there, for a fetch that was cut off leaves a part of them, and brings the index last.
    """
    index = folder / INDEX
    if _holds(index.is_file):
        held = _object(index).get("weight_map")
        named = {str(name) for name in held.values()} if isinstance(held, dict) else set()
        return named if all(Path(name).name == name for name in named) else set()
    names = {path.name for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated")}
    sets = Counter(found.groups() for name in names if (found := _OF.fullmatch(name)))
    return names if all(int(count) == there for (_, count), there in sets.items()) else set()


def _header(path: Path) -> Iterable[Tensor]:
    """The tensors of one file: eight bytes of length, then JSON (the safetensors format)."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(size) if 2 <= size <= LONGEST_HEADER else b""
        content = json.loads(text)
        rows = [(name, row) for name, row in content.items() if name != "__metadata__"]
        return [stored_tensor(name, row["dtype"], row["shape"]) for name, row in rows]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise _problem(path, "fit-bad-safetensors", "its header cannot be read", "fetch the file again") from None


def _problem(path: Path, code: str, summary: str, remedy: str) -> InputError:
    return InputError((Diagnostic(place=Place(file=str(path)), code=code, summary=summary, remedy=remedy),))

"""What a model's files say of it: config.json and the headers of its safetensors, from a folder, the cache or the Hub.

Reads no weights. Imports huggingface_hub only when the Hub is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from vmreconcile.effects.deadline import within
from vmreconcile.effects.hub import OVERALL_S, hub_client, refused
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
LONGEST_TEXT = 16 << 20
LONGEST_HEADER = 100_000_000
"""The safetensors format's own limit."""
HEADERS_S = 60.0
"""For the headers of all files of a model, of which a large one has hundreds."""


class HubError(Exception):
    """The Hub does not give a model's files, as its verdict says."""

    def __init__(self, verdict: Verdict) -> None:
        """Keep it; the message is what the Hub or the network said."""
        super().__init__(verdict.detail)
        self.verdict = verdict


def read_folder(folder: Path) -> Checkpoint:
    """Read a folder of a model.

    Raises:
        InputError: its config.json is missing or cannot be read, or a safetensors file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        what = f"{folder} has no {CONFIG}" if folder.is_dir() else f"{folder} is no folder"
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
    return read_folder(folder) if _COMMIT.fullmatch(commit) and (folder / CONFIG).is_file() else None


def read_hub(question: Question, token: Secret | None, cache: Path) -> Checkpoint:
    """Ask the Hub for a model's config.json, which goes to the cache, and the headers of its safetensors.

    Raises:
        HubError: it does not give config.json.
        InputError: the model has no config.json, or what it gives is none.
    """
    from huggingface_hub.errors import (  # noqa: PLC0415 - 60 ms
        NotASafetensorsRepoError,
        RemoteEntryNotFoundError,
        SafetensorsParsingError,
    )

    client = hub_client(question.endpoint, token)
    revision = question.revision or None
    try:
        path = within(
            OVERALL_S,
            lambda: client.hf_hub_download(question.model, CONFIG, revision=revision, cache_dir=cache),
        )
    except RemoteEntryNotFoundError:
        place = Path(question.model)
        raise _problem(
            place, "fit-no-config", f"it has no {CONFIG}", "name a model in the format of Transformers"
        ) from None
    except Exception as error:  # noqa: BLE001 - whatever the network, TLS or an odd answer makes of it
        raise HubError(refused(error, token)) from None
    tensors: tuple[Tensor, ...] | None = None
    try:
        held = within(HEADERS_S, lambda: client.get_safetensors_metadata(question.model, revision=revision))
        rows = [row for file in held.files_metadata.values() for row in file.tensors.items()]
        tensors = tuple(Tensor(name=name, dtype=row.dtype, shape=tuple(row.shape)) for name, row in sorted(rows))
    except (NotASafetensorsRepoError, SafetensorsParsingError):
        pass  # a repository of another format: config.json alone tells
    except Exception as error:  # noqa: BLE001 - as above
        raise HubError(refused(error, token)) from None
    return Checkpoint(config=_object(Path(path)), tensors=tensors, source=f"{question.endpoint}/{question.model}")


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
    if not isinstance(content, dict):
        raise _problem(path, "fit-bad-config", "it holds no object", "is it a config.json of Transformers?")
    return content


def _tensors(folder: Path) -> tuple[Tensor, ...] | None:
    """The tensors of a folder's safetensors files; None where there are none, or some of them are missing."""
    index = folder / INDEX
    if index.is_file():
        held = _object(index).get("weight_map")
        files = {str(name) for name in held.values()} if isinstance(held, dict) else set()
        paths = [folder / name for name in sorted(files) if Path(name).name == name]
    else:
        paths = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("consolidated")]
    if not paths or not all(path.is_file() for path in paths):
        return None
    return tuple(sorted((tensor for path in paths for tensor in _header(path)), key=lambda tensor: tensor.name))


def _header(path: Path) -> Iterable[Tensor]:
    """The tensors of one file: eight bytes of length, then JSON (the safetensors format)."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(size) if 2 <= size <= LONGEST_HEADER else b""
        content = json.loads(text)
        rows = [(name, row) for name, row in content.items() if name != "__metadata__"]
        return [Tensor(name=name, dtype=str(row["dtype"]), shape=tuple(map(int, row["shape"]))) for name, row in rows]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise _problem(path, "fit-bad-safetensors", "its header cannot be read", "fetch the file again") from None


def _problem(path: Path, code: str, summary: str, remedy: str) -> InputError:
    return InputError((Diagnostic(place=Place(file=str(path)), code=code, summary=summary, remedy=remedy),))

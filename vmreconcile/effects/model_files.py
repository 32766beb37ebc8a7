"""Model files that the tool writes and deletes itself: each new one whole or not at all, none over another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from vmreconcile.errors import VmreconcileError
from vmreconcile.model.values import JsonValue

_EDITOR = "# yaml-language-server: $schema="
_SCHEMA = "../schemas/model.schema.json"


class ModelFileError(VmreconcileError):
    """A model file cannot be written or deleted; nothing was changed."""


def model_text(content: Mapping[str, JsonValue], *, schema: bool) -> str:
    """The text of a model file, its keys in the order given; `schema`: with the line that editors check it by."""
    body = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=120)
    return (f"{_EDITOR}{_SCHEMA}\n" if schema else "") + body


def model_path(models: Path, name: str) -> Path:
    """Where the file of a model goes.

    Raises:
        ModelFileError: `models` is one file.
    """
    if models.is_file():
        raise ModelFileError(f"{models} is one model's file", remedy="give the folder with -m")
    return models / f"{name}.yaml"


def has_schema(models: Path) -> bool:
    """Whether the schemas that `init` writes are beside the models."""
    return (models / _SCHEMA).exists()


def create(path: Path, text: str) -> None:
    """Write a new file; its folder is made if need be.

    Raises:
        ModelFileError: there is one already, or it cannot be written.
    """
    beside = path.parent / f".{path.name}.{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            os.link(beside, path)  # unlike a rename, it never replaces
        finally:
            beside.unlink(missing_ok=True)
    except FileExistsError:
        raise ModelFileError(f"{path} is there already", remedy="edit it, or choose another name") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written: {error.strerror}") from None


def delete(path: Path) -> None:
    """Delete a model's file; one that is gone is fine.

    Raises:
        ModelFileError: it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be deleted: {error.strerror}") from None

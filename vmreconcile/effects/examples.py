"""The files that `init` writes to start from: an inventory, a model, the schemas for editors. Overwrites nothing."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from vmreconcile.effects.schemas import NAMES, schema_text
from vmreconcile.errors import VmreconcileError

EXAMPLES = ("inventory/hosts.yml", "models.d/qwen2.5-7b.yaml")


class ExampleError(VmreconcileError):
    """An example cannot be written where it was wanted."""


def example_texts() -> dict[str, str]:
    """The text of each file, by its path below the folder."""
    folder = resources.files("vmreconcile.effects") / "example_files"
    texts = {name: folder.joinpath(*name.split("/")).read_text(encoding="utf-8") for name in EXAMPLES}
    return texts | {f"schemas/{name}": schema_text(name) for name in NAMES}


def write_examples(folder: Path | str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Write the examples below `folder`, which is made if need be.

    An inventory is not written beside another one, nor a model beside other models: the example's hosts and port would
    become wanted.

    Returns:
        The files written, and those left alone because they, or others in their folder, were there already.

    Raises:
        ExampleError: a folder or a file cannot be written.
    """
    written: list[Path] = []
    kept: list[Path] = []
    texts = example_texts()
    taken = {name for name in texts if not name.startswith("schemas/") and _holds_files((Path(folder) / name).parent)}
    for name, text in texts.items():
        target = Path(folder) / name
        (kept if name in taken or not _write(target, text) else written).append(target)
    return tuple(written), tuple(kept)


def _holds_files(folder: Path) -> bool:
    try:
        return any(not entry.name.startswith(".") for entry in folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ExampleError(f"{folder} cannot be read: {_reason(error)}") from None


def _write(target: Path, text: str) -> bool:
    """Write a file that is not there yet; whether it was written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        if target.exists() or target.is_symlink():
            return False
        raise ExampleError(f"{target.parent} is not a folder", remedy="Name another folder.") from None
    except OSError as error:
        raise ExampleError(f"{target} cannot be written: {_reason(error)}", remedy="Name another folder.") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

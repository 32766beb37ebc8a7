"""Reading and writing small text files on the controller, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vmreconcile.errors import VmreconcileError


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        VmreconcileError: where it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise VmreconcileError(f"{path}: {error.strerror}", remedy="give a file that can be read") from error
    except UnicodeDecodeError as error:
        raise VmreconcileError(f"{path} is not UTF-8 text", remedy="give a file that vmreconcile wrote") from error


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600: a new file in the same folder, then renamed, so that a full disk loses nothing.

    Raises:
        VmreconcileError: where it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise VmreconcileError(f"{path}: {error.strerror}", remedy="choose a place that can be written") from error

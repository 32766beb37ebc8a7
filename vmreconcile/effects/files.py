"""Reading and writing small text files on the controller, whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vmreconcile.errors import UsageError, VmreconcileError


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        UsageError: where it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", remedy="give a file that can be read") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", remedy="give a file that vmreconcile wrote") from error


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; whatever else lies there, nobody waits for it.

    Raises:
        OSError: it cannot be read, is no regular file (EINVAL), or is larger (EFBIG).
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else _odd(handle, path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
    return data


def _odd(handle: int, path: Path) -> BinaryIO:
    kind = errno.EISDIR if stat.S_ISDIR(os.fstat(handle).st_mode) else errno.EINVAL
    os.close(handle)
    raise OSError(kind, "is a directory" if kind == errno.EISDIR else "it is no regular file", str(path))


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600: a new file in the same folder, then renamed, so that a full disk loses nothing.

    A device or a pipe (/dev/null, /dev/stdout) is written to as it is: root could take its place, for everybody.

    Raises:
        VmreconcileError: where it cannot be written.
    """
    try:
        if _is_stream(path):
            _write_into(path, text.encode())
            return
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise VmreconcileError(f"{path}: {error.strerror}", remedy="choose a place that can be written") from error


def _is_stream(path: Path) -> bool:
    """Whether a device or a pipe is behind a path."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _write_into(path: Path, data: bytes) -> None:
    """Write to what is there already; a pipe that nobody reads is not waited for."""
    handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path`, mode 0600, that takes its place when the block ends, and vanishes where that fails.

    Raises:
        OSError: where one of it cannot be done; the old file is then untouched.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

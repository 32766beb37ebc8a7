"""Reading the file behind `@retryfile` in a host pattern. Owns nothing else."""

from __future__ import annotations

from pathlib import Path

from vmreconcile.errors import Diagnostic, InputError, Place


def read_retry(path: str) -> tuple[str, ...]:
    """The patterns in a retry file, one a line; blank lines and `#` comments are left out.

    Raises:
        InputError: where the file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Diagnostic(
            place=Place(file=path),
            code="retry-file-unreadable",
            summary=f"the retry file cannot be read: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}",
            remedy="give an existing file after '@', one host or pattern a line",
        )
        raise InputError((problem,)) from error
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))

"""What can go wrong on a host, in a form for the wire: a kebab-case class, a message, a path. Holds no values."""

from __future__ import annotations

import errno
import os

KINDS = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EROFS: "read-only",
    errno.EACCES: "permission-denied",
    errno.EPERM: "permission-denied",
    errno.ELOOP: "unsafe-path",
    errno.ENOTDIR: "unsafe-path",
    errno.ENOENT: "not-found",
}


class Problem(Exception):  # noqa: N818 - the wire calls it a problem or an error class, not an Error
    """Something that the controller should tell its user; `kind` is the wire's error class, `index` the step."""

    def __init__(self, kind: str, message: str, path: str = "") -> None:
        """Keep class, message and the path concerned ("" for none)."""
        super().__init__(message)
        self.kind = kind
        self.path = path
        self.index: int | None = None
        self.more: dict[str, object] = {}  # what a class has to tell beside its words

    def as_json(self) -> dict[str, object]:
        """Render the wire's `error` object."""
        error = dict(self.more, **{"class": self.kind, "message": str(self)})
        if self.path:
            error["path"] = self.path
        return error


def from_os_error(error: OSError, path: str) -> Problem:
    """Turn an operating system's refusal at `path` into a problem."""
    code = error.errno or 0
    return Problem(KINDS.get(code, "io-error"), "{}: {}".format(path, os.strerror(code)), path)

"""Who changes servers from this controller, and from which commit: for the history that hosts keep. Only reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vmreconcile import __version__
from vmreconcile.effects.locks import whoami
from vmreconcile.effects.programs import Endless, run
from vmreconcile.model.revision import Author

GIT_S = 5.0
MOST = 1 << 20
COMMIT = re.compile(rb"[0-9a-f]{7,64}")
QUIET = ("-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false")
"""Nothing of the repository is run or written for a question."""


def author_of(models: Path, environ: Mapping[str, str]) -> Author:
    """The person at this controller, and the commit of the folder of models."""
    return Author(who=whoami(), commit=_commit(models, environ), tool=__version__)


def _commit(models: Path, environ: Mapping[str, str]) -> str:
    """The commit in short, `+` behind it where files of the folder differ from it; '' where there is no git."""
    folder = models if models.is_dir() else models.parent
    head = _git(folder, ("rev-parse", "--verify", "--short=12", "HEAD"), environ)
    if head is None or not COMMIT.fullmatch(head.strip()):
        return ""
    status = _git(folder, ("status", "--porcelain", "--", "."), environ)
    return head.strip().decode("ascii") + ("" if status == b"" else "+")


def _git(folder: Path, words: tuple[str, ...], environ: Mapping[str, str]) -> bytes | None:
    """What git says; None where it says nothing, or is not there."""
    environ = {**environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    with suppress(OSError, Endless, ValueError):
        done = run(("git", *QUIET, "-C", str(folder), *words), environ, GIT_S, MOST)
        return done.out if done.status == 0 else None
    return None

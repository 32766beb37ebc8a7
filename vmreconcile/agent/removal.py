"""The step `remove-server`: all that we keep about a server, and with the last one all that we keep at all."""

from __future__ import annotations

import os

from . import lock, stop, survey
from .classify import classify
from .files import open_folder, remove_file
from .folders import Folders
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Step = dict[str, Any]

CACHED = (".pyz", ".code", ".new")  # what the bootstrap keeps


def remove_server(step: Step, folders: Folders) -> Step:
    """Everything we keep about a server, and our folders with the last one.

    Raises:
        Problem: `still-running`: without its record, a process of ours would become a stranger.
    """
    slug = step["slug"]
    known = stop.known_now(folders, with_units=True)
    verdict = classify(survey.processes(known), known)
    if slug in verdict.roots or verdict.orphans.get(slug):
        raise Problem("still-running", "{} is still running".format(slug))
    paths = (
        folders.env_file(slug),
        folders.token_file(slug),
        folders.log(slug),
        folders.history(slug),
        folders.record(slug),
    )
    changed = [remove_file(path, folders.base_of(path), folders.uid) for path in paths]
    below = [folders.config + "/env", *(folders.state + part for part in ("/log", "/history", "/servers"))]
    empty = [_remove_folder(path) for path in below]
    if all(empty):
        _remove_rest(folders)
    return {"changed": any(changed)}


def _remove_folder(path: str) -> bool:
    """Remove an empty folder; False where something is in it."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _unlink(path: str, folder: int | None = None) -> None:
    """Remove a file, if that is possible: what stays keeps its folder, and does no harm."""
    try:
        os.unlink(path, dir_fd=folder)
    except OSError:
        return


def _remove_rest(folders: Folders) -> None:
    """With the last server goes what we keep for ourselves: the agent's cache and the locks."""
    cache = folders.state + "/agent"
    try:
        fd = open_folder(cache, folders.state, folders.uid, create=False)  # a link there leads to what is not ours
    except Problem:
        fd = -1
    if fd >= 0:
        for name in os.listdir(fd):
            if name.endswith(CACHED):
                _unlink(name, fd)
        os.close(fd)
    for name in ("lock", lock.NAME):
        _unlink("{}/{}".format(folders.state, name))
    for folder in (cache, folders.config, folders.state):
        _remove_folder(folder)

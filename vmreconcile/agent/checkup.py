"""The request `checkup`: what troubleshooting looks at beyond `observe`. Only reads; nothing is changed or removed."""

from __future__ import annotations

import os
import stat
import time

from . import hub_cache, limits, proc, survey
from .folders import Folders, is_slug
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator

    from .frames import Channel

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LOGIN_FILES = ("/etc/environment", "/etc/security/pam_env.conf", "/etc/profile", "/etc/bash.bashrc")
HOME_FILES = (".profile", ".bash_profile", ".bashrc", ".zshenv", ".zshrc", ".pam_environment", ".ssh/environment")
LEFT_IN_SHM = ("psm_", "vllm", "sem.mp-", "torch_", "nccl-")
LEFT_IN_TMP = ("vllm_dist_", "pymp-")
MOST_FILES = 200_000
HUB_SECONDS = 5.0


def checkup(
    request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]
) -> dict[str, Any]:
    """Answer with what was found.

    Raises:
        Problem: `bad-request`.
    """
    received = time.time()
    del channel, progress
    models, endpoints = request.get("models") or [], request.get("endpoints") or []
    good = all(isinstance(row, dict) and is_slug(row.get("slug")) for row in models)
    if not good or not all(isinstance(row, str) and row.startswith(("http://", "https://")) for row in endpoints):
        raise Problem("bad-request", "checkup needs models with slugs, and endpoints")
    seen = survey.Survey(folders)
    caches = [_cache(row, seen, folders) for row in models]
    places = {folders.state, "/tmp", "/dev/shm", *(row["path"] for row in caches)}  # noqa: S108 - looked at only
    return {
        "checkup": {
            "caches": caches,
            "disks": [row for row in map(_disk, sorted(places)) if row],
            "limits": limits.observe(folders.uid),
            "leftovers": _leftovers(folders.uid),
            "token_files": list(_token_files(folders.home)),
            "hubs": [_hub(endpoint) for endpoint in sorted(set(endpoints))],
            "clock": {"received": received, "answered": time.time()},
        }
    }


def _cache(row: dict[str, Any], seen: survey.Survey, folders: Folders) -> dict[str, Any]:
    """Where a server's Hub cache is, and how much of its model is there."""
    env = dict(seen.environment(row["slug"])[0])
    env.update(row.get("env") or {})
    path = hub_cache.cache_folder(env, folders.home)
    model = str(row.get("model", ""))
    if model.startswith("/"):
        found = os.path.isfile(model + "/config.json")
        return {"slug": row["slug"], "path": model, "bytes": _size(model) if found else None, "partial": 0}
    folder = hub_cache.model_folder(path, model)
    partial = sum(1 for name in _names(folder + "/blobs") if name.endswith(".incomplete"))
    return {
        "slug": row["slug"],
        "path": path,
        "bytes": _size(folder + "/blobs") if os.path.isdir(folder + "/snapshots") else None,
        "partial": partial,
    }


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _size(folder: str) -> int:
    """Bytes of the files in a folder, links not followed."""
    total = 0
    for name in _names(folder)[:MOST_FILES]:
        try:
            found = os.lstat(folder + "/" + name)
        except OSError:
            continue
        total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _disk(path: str) -> dict[str, Any] | None:
    """Space where a path is, or would be made."""
    there = path
    while not os.path.lexists(there) and there != "/":
        there = os.path.dirname(there)
    try:
        found = os.statvfs(there)
    except OSError:
        return None
    return {
        "path": path,
        "total": found.f_blocks * found.f_frsize,
        "free": found.f_bavail * found.f_frsize,
        "inodes_free": found.f_favail if found.f_files else None,
        "read_only": bool(found.f_flag & os.ST_RDONLY),
    }


def _leftovers(uid: int) -> list[dict[str, Any]]:
    """Files such as vLLM leaves behind when it is killed: ours, older than a minute, and used by no process."""
    found = []
    for folder, beginnings in (("/dev/shm", LEFT_IN_SHM), ("/tmp", LEFT_IN_TMP)):  # noqa: S108 - looked at only
        for name in _names(folder):
            path = "{}/{}".format(folder, name)
            try:
                entry = os.lstat(path)
            except OSError:
                continue
            age = time.time() - entry.st_mtime
            if name.startswith(beginnings) and entry.st_uid == uid and age > 60:
                size = _size(path) if stat.S_ISDIR(entry.st_mode) else entry.st_blocks * 512  # holes take up none
                found.append({"path": path, "bytes": size, "age_seconds": round(age)})
    if found:
        used = _used()
        found = [row for row in found if not any(path.startswith(str(row["path"])) for path in used)]
    return sorted(found, key=lambda row: str(row["path"]))


def _used() -> set[str]:
    """Paths below /dev/shm and /tmp that some process has open or mapped."""
    used = set()
    for pid in proc.pids():
        for name in _names("/proc/{}/fd".format(pid)):
            used.add(proc.link("/proc/{}/fd/{}".format(pid, name)))
        for line in (proc.read("/proc/{}/maps".format(pid), 1 << 22) or b"").splitlines():
            path = proc.text(line).partition("/")[1:]
            if path[0]:
                used.add("/" + path[1])
    return {path for path in used if path.startswith(("/dev/shm/", "/tmp/"))}  # noqa: S108 - looked at only


def _token_files(home: str) -> Iterator[dict[str, Any]]:
    """Where logins of this user or of all get a token from; none of it reaches a server of ours."""
    for path in [*LOGIN_FILES, *("{}/{}".format(home, name) for name in HOME_FILES)]:
        data = proc.read(path, 1 << 20)
        for number, line in enumerate(proc.text(data).splitlines() if data else (), 1):
            said = line.strip()
            for word in ("export ", "setenv ", "set -gx "):
                said = said[len(word) :] if said.startswith(word) else said
            for name in TOKENS:
                if said.startswith((name + "=", name + " ")):
                    yield {"path": path, "line": number, "variable": name}


def _hub(endpoint: str) -> dict[str, Any]:
    """Whether an endpoint answers at all, with which status is all the same."""
    import http.client  # noqa: PLC0415 - 40 ms, of this part alone
    import urllib.error  # noqa: PLC0415 - as above
    import urllib.request  # noqa: PLC0415 - as above

    begun = time.monotonic()
    problem = None
    try:
        asked = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - checked by the caller
        with urllib.request.urlopen(asked, timeout=HUB_SECONDS):  # noqa: S310 - as above
            pass
    except urllib.error.HTTPError:
        pass  # it answered
    except http.client.HTTPException as error:
        problem = "the answer is not HTTP ({})".format(type(error).__name__)
    except (OSError, ValueError) as error:
        problem = str(getattr(error, "reason", None) or error)
    return {"endpoint": endpoint, "problem": problem, "seconds": round(time.monotonic() - begun, 3)}

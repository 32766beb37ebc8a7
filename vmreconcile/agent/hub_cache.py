"""Where the files of a server's model are: at a path, or in the Hub's cache of the server. Only reads."""

from __future__ import annotations

import os

from . import jsontext, proc
from .folders import is_slug

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LARGEST_CONFIG = 1 << 20
MOST_NAMES = 8
LONGEST_NAME = 100


def are_models(rows: Any) -> bool:  # noqa: ANN401 - unchecked so far
    """Whether each row names a server, its model and what decides where the Hub's cache is."""
    return isinstance(rows, list) and all(map(_is_model, rows))


def _is_model(row: Any) -> bool:  # noqa: ANN401 - unchecked so far
    if not isinstance(row, dict) or not is_slug(row.get("slug")) or not isinstance(row.get("env"), dict):
        return False
    texts = [row.get("model"), row.get("revision"), *row["env"], *row["env"].values()]
    return all(isinstance(text, str) and "\0" not in text for text in texts)


def cache_folder(env: dict[str, str], home: str) -> str:
    """The cache that huggingface_hub.constants computes from an environment."""
    base = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or home + "/.cache", "huggingface")
    return env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(base, "hub")


def model_folder(cache: str, model: str) -> str:
    """The folder of a model's blobs, refs and snapshots in a cache."""
    return os.path.join(cache, "models--" + model.replace("/", "--"))


def files_folder(model: str, revision: str, cache: str) -> str:
    """Where a model's files are, if they are on this host; "" where a name leads out of the cache.

    The layout of the cache is huggingface_hub's: `refs/REVISION` holds a commit, `snapshots/COMMIT` the files.
    """
    if model.startswith("/"):
        return model
    home, named = model_folder(cache, model), revision or "main"
    if ".." in named.split("/"):
        return ""
    path = "{}/refs/{}".format(home, named)
    commit = proc.text(proc.read(path, LONGEST_NAME) or b"").strip() if os.path.isfile(path) else ""
    commit = commit or named
    return "" if "/" in commit or commit in (".", "..") else "{}/snapshots/{}".format(home, commit)


def architectures(model: str, revision: str, cache: str) -> list[str]:
    """The names that a model's config.json gives its architecture; none where the file is not on this host."""
    folder = files_folder(model, revision, cache)
    path = folder + "/config.json"
    data = proc.read(path, LARGEST_CONFIG) if folder and os.path.isfile(path) else None
    try:
        config: Any = jsontext.loads(proc.text(data or b""))
    except (ValueError, RecursionError):
        return []
    names = config.get("architectures") if isinstance(config, dict) else None
    found = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [name[:LONGEST_NAME] for name in found[:MOST_NAMES]]

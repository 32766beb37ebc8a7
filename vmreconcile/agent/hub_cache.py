"""Where the Hub's cache of a server is, and what of a model is in it. Only reads."""

from __future__ import annotations

import os

from . import jsontext, proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LARGEST_CONFIG = 1 << 20
MOST_NAMES = 8
LONGEST_NAME = 100


def cache_folder(env: dict[str, str], home: str) -> str:
    """The cache that huggingface_hub.constants computes from an environment."""
    base = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or home + "/.cache", "huggingface")
    return env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(base, "hub")


def model_folder(cache: str, model: str) -> str:
    """The folder of a model's blobs, refs and snapshots in a cache."""
    return os.path.join(cache, "models--" + model.replace("/", "--"))


def architectures(model: str, revision: str, cache: str) -> list[str]:
    """The names that a model's config.json gives its architecture; none where the file is not on this host."""
    if model.startswith("/"):
        folder = model
    else:
        home = model_folder(cache, model)
        named = revision or "main"
        commit = proc.text(proc.read("{}/refs/{}".format(home, named), LONGEST_NAME) or b"").strip() or named
        folder = "{}/snapshots/{}".format(home, commit)
    data = proc.read(folder + "/config.json", LARGEST_CONFIG) if os.path.isfile(folder + "/config.json") else None
    try:
        config: Any = jsontext.loads(proc.text(data or b""))
    except (ValueError, RecursionError):
        return []
    names = config.get("architectures") if isinstance(config, dict) else None
    found = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [name[:LONGEST_NAME] for name in found[:MOST_NAMES]]

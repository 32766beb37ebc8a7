"""The arguments of each known version of vLLM, and finding one by any of its names.

Reads only the package's own `catalogues/VERSION.json` (written by scripts/vllm-catalogue), each at most once and not
before it is asked for. Judges no values: that is `checks`.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any

from vmreconcile.vllm.argument import OBJECT_KINDS, SECRET_ARGUMENTS, TOOL_OWNED, Argument, Kind
from vmreconcile.vllm.checks import check_value

__all__ = [
    "SECRET_ARGUMENTS",
    "TOOL_OWNED",
    "Argument",
    "Catalogue",
    "Kind",
    "catalogue_for",
    "check_value",
    "versions",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Catalogue:
    """What `vllm serve` of one version takes.

    `arguments` is by canonical name, `options` by every spelling with dashes, `names` by every name without leading
    dashes and in snake_case. `dash_o` is what `-O3` sets; `human_json` whether numbers with suffixes are read in
    dotted arguments.
    """

    version: str
    arguments: Mapping[str, Argument]
    options: Mapping[str, Argument]
    names: Mapping[str, str]
    dash_o: str = "--optimization-level"
    human_json: bool = True

    def canonical(self, name: str) -> str | None:
        """The argument that `name` sets, or None: `max-model-len`, `--max_model_len`, `tp`, `compilation_config.mode`.

        A dotted name sets a part of the argument before the dot, which must be one that holds an object.
        """
        head, dot, _ = name.partition(".")
        found = self.names.get(head.lstrip("-").replace("-", "_"))
        if found is None or (dot and self.arguments[found].kind not in OBJECT_KINDS):
            return None
        return found

    def suggest(self, name: str) -> tuple[str, ...]:
        """Canonical names that `name` may have been meant for, the likeliest first, at most three."""
        wanted = name.partition(".")[0].lstrip("-").replace("-", "_").lower()
        begun = [known for known in self.names if known.startswith(wanted)] if len(wanted) > 2 else []
        close = difflib.get_close_matches(wanted, self.names, n=3, cutoff=0.75)
        turned = re.sub(r"^(no_)?(disable|enable)_", "", wanted)
        other = [known for known in (f"enable_{turned}", f"disable_{turned}") if turned != wanted]
        found = [self.names[known] for known in (*close, *sorted(begun), *other) if known in self.names]
        return tuple(dict.fromkeys(found))[:3]


def versions() -> tuple[str, ...]:
    """The versions that have a catalogue, oldest first."""
    names = (entry.name for entry in (resources.files("vmreconcile.vllm") / "catalogues").iterdir())
    return tuple(sorted((name.removesuffix(".json") for name in names if name.endswith(".json")), key=_release))


@functools.cache
def catalogue_for(version: str | None = None) -> Catalogue:
    """The catalogue to use for a vLLM of `version`: the nearest known one that is not newer, else the oldest.

    None, and a version that cannot be read, mean the newest.
    """
    known = _known()
    wanted = _release(version or "")
    fitting = [one for one in known if _release(one) <= wanted] if wanted else known
    return _load(fitting[-1] if fitting else known[0])


@functools.cache
def _known() -> tuple[str, ...]:
    """`versions`, read once."""
    return versions()


def _release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: '0.11.2rc1+cpu' is (0, 11, 2)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part[:9]) for part in match[1].split(".")) if match else ()


@functools.cache
def _load(version: str) -> Catalogue:
    """Read one catalogue."""
    file = resources.files("vmreconcile.vllm") / "catalogues" / f"{version}.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    arguments = {row["name"]: _argument(row) for row in document["arguments"]}
    options = {option: argument for argument in arguments.values() for option in argument.options}
    return Catalogue(
        version=document["version"],
        arguments=MappingProxyType(arguments),
        options=MappingProxyType(options),
        names=MappingProxyType({o.lstrip("-").replace("-", "_"): a.name for o, a in options.items()}),
        dash_o=document["dash_o"],
        human_json=document["human_json"],
    )


def _argument(row: dict[str, Any]) -> Argument:
    """Turn one row of the file, which is our own, into an argument."""
    lists = {key: tuple(row.get(key, ())) for key in ("options", "choices", "keys")}
    return Argument(**{**row, **lists, "kind": Kind(row["kind"])})

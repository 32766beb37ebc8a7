"""A model as it stands on some hosts: its keys, its overrides there, its hosts' arguments below. Pure.

Each value is told with where it was said. Hosts for which the same layers count are looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from vmreconcile.core.placement import Placement
from vmreconcile.model.document import Document, Path
from vmreconcile.model.values import JsonValue, Setting
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.command import normalise

AUTO = "auto"


class Said(NamedTuple):
    """A value, the layer that says it (0 for the inventory, 1 for the model, then its overrides), and its path there.

    The inventory's have no path; `origin` names their place.
    """

    level: int
    path: Path
    value: JsonValue
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The layers, lowest first, and what they say of the arguments that were asked for, by canonical name."""

    layers: tuple[tuple[Path, Mapping[str, JsonValue]], ...]
    args: Mapping[str, Said]

    def said(self, *keys: str) -> Said | None:
        """What counts at `keys`, such as 'needs', 'kv_tokens'; None where nobody says anything, or null."""
        for level in range(len(self.layers), 0, -1):
            path, layer = self.layers[level - 1]
            inside = mapping(layer.get(keys[0])) if len(keys) > 1 else layer
            if keys[-1] in inside:
                value = inside[keys[-1]]
                return Said(level, (*path, *keys), value) if value is not None else None
        return None


class Stacks:
    """Makes stacks that know the arguments of `names`; remembers what the inventory says of them."""

    def __init__(self, placement: Placement, catalogue: Catalogue, names: frozenset[str]) -> None:
        """Ask for arguments by canonical name; none of them may hold a mapping."""
        self._placement = placement
        self._catalogue = catalogue
        self._names = names
        self._below: dict[int, Mapping[str, Said]] = {}

    def of(self, document: Document) -> Iterator[Stack]:
        """Each different stack of a model; its own keys alone where it has no hosts."""
        hosts = self._placement.inventory.hosts
        overrides = self._placement.overrides(document)
        model = _Layers(document, self._read)
        seen: set[tuple[int, tuple[str, ...]]] = set()
        for name in self._placement.hosts(document.get("hosts")):
            below, keys = hosts[name].variables.get("vllm_args"), overrides.get(name, ())
            if (id(below), keys) not in seen:
                seen.add((id(below), keys))
                yield model.over(self._read_below(below), keys)
        if not seen:
            yield model.over({}, ())

    def _read_below(self, setting: Setting | None) -> Mapping[str, Said]:
        if setting is None:
            return {}
        if id(setting) not in self._below:
            read = self._read(setting.value)
            where = str(setting.origin)
            self._below[id(setting)] = {name: Said(0, (), value, where) for name, (_, value) in read.items()}
        return self._below[id(setting)]

    def _read(self, args: JsonValue) -> Mapping[str, tuple[str, JsonValue]]:
        """The arguments asked for: by canonical name, as they were written and in canonical form; null for 'auto'."""
        found: dict[str, tuple[str, JsonValue]] = {}
        for written, value in mapping(args).items():
            name = self._catalogue.canonical(written)
            if name in self._names:
                left = value is None or value == AUTO
                found[name] = (written, None if left else normalise({written: value}, self._catalogue).get(name))
        return found


class _Layers:
    """The keys of a model and of its overrides, each read once."""

    def __init__(self, document: Document, read: Callable[[JsonValue], Mapping[str, tuple[str, JsonValue]]]) -> None:
        self._document = document
        self._read = read
        self._known: dict[Path, tuple[Mapping[str, JsonValue], Mapping[str, tuple[str, JsonValue]]]] = {}

    def over(self, below: Mapping[str, Said], keys: tuple[str, ...]) -> Stack:
        """Lay the model and these overrides over what the inventory says."""
        paths: list[Path] = [(), *(("overrides", key) for key in keys)]
        found = dict(below)
        for level, path in enumerate(paths, start=1):
            for name, (written, value) in self._layer(path)[1].items():
                found[name] = Said(level, (*path, "args", written), value)
        return Stack(
            layers=tuple((path, self._layer(path)[0]) for path in paths),
            args={name: said for name, said in found.items() if said.value is not None},
        )

    def _layer(self, path: Path) -> tuple[Mapping[str, JsonValue], Mapping[str, tuple[str, JsonValue]]]:
        if path not in self._known:
            layer = mapping(self._document.get(*path))
            self._known[path] = layer, self._read(layer.get("args"))
        return self._known[path]


def mapping(value: JsonValue) -> Mapping[str, JsonValue]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}

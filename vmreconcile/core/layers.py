"""Layers of arguments and environment variables laid over each other, each value with its origin. Pure.

Lowest first: the host's variables, the model file, its overrides in file order. A null takes back what is below.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from vmreconcile.model.values import JsonValue, Origin, Setting
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.command import normalise

Layer: TypeAlias = Mapping[str, Setting]
"""Arguments by canonical name (dotted for a part of one), or variables by name; a value of None takes back."""

LEFT_TO_US = {"gpu_memory_utilization": "auto"}
"""Values that leave an argument to the tool: as long as nothing tunes it, vLLM's own default stands."""


def argument_layer(args: JsonValue, origin: Callable[[str], Origin], catalogue: Catalogue) -> Layer:
    """One map of arguments as written, by canonical name. `origin` tells where the argument of a key was said."""
    layer: dict[str, Setting] = {}
    for name, value in args.items() if isinstance(args, dict) else ():
        head, dot, rest = name.partition(".")
        canonical = catalogue.canonical(name) or head.lstrip("-").replace("-", "_")
        if dot:
            layer[f"{canonical}.{rest}"] = Setting(value=value, origin=origin(name))
        elif value is None or value == LEFT_TO_US.get(canonical):
            layer[canonical] = Setting(value=None, origin=origin(name))
        else:
            for known, plain in normalise({name: value}, catalogue).items():
                layer[known] = Setting(value=plain, origin=origin(name))
    return layer


def merge_arguments(layers: Iterable[Layer], catalogue: Catalogue) -> dict[str, Setting]:
    """The arguments that stand in the end, sorted by name, parts laid into the mapping that they belong to."""
    merged: dict[str, Setting] = {}
    for layer in layers:
        for name, setting in sorted(layer.items(), key=lambda item: "." in item[0]):
            if "." not in name:
                for part in [known for known in merged if known.startswith(name + ".")]:
                    del merged[part]
            merged.pop(name, None)  # so that the last in order is the last who said something
            merged[name] = setting
    plain = {name: setting for name, setting in merged.items() if "." not in name and setting.value is not None}
    for name, setting in merged.items():
        head, dot, rest = name.partition(".")
        if dot:
            _lay_part(plain, head, rest, setting, catalogue)
    return dict(sorted(plain.items()))


def _lay_part(plain: dict[str, Setting], head: str, rest: str, setting: Setting, catalogue: Catalogue) -> None:
    below = plain[head].value if head in plain else None
    if setting.value is None:
        if isinstance(below, dict):
            value: JsonValue = _without(below, rest.split("."))
            plain[head] = Setting(value=value, origin=setting.origin)
        return
    pieces: dict[str, JsonValue] = {f"{head}.{rest}": setting.value}
    if below is not None:
        pieces[head] = copy.deepcopy(below)
    plain[head] = Setting(value=normalise(pieces, catalogue)[head], origin=setting.origin)


def _without(content: dict[str, JsonValue], keys: list[str]) -> dict[str, JsonValue]:
    left = dict(content)
    inner = left.get(keys[0])
    if len(keys) == 1:
        left.pop(keys[0], None)
    elif isinstance(inner, dict):
        left[keys[0]] = _without(inner, keys[1:])
    return left


def env_layer(env: JsonValue, origin: Callable[[str], Origin]) -> Layer:
    """One map of variables; whole numbers become the text that they are."""
    return {
        name: Setting(value=None if value is None else str(value), origin=origin(name))
        for name, value in (env.items() if isinstance(env, dict) else ())
    }


def merge_env(layers: Iterable[Layer]) -> dict[str, Setting]:
    """The variables that stand in the end, sorted by name."""
    merged: dict[str, Setting] = {}
    for layer in layers:
        merged.update(layer)
    return {name: setting for name, setting in sorted(merged.items()) if setting.value is not None}

"""The token sources that an inventory defines, by name. Pure; what is wrong with them is told by `checks.tokens`."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.durations import seconds
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.tokens import COMMAND_TIMEOUT_S, DEFAULT_SOURCE, SourceKind, TokenSource
from vmreconcile.model.values import JsonValue, Setting

VARIABLE = "vllm_token_sources"
KINDS = tuple(kind.value for kind in SourceKind if kind is not SourceKind.HUB)


def token_sources(inventory: Inventory) -> dict[str, TokenSource]:
    """Every source by name, `default` always among them. Of an inventory that passed `validate` without an error."""
    found = {DEFAULT_SOURCE: TokenSource()}
    for setting in definitions(inventory):
        for name, content in setting.value.items() if isinstance(setting.value, dict) else ():
            source = _source(name, content, setting)
            if source is not None:
                found[name] = source
    return found


def source_names(inventory: Inventory) -> frozenset[str]:
    """The names that a model or host may give."""
    names = {DEFAULT_SOURCE}
    for setting in definitions(inventory):
        names.update(setting.value if isinstance(setting.value, dict) else ())
    return frozenset(names)


def definitions(inventory: Inventory) -> Iterator[Setting]:
    """Each definition once, however many hosts share it."""
    seen: set[int] = set()
    for host in inventory.hosts.values():
        setting = host.variables.get(VARIABLE)
        if setting is not None and id(setting) not in seen:
            seen.add(id(setting))
            yield setting


def _source(name: str, content: JsonValue, setting: Setting) -> TokenSource | None:
    if not isinstance(content, dict):
        return None
    kind = next((kind for kind in KINDS if kind in content), None)
    if kind is None:
        return None
    value = content[kind]
    words = tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    return TokenSource(
        name=name,
        kind=SourceKind(kind),
        words=words,
        timeout=seconds(content.get("timeout")) or COMMAND_TIMEOUT_S,
        place=setting.origin.place,
    )

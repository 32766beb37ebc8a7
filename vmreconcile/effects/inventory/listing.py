"""The JSON that programs print for `--list`, added to the draft. Owns that shape; runs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from vmreconcile.effects.inventory.adding import Adding
from vmreconcile.errors import Place
from vmreconcile.model.inventory import UnsafeText, VaultedText
from vmreconcile.model.values import JsonValue

_REMEDY = 'Print {"GROUP": {"hosts": [], "vars": {}, "children": []}, "_meta": {"hostvars": {}}}.'


class _ShapeError(Exception):
    """The JSON has another shape; `str()` says where."""


def add_listing(
    text: str, place: Place, adding: Adding, *, host_variables: Callable[[str], Mapping[str, JsonValue]]
) -> None:
    """Add what a program printed for `--list`; `host_variables` is asked for each host where there is no `_meta`."""
    try:
        listing = _mapping(_decode(text), "the output")
        with adding.at(place):
            _add(listing, place, adding, host_variables)
    except (ValueError, RecursionError) as error:
        adding.problems.error(place, "program-output", f"its output is not JSON: {error}", remedy=_REMEDY)
    except _ShapeError as error:
        adding.problems.error(place, "program-output", str(error), remedy=_REMEDY)


def decode_variables(text: str) -> Mapping[str, JsonValue]:
    """Read what a program printed for `--host NAME`.

    Raises:
        ValueError: where it is not a JSON object.
    """
    decoded = _decode(text) if text.strip() else {}
    if not isinstance(decoded, dict):
        raise ValueError("not an object")  # noqa: TRY004 - one error for whatever is wrong with the text
    return decoded


def _decode(text: str) -> JsonValue:
    value: JsonValue = json.loads(text, object_hook=_marked)
    return value


def _marked(value: dict[str, JsonValue]) -> JsonValue:
    """Turn the objects that mark unsafe and vaulted text into such text."""
    if isinstance(unsafe := value.get("__ansible_unsafe"), str):
        return UnsafeText(unsafe)
    if isinstance(vaulted := value.get("__ansible_vault"), str):
        return VaultedText(vaulted)
    return value


def _add(
    listing: Mapping[str, JsonValue],
    place: Place,
    adding: Adding,
    host_variables: Callable[[str], Mapping[str, JsonValue]],
) -> None:
    hosts: dict[str, None] = {}
    known: Mapping[str, JsonValue] | None = None
    for group, content in listing.items():
        if group == "_meta":
            known = _mapping(_mapping(content, "'_meta'").get("hostvars"), "'_meta.hostvars'")
        else:
            hosts.update(dict.fromkeys(_group(group, content, place, adding)))
    for host in hosts:
        variables = host_variables(host) if known is None else _mapping(known.get(host, {}), f"'_meta.hostvars.{host}'")
        for name, value in variables.items():
            adding.draft.set_variable(host, name, value, place)


def _group(group: str, content: JsonValue, place: Place, adding: Adding) -> list[str]:
    """Add one group; give the names of its hosts."""
    draft = adding.draft
    draft.add_group(group)
    if not isinstance(content, dict):
        content = {"hosts": content}
    elif not content.keys() & {"hosts", "vars", "children"}:
        content = {"hosts": [group], "vars": _unsafe(content)}  # Ansible takes it for a host and trusts no text in it
    hosts = _names(content.get("hosts", []), f"'{group}.hosts'")
    for host in hosts:
        draft.add_host(host, group=group)
    for name, value in _mapping(content.get("vars", {}), f"'{group}.vars'").items():
        draft.set_variable(group, name, value, place)
    for child in _names(content.get("children", []), f"'{group}.children'"):
        draft.add_group(child)
        draft.add_child(group, child)
    return hosts


def _mapping(value: JsonValue, what: str) -> Mapping[str, JsonValue]:
    if not isinstance(value, dict):
        raise _ShapeError(f"{what} is no object")
    return value


def _names(value: JsonValue, what: str) -> list[str]:
    if isinstance(value, list):
        names = [name for name in value if isinstance(name, str)]
        if len(names) == len(value):
            return names
    raise _ShapeError(f"{what} is no list of names")


def _unsafe(value: JsonValue) -> JsonValue:
    match value:
        case str():
            return UnsafeText(value)
        case list():
            return [_unsafe(item) for item in value]
        case dict():
            return {key: _unsafe(item) for key, item in value.items()}
        case _:
            return value

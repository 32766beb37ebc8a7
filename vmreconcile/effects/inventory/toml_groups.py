"""A TOML inventory, added to the draft. Owns its shape: like YAML's, but `children` is a list."""

from __future__ import annotations

import datetime as dt
import tomllib
from typing import Any

from vmreconcile.effects.inventory.adding import Adding
from vmreconcile.errors import Place
from vmreconcile.model.values import JsonValue

_REMEDY = 'Write [GROUP.hosts.NAME] and [GROUP.vars] tables, and children = ["…"] below [GROUP].'


def add_groups(text: str, file: str, adding: Adding) -> None:
    """Add every group of a TOML file; its places are the file as a whole."""
    place = Place(file=file)
    try:
        root = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        adding.problems.error(place, "toml-syntax", f"is not TOML: {error}", remedy="Mend the line.")
        return
    for name, content in root.items():
        if isinstance(content, dict):
            with adding.at(place):
                _group(name, content, place, adding)
        else:
            _wrong(place, f"group {name!r} is no table", adding)


def _group(group: str, content: dict[str, Any], place: Place, adding: Adding) -> None:
    draft = adding.draft
    draft.add_group(group)
    for key, value in content.items():
        if key == "vars" and isinstance(value, dict):
            for name, item in value.items():
                draft.set_variable(group, name, _plain(item), place)
        elif key == "children" and isinstance(value, list) and all(isinstance(child, str) for child in value):
            for child in value:
                draft.add_group(child)
                draft.add_child(group, child)
        elif key == "hosts" and isinstance(value, dict) and all(isinstance(host, dict) for host in value.values()):
            for pattern, variables in value.items():
                plain = {name: (_plain(item), place) for name, item in variables.items()}
                adding.hosts(pattern, place, group=group, variables=plain)
        elif key in ("vars", "children", "hosts"):
            _wrong(place, f"{key!r} of group {group!r} has the wrong shape", adding)
        else:
            adding.problems.warn(place, "unknown-key", f"{key!r} in group {group!r} is left out", remedy=_REMEDY)


def _wrong(place: Place, summary: str, adding: Adding) -> None:
    adding.problems.error(place, "toml-shape", summary, remedy=_REMEDY)


def _plain(value: object) -> JsonValue:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case dt.date() | dt.time():
            return value.isoformat()
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case _:
            return str(value)

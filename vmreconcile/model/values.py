"""Plain values and where they came from. Owns `JsonValue`, `Origin` and `Setting`; interprets nothing."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmreconcile.errors import Place

JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]

LAST_MOMENT = 253_000_000_000.0
"""Seconds since 1970, early in the year 9987: the last year that `datetime` has is 9999, wherever the clock stands."""


class OriginKind(enum.StrEnum):
    """Who said a value, lowest precedence first."""

    DEFAULT = "default"
    TUNING = "tuning"
    GROUP_VARS = "group_vars"
    HOST_VARS = "host_vars"
    MODEL = "model"
    OVERRIDE = "override"
    REVISION = "revision"
    """What a host kept of an earlier launch: not said by any file of ours."""

    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value was said: the kind of source, the place in it, and a note for `--explain`."""

    kind: OriginKind
    place: Place | None = None
    note: str = ""

    def __str__(self) -> str:
        """Render for a person: 'models.d/a.yaml:9 (override gpu3)'."""
        where = str(self.place) if self.place else self.kind.value
        return f"{where} ({self.note})" if self.note else where


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One value with its origin."""

    value: JsonValue
    origin: Origin

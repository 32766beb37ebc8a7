"""One JSON object from a host, read with types. Knows no names of its own and trusts nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from vmreconcile.model.values import LAST_MOMENT, JsonValue

LARGEST = 2**64

_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_HEX = re.compile(r"[0-9a-f]{1,64}")

T = TypeVar("T")


class Facts:
    """One JSON object read with types: a missing or wrong value becomes the neutral one of its kind."""

    def __init__(self, data: JsonValue) -> None:
        """Take any JSON value; what is no object counts as empty."""
        self._data: Mapping[str, JsonValue] = data if isinstance(data, dict) else {}

    def text(self, name: str) -> str:
        """A string, '' where there is none."""
        value = self._data.get(name)
        return value if isinstance(value, str) else ""

    def maybe_text(self, name: str) -> str | None:
        """A string or None."""
        value = self._data.get(name)
        return value if isinstance(value, str) else None

    def word(self, name: str) -> str:
        """A state, version or identifier: letters, digits and `_.+-`, 64 at most; '' for anything else."""
        return value if _WORD.fullmatch(value := self.text(name)) else ""

    def digits(self, name: str) -> str:
        """A digest in hexadecimal, '' for anything else."""
        return value if _HEX.fullmatch(value := self.text(name)) else ""

    def moment(self, name: str) -> float:
        """Seconds since 1970 that a calendar has, 0.0 for anything else."""
        value = self.number(name)
        return value if 0 <= value < LAST_MOMENT else 0.0

    def number(self, name: str) -> float:
        """A number, 0.0 where there is none."""
        return self.maybe_number(name) or 0.0

    def maybe_number(self, name: str) -> float | None:
        """A number or None."""
        value = self._data.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST:
            return None  # JSON as Python reads it has NaN, infinities and numbers without end
        return float(value)

    def integer(self, name: str) -> int:
        """An integer, 0 where there is none."""
        return self.maybe_integer(name) or 0

    def maybe_integer(self, name: str) -> int | None:
        """An integer or None."""
        value = self._data.get(name)
        return value if type(value) is int and abs(value) < LARGEST else _whole(self.maybe_number(name))

    def flag(self, name: str) -> bool:
        """Whether the value is true."""
        return self._data.get(name) is True

    def maybe_flag(self, name: str) -> bool | None:
        """True, False or None."""
        value = self._data.get(name)
        return value if isinstance(value, bool) else None

    def texts(self, name: str) -> tuple[str, ...]:
        """The strings of a list."""
        value = self._data.get(name)
        return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()

    def integers(self, name: str) -> tuple[int, ...]:
        """The integers of a list."""
        value = self._data.get(name)
        return tuple(item for item in value if type(item) is int) if isinstance(value, list) else ()

    def one(self, name: str, read: Callable[[Facts], T]) -> T | None:
        """An object read by `read`, or None."""
        value = self._data.get(name)
        return read(Facts(value)) if isinstance(value, dict) else None

    def many(self, name: str, read: Callable[[Facts], T]) -> tuple[T, ...]:
        """A list of objects, each read by `read`."""
        value = self._data.get(name)
        items: Sequence[JsonValue] = value if isinstance(value, list) else ()
        return tuple(read(Facts(item)) for item in items)

    def table(self, name: str, read: Callable[[Facts], T]) -> dict[str, T]:
        """An object of objects."""
        value = self._data.get(name)
        return {key: read(Facts(item)) for key, item in value.items()} if isinstance(value, dict) else {}

    def strings(self, name: str) -> dict[str, str]:
        """An object of strings."""
        value = self._data.get(name)
        return {key: str(item) for key, item in value.items()} if isinstance(value, dict) else {}

    def part(self, name: str) -> Facts:
        """A nested object; empty where there is none."""
        return Facts(self._data.get(name))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)

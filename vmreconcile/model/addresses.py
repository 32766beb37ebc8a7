"""The grammar of host names in inventories and patterns: names, addresses, `:port`, `[a:b:step]` ranges.

Owns the grammar and the expansion of ranges. The rules are those of `ansible-inventory`: a text that is no valid name
is taken whole, port and all. Knows no inventory.
"""

from __future__ import annotations

import re
from string import ascii_letters

_LETTERS_OR_NUMBERS = r"\[(?:[a-z]:[a-z]|[0-9]+:[0-9]+)(?::[0-9]+)?\]"
_HEX_GROUP = r"(?:[0-9a-f]{1,4}|\[[0-9a-f]+:[0-9a-f]+(?::[0-9]+)?\])"
_HEX_GROUPS = rf"{_HEX_GROUP}(?::{_HEX_GROUP})*"
_LABEL = rf"(?:\w|{_LETTERS_OR_NUMBERS})(?:[\w-]|{_LETTERS_OR_NUMBERS})*(?<![_-])"

_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)
_IPV6 = re.compile(rf"(?P<head>{_HEX_GROUPS})?(?P<gap>::)?(?P<tail>{_HEX_GROUPS})?", re.IGNORECASE)
_IPV4_IN_IPV6 = re.compile(
    rf"(?:(?:0:){{6}}|::(?:ffff:)?|(?:0:){{5}}ffff:)(?:{_HEX_GROUP}\.){{3}}{_HEX_GROUP}", re.IGNORECASE
)
_BRACKETED_PORT = re.compile(r"\[(.+)\]:([0-9]+)")
_PORT = re.compile(r"((?:[^:\[\]]|\[[^\]]*\])*):([0-9]+)")


class RangeError(ValueError):
    """A `[a:b]` range that cannot be expanded; `str()` says why."""


def split_port(text: str) -> tuple[str, int | None] | None:
    """Split `NAME`, `NAME:PORT` or `[NAME]:PORT` (NAME may hold ranges); None where NAME is no valid name or address.

    Only `[…]:PORT` gives a port to an IPv6 address.
    """
    port = None
    for form in (_BRACKETED_PORT, _PORT):
        if found := form.fullmatch(text):
            text, port = found[1], int(found[2])
    if _NAME.fullmatch(text) or _is_ipv6(text) or _IPV4_IN_IPV6.fullmatch(text):
        return text, port
    return None


def expand_ranges(text: str) -> tuple[str, ...]:
    """Expand every `[begin:end]` and `[begin:end:step]`, the first one slowest; a text without '[' is itself.

    Raises:
        RangeError: where a range is not one of numbers or of single letters.
    """
    if "[" not in text:
        return (text,)
    head, _, rest = text.partition("[")
    inside, closed, tail = rest.partition("]")
    if not closed:
        raise RangeError(f"'[{inside}' lacks its ']'")
    tails = expand_ranges(tail)
    return tuple(f"{head}{item}{more}" for item in _items(inside) for more in tails)


def _items(inside: str) -> list[str]:
    """Expand what stands between the brackets."""
    parts = inside.split(":")
    if len(parts) not in (2, 3) or not parts[1]:
        raise RangeError(f"'[{inside}]' is not [begin:end] or [begin:end:step]")
    begin, end = parts[0] or "0", parts[1]
    width = len(begin) if begin[0] == "0" and len(begin) > 1 else 0
    if width and width != len(end):
        raise RangeError(f"'[{inside}]' starts with zeros, so both ends must have the same number of digits")
    letters = len(begin) == len(end) == 1 and begin in ascii_letters and end in ascii_letters
    try:
        step = int(parts[2]) if len(parts) == 3 else 1
        if letters:
            return _letters(inside, ascii_letters.index(begin), ascii_letters.index(end), step)
        return [str(number).zfill(width) for number in range(int(begin), int(end) + 1, step)]
    except ValueError as error:
        if isinstance(error, RangeError):
            raise
        raise RangeError(f"'[{inside}]' counts neither numbers nor single letters, or its step is 0") from None


def _letters(inside: str, first: int, last: int, step: int) -> list[str]:
    if first > last:
        raise RangeError(f"'[{inside}]' ends before it begins (capitals come after small letters)")
    return list(ascii_letters[first : last + 1 : step])


def _is_ipv6(text: str) -> bool:
    found = _IPV6.fullmatch(text)
    if not found:
        return False
    head, tail = (len(re.findall(_HEX_GROUP, found[side] or "", re.IGNORECASE)) for side in ("head", "tail"))
    if not found["gap"]:
        return head == 8 and tail == 0
    return head <= 6 and tail <= 6 and head + tail <= 7

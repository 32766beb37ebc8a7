"""Numbers of the command line, for argparse: read, or refused with what they should be."""

from __future__ import annotations

import argparse

from vmreconcile.core import durations
from vmreconcile.core.durations import WEEK


def positive(text: str) -> int:
    """A number from 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """A number from 0."""
    return _whole(text, 0)


def share(text: str) -> int | str:
    """A number from 1, or a percentage from 1% to 100%."""
    number = text.removesuffix("%")
    if not (number.isascii() and number.isdigit() and int(number) and (number == text or int(number) <= 100)):
        raise argparse.ArgumentTypeError(f"{text} is neither a number from 1 nor a percentage up to 100%")
    return int(number) if number == text else f"{int(number)}%"


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is not a number from {least}")
    return number


def fraction(text: str) -> float:
    """A share above 0, up to the whole."""
    number = _real(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0 and up to 1")
    return number


def seconds(text: str) -> float:
    """Seconds above 0."""
    number = _real(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return number


def duration(text: str) -> float:
    """Seconds, from 0 to a week: `90`, `30s`, `5m`, `1h30m`."""
    if text.isascii() and text.isdigit():
        found: float | None = int(text) if int(text) <= WEEK else None
    else:
        found = durations.seconds(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is no duration such as 0, 90, 30s, 5m or 1h, a week at most")
    return float(found)


def _real(text: str) -> float:
    """The number; 0, which nobody takes here, for what is none."""
    try:
        return float(text)
    except ValueError:
        return 0.0

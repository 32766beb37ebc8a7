"""Durations as people write them, in seconds. Pure."""

from __future__ import annotations

import math
import re

WEEK = 604_800.0
"""Seconds; the longest that makes sense for a start."""

_WRITTEN = re.compile(r"(?=.)(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)
_SECONDS = (86_400, 3_600, 60, 1)


def seconds(value: object) -> float | None:
    """Read `90`, `'90s'`, `'15m'`, `'1h30m'`, `'2d'`; None for anything else, for 0 and for more than a week."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        total = float(value) if abs(value) <= WEEK else math.inf
    elif isinstance(value, str) and (match := _WRITTEN.fullmatch(value)):
        total = float(sum(int(part or 0) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True)))
    else:
        return None
    return total if 0 < total <= WEEK else None

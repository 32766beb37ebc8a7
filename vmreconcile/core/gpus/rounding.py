"""To which steps numbers are rounded that the tool chooses: more digits would be noise, and restart servers. Pure."""

from __future__ import annotations

import math

STEP = 0.01
"""Of utilizations."""

ROUND_LENGTH = 256
"""Of contexts, in tokens."""


def up(share: float) -> float:
    """The next utilization that is no smaller."""
    return round(math.ceil(round(share / STEP, 6)) * STEP, 2)


def down(share: float) -> float:
    """The next utilization that is no larger."""
    return round(math.floor(round(share / STEP, 6)) * STEP, 2)


def shorter(length: int) -> int:
    """The next context that is no longer; 0 where it is shorter than a step."""
    return length // ROUND_LENGTH * ROUND_LENGTH

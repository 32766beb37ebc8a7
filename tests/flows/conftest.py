"""What the use cases' tests share: waits in milliseconds."""

from __future__ import annotations

import functools

import pytest

from vmreconcile.core import conduct
from vmreconcile.flows import draining, mending, ready, room
from vmreconcile.model.desired import Health


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once; no soak where a file says none."""
    monkeypatch.setattr(conduct, "Health", functools.partial(Health, soak=0.0))
    for module in (ready, room):
        monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(mending, "PAUSE_S", 0.001)
    monkeypatch.setattr(draining, "PAUSE_S", 0.001)

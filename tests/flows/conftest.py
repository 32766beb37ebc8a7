"""What the use cases' tests share: waits in milliseconds."""

from __future__ import annotations

import pytest

from vmreconcile.flows import ready


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once."""
    monkeypatch.setattr(ready, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(ready, "LONGEST_PAUSE_S", 0.002)

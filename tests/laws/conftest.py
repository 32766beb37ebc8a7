"""What the laws share: waits in milliseconds, for the whole module, as Hypothesis wants it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmreconcile.flows import ready, room


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Look again at once, and give up soon."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (ready, room):
            patch.setattr(module, "FIRST_PAUSE_S", 0.001)
            patch.setattr(module, "LONGEST_PAUSE_S", 0.002)
        patch.setattr(room, "LONGEST_WAIT_S", 0.2)
        yield

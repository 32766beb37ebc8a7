"""How long the cache of what the Hub allowed counts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vmreconcile.effects import access_cache
from vmreconcile.effects.access_cache import KEPT_S, AccessCache
from vmreconcile.model.access import Access, Question, Verdict

ONE = Question(model="org/one")
TWO = Question(model="org/two")
OK = Verdict(access=Access.OK)


class Clock:
    """Stands where the cache has the time."""

    def __init__(self) -> None:
        """Begin at some moment."""
        self.now = 1_800_000_000.0

    def time(self) -> float:
        """The moment."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock to be set."""
    there = Clock()
    monkeypatch.setattr(access_cache, "time", there)
    return there


def test_what_was_allowed_counts_for_an_hour(tmp_path: Path, clock: Clock) -> None:
    """In the same run and from the file, up to its end and no longer; what is too old is left out of the file."""
    assert KEPT_S == 3600
    cache = AccessCache(tmp_path)
    cache.keep(ONE, None, OK)
    cache.save()
    clock.now += 3599
    for each in (cache, AccessCache(tmp_path)):
        assert each.allowed(ONE, None) is not None
    clock.now += 2
    again = AccessCache(tmp_path)
    for each in (cache, again):
        assert each.allowed(ONE, None) is None
    again.keep(TWO, None, OK)
    again.save()
    assert (tmp_path / "access.json").read_text().count("[") == 2, "its time and its architectures, of one question"


def test_a_clock_that_was_set_back_makes_nothing_count_longer(tmp_path: Path, clock: Clock) -> None:
    """What ends more than an hour from now was not kept by this clock."""
    cache = AccessCache(tmp_path)
    cache.keep(ONE, None, OK)
    cache.save()
    clock.now -= 60
    assert AccessCache(tmp_path).allowed(ONE, None) is None


def test_the_clock_is_the_real_one() -> None:
    """Where nothing stands in its place."""
    assert access_cache.time is time

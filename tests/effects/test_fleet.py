"""Sessions of a fleet: kept while something may follow, ended at once where a host is only looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from vmreconcile.effects.fleet import Fleet
from vmreconcile.errors import UnreachableError

SEEN = {"observation": {"format": 1, "host": {"hostname": "gpu", "boot_id": "b", "uid": 0, "user": "root"}}}


@dataclass
class Hosts:
    """Hosts in memory: which sessions are open, and how many were opened in all."""

    lost: frozenset[str] = frozenset()
    opened: list[str] = field(default_factory=list)
    open_now: set[str] = field(default_factory=set)

    def open(self, host: str) -> Session:
        """Open a session."""
        self.opened.append(host)
        self.open_now.add(host)
        return Session(self, host)


@dataclass
class Session:
    """One session, which answers every request with an empty host."""

    hosts: Hosts
    host: str

    def request(self, *_: object, **__: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the fleet passes
        """Answer, or be lost."""
        if self.host in self.hosts.lost:
            raise UnreachableError("the connection was lost")
        return dict(SEEN)

    def close(self) -> None:
        """End the session."""
        self.hosts.open_now.discard(self.host)


def fleet(hosts: Hosts) -> Fleet:
    """A fleet over `hosts`."""
    return Fleet(open_host=hosts.open, looks={}, salt="00" * 16, forks=4)


@pytest.mark.parametrize("lost", [frozenset(), frozenset({"gpu1"})])
def test_a_host_that_is_seen_once_is_left_at_once(lost: frozenset[str]) -> None:
    """A plan asks nothing more: no session outlives the look, whether it succeeded or not."""
    hosts = Hosts(lost=lost)

    view = fleet(hosts).observe(["gpu1", "gpu2"], once=True)

    assert hosts.open_now == set()
    assert {each.host for each in view.hosts} | {each.host for each in view.unreachable} == {"gpu1", "gpu2"}


def test_sessions_are_kept_for_what_follows() -> None:
    """An apply goes on in the session in which it looked; closing the fleet ends them all."""
    hosts = Hosts()
    many = fleet(hosts)

    many.observe(["gpu1", "gpu2"])
    many.observe_host("gpu1")

    assert sorted(hosts.opened) == ["gpu1", "gpu2"]
    assert hosts.open_now == {"gpu1", "gpu2"}
    many.close()
    assert hosts.open_now == set()

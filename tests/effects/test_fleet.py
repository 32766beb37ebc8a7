"""Sessions of a fleet: kept while something may follow, ended at once where a host is only looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Refusal
from vmreconcile.effects.fleet import Fleet, Look
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


def test_what_was_seen_is_sorted_and_the_rest_is_data() -> None:
    """Hosts by name whatever came first; unreachable ones with reason and remedy; a failing agent too."""
    hosts = {name: FakeHost(name) for name in ("c", "a", "b", "d")}
    hosts["b"].unreachable = "connection refused (10.0.0.2:22)"
    hosts["d"].failing["observe"] = Refusal("agent-bug", "TypeError at observe.py:7")
    answer = hosts["d"]._answer

    def broken(request: dict[str, Any], progress: Any) -> dict[str, Any]:  # noqa: ANN401 - passed on
        raise hosts["d"].failing["observe"] if request["do"] == "observe" else answer(request, progress)

    hosts["d"]._answer = broken  # type: ignore[method-assign]
    view = Fleet(open_host=hosts.__getitem__, looks={}, salt="00" * 16).observe(["c", "d", "b", "a"])
    assert [host.host for host in view.hosts] == ["a", "c"]
    assert [(host.host, host.reason) for host in view.unreachable] == [
        ("b", "connection refused (10.0.0.2:22)"),
        ("d", "the agent failed: TypeError at observe.py:7"),
    ]
    assert view.host("a") is not None
    assert view.host("b") is None


@dataclass
class Flaky:
    """A session that is lost at its second request."""

    asked: list[str]
    left: int = 1

    def request(self, payload: dict[str, Any], **_: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the fleet passes
        """Answer once."""
        self.asked.append(payload["do"])
        if self.left == 0:
            raise UnreachableError("the connection was lost")
        self.left -= 1
        return dict(SEEN)

    def close(self) -> None:
        """End."""


def test_a_question_is_asked_once_more_and_steps_are_not() -> None:
    """Steps may have been carried out before the connection broke: only a new look can tell."""
    asked: list[str] = []
    many = Fleet(open_host=lambda _: Flaky(asked), looks={}, salt="00" * 16)
    many.observe_host("gpu1")
    many.observe_host("gpu1")
    assert asked == ["observe"] * 3
    with pytest.raises(UnreachableError, match="the connection was lost"):
        many.request("gpu1", {"do": "steps", "slug": "m", "steps": []}, timeout=1.0)
    assert asked[3:] == ["steps"]
    many.observe_host("gpu1")
    assert asked[4:] == ["observe"]


def test_a_look_goes_with_the_hosts_folders() -> None:
    """Every request carries them; a narrow look names its server and asks for no GPUs; metrics where wanted."""
    host = FakeHost("h")
    folders = {"config": "/c", "state": "/s"}
    many = Fleet(open_host=lambda _: host, looks={"h": Look(ports=(1,), folders=folders)}, salt="00" * 16)
    many.observe_host("h")
    many.observe_host("h", "m")
    whole, narrow = host.requests
    assert (whole["folders"], whole["ports"], whole["servers"], whole["gpus"]) == (folders, [1], None, True)
    assert (narrow["servers"], narrow["gpus"], narrow["metrics"]) == (["m"], False, False)
    many.observe(["h"], metrics=True)
    assert host.requests[-1]["metrics"] is True

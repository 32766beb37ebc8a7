"""Sessions of a fleet: kept while something may follow, ended at once where a host is only looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Refusal
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.looks import Look
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


def test_a_host_that_was_reached_is_tried_again_for_as_long_as_patience_lasts() -> None:
    """It answers again: nothing was lost. It does not: told after that time, and then at once, as one never reached."""
    asked: list[str] = []
    refused = 0

    def open_host(_: str) -> Flaky:
        if refused and len(opened) % refused:
            opened.append("refused")
            raise UnreachableError("connection refused")
        opened.append("open")
        return Flaky(asked)

    opened: list[str] = []
    many = Fleet(open_host=open_host, looks={}, salt="00" * 16, patience=1.2)
    many.observe_host("gpu1")
    refused = 3
    many.observe_host("gpu1")
    assert (asked, opened) == (["observe"] * 3, ["open", "refused", "refused", "open"])
    refused = 1 << 20
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match="connection refused"):
        many.observe_host("gpu1")
    assert 1.2 <= time.monotonic() - begun < 5
    for host in ("gpu1", "gpu2"):
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match="connection refused"):
            many.observe_host(host)
        assert time.monotonic() - begun < 0.5, host


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


def test_a_look_at_gpus_alone_asks_for_nothing_else() -> None:
    """It is repeated while memory is waited for; one server's look has GPUs only where they are asked for."""
    host = FakeHost("h", gpus=2)
    many = Fleet(open_host=lambda _: host, looks={"h": Look(ports=(1,))}, salt="00" * 16)
    assert len(many.observe_gpus("h").gpus) == 2
    asked = host.requests[-1]
    assert (asked["servers"], asked["ports"], asked["executables"], asked["gpus"]) == ([], [], [], True)
    assert len(many.observe_host("h", "m", gpus=True).gpus) == 2
    assert host.requests[-1]["servers"] == ["m"]


# --- Several threads -------------------------------------------------------------------------------------------------


def at_once(*works: Callable[[], object]) -> list[object]:
    """What came of each, all begun at the same time; an error that is ours is its result."""
    found: list[object] = [None] * len(works)
    barrier = threading.Barrier(len(works), timeout=10)

    def work(number: int) -> None:
        barrier.wait()
        try:
            found[number] = works[number]()
        except UnreachableError as error:
            found[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


@dataclass
class Counted:
    """A session that takes its time, and notices when it is asked twice at once; with `lost` it breaks when asked."""

    lost: bool = False
    busy: bool = False
    asked: int = 0

    def request(self, payload: dict[str, Any], **_: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever the fleet passes
        """Answer after a moment."""
        assert not self.busy, "two requests at once"
        self.busy, self.asked = True, self.asked + 1
        time.sleep(0.02)
        self.busy = False
        if self.lost:
            raise UnreachableError("the connection was lost")
        return {**SEEN, "got": payload.get("slug")}

    def close(self) -> None:
        """End."""


def test_threads_of_one_host_share_one_session_and_take_turns() -> None:
    """It is opened once, however many ask first; each gets the answer to its own question."""
    opened: list[Counted] = []

    def open_host(host: str) -> Counted:
        time.sleep(0.05)
        opened.append(Counted())
        return opened[-1]

    many = Fleet(open_host=open_host, looks={}, salt="00" * 16)
    names = [f"m{number}" for number in range(6)]
    asks = [partial(many.request, "gpu1", {"do": "steps", "slug": name}, timeout=5.0) for name in names]
    assert [answer["got"] for answer in at_once(*asks)] == names  # type: ignore[index]  # answers
    assert [session.asked for session in opened] == [6]


def test_a_session_that_one_thread_lost_is_replaced_for_the_others() -> None:
    """Steps that were not sent yet go over the new one; only those that were under way are lost."""
    sessions = [Counted(lost=True), Counted()]
    many = Fleet(open_host=lambda _: sessions.pop(0), looks={}, salt="00" * 16)
    asks = [partial(many.request, "gpu1", {"do": "steps", "slug": name}, timeout=5.0) for name in "abcd"]
    found = at_once(*asks)
    assert sum(isinstance(each, UnreachableError) for each in found) == 1
    assert sum(isinstance(each, dict) for each in found) == 3
    assert sessions == []


def test_threads_of_different_hosts_do_not_wait_for_each_other() -> None:
    """Two hosts whose sessions answer only once both are asked."""
    barrier = threading.Barrier(2, timeout=10)

    class Together(Counted):
        def request(self, *_: object, **__: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
            barrier.wait()
            return dict(SEEN)

    many = Fleet(open_host=lambda _: Together(), looks={}, salt="00" * 16)
    asks = [partial(many.request, host, {"do": "observe"}, timeout=5.0) for host in ("gpu1", "gpu2")]
    assert at_once(*asks) == [SEEN, SEEN]

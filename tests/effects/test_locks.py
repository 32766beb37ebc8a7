"""A fleet that holds hosts: over broken sessions, against other runs, and in words for a person."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.fake_lock import FakeSession
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.locks import LEASE_S, RENEW_S, Holder, holder_of, refusal, run_name, whoami
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.model.values import JsonValue

TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up
STEPS = {"do": "steps", "slug": "m", "steps": []}
BOB: dict[str, object] = {"do": "lock", "owner": "bob@desk", "command": "vm stop m", "run": "b" * 32, "timeout": 0}


class Hosts:
    """Hosts in memory with the sessions that were opened to them, oldest first."""

    def __init__(self, *names: str) -> None:
        """Make them."""
        self.hosts = {name: FakeHost(name) for name in names}
        self.sessions: list[FakeSession] = []

    def open(self, name: str) -> FakeSession:
        """Open a session."""
        self.sessions.append(self.hosts[name].open())
        return self.sessions[-1]

    def fleet(self, salt: str = "00" * 16, renew: float = 0.0) -> Fleet:
        """A run of its own."""
        return Fleet(open_host=self.open, looks={}, salt=salt, forks=4, renew=renew)

    def asked(self, name: str = "h1") -> list[str]:
        """What the host was asked, in order."""
        return [request["do"] for request in self.hosts[name].requests]


def hold(fleet: Fleet, host: str = "h1", **options: Any) -> None:  # noqa: ANN401 - as `lock` takes them
    """Take a lock."""
    fleet.lock(host, owner="alice@laptop", command="vmreconcile apply", **options)


def locked(call: Callable[[], object]) -> AgentError:
    """The refusal."""
    with pytest.raises(AgentError) as caught:
        call()
    assert caught.value.kind == "locked"
    return caught.value


def test_another_run_is_refused_and_told_by_whom() -> None:
    """In words, with the way out; on this host alone, and until the first run ends."""
    hosts = Hosts("h1", "h2")
    first, second = hosts.fleet("11" * 16), hosts.fleet("22" * 16)
    hold(first)
    error = locked(lambda: hold(second))
    assert str(error) == "locked by alice@laptop since 2026-11-22 22:20:00 UTC (60 s): vmreconcile apply"
    assert "--lock-timeout" in error.remedy
    hold(second, "h2")
    first.close()
    hold(second)


def test_a_host_is_held_again_before_anything_else_is_asked_over_a_new_session() -> None:
    """Whether the agent that was lost has ended or not; asked twice or not."""
    for ends in (FakeSession.end, lambda session: setattr(session, "broken", True)):
        hosts = Hosts("h1")
        fleet = hosts.fleet()
        hold(fleet)
        ends(hosts.sessions[0])
        with pytest.raises(UnreachableError):
            fleet.request("h1", STEPS, timeout=5.0)
        fleet.request("h1", STEPS, timeout=5.0)
        assert hosts.asked() == ["lock", "lock", "steps"]
        assert hosts.hosts["h1"].run_lock.holder is hosts.sessions[1]
        ends(hosts.sessions[1])
        fleet.observe_host("h1")
        assert hosts.asked()[3:] == ["lock", "observe"]
        assert hosts.hosts["h1"].run_lock.holder is hosts.sessions[2]


def test_a_dropped_host_is_held_again_too() -> None:
    """Who drops a session wants its agent to stop, not the host to be free."""
    hosts = Hosts("h1")
    fleet = hosts.fleet()
    hold(fleet)
    fleet.drop("h1")
    fleet.request("h1", STEPS, timeout=5.0)
    assert hosts.asked() == ["lock", "lock", "steps"]


def test_a_host_that_another_run_took_meanwhile_is_left_alone() -> None:
    """Nothing is asked there any more, however often; the other run keeps it, and no session is left open."""
    hosts = Hosts("h1", "h2")
    fleet = hosts.fleet()
    hold(fleet)
    hold(fleet, "h2")
    hosts.sessions[0].end()
    other = hosts.open("h1")
    other.request(BOB, timeout=5.0)
    with pytest.raises(UnreachableError):
        fleet.request("h1", STEPS, timeout=5.0)
    for _ in range(2):
        assert "bob@desk" in str(locked(lambda: fleet.request("h1", STEPS, timeout=5.0)))
        assert "bob@desk" in str(locked(lambda: fleet.observe_host("h1")))
    assert set(hosts.asked()) == {"lock"}
    assert hosts.hosts["h1"].run_lock.holder is other
    assert set(hosts.hosts["h1"].run_lock.claims) == {other}
    fleet.request("h2", STEPS, timeout=5.0)
    other.close()
    fleet.request("h1", STEPS, timeout=5.0)


def test_a_host_that_was_let_go_is_not_held_again() -> None:
    """Another run has it at once, and what is asked there later takes no lock."""
    hosts = Hosts("h1")
    first, second = hosts.fleet("11" * 16), hosts.fleet("22" * 16)
    hold(first)
    first.release("h1")
    hold(second)
    first.drop("h1")
    first.observe_host("h1")
    assert hosts.asked()[-1] == "observe"
    first.release("h1")
    assert hosts.hosts["h1"].run_lock.holder is hosts.sessions[1]


def test_a_release_over_a_lost_session_is_none() -> None:
    """It is no error, and opens no new one."""
    hosts = Hosts("h1")
    fleet = hosts.fleet()
    hold(fleet)
    hosts.sessions[0].end()
    fleet.release("h1")
    assert len(hosts.sessions) == 1


def test_who_waits_hears_of_the_holder_and_may_give_up() -> None:
    """What `on_wait` raises ends the waiting."""
    hosts = Hosts("h1")
    first, second = hosts.fleet("11" * 16), hosts.fleet("22" * 16)
    hold(first)
    told: list[Holder] = []

    def heard(holder: Holder) -> None:
        told.append(holder)
        if len(told) == 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        hold(second, timeout=60.0, on_wait=heard)
    assert {(holder.owner, holder.command) for holder in told} == {("alice@laptop", "vmreconcile apply")}


def test_who_waits_gets_it() -> None:
    """As soon as the first run ends."""
    hosts = Hosts("h1")
    first, second = hosts.fleet("11" * 16), hosts.fleet("22" * 16)
    hold(first)
    ending = threading.Timer(0.3, first.close)
    ending.start()
    begun = time.monotonic()
    hold(second, timeout=30.0)
    ending.join()
    assert time.monotonic() - begun < 5
    second.request("h1", STEPS, timeout=5.0)


def test_a_host_that_is_held_hears_of_us_while_nothing_is_done_there() -> None:
    """Every so often, hosts that are not held excepted; no longer once the run has ended."""
    hosts = Hosts("h1", "h2")
    fleet = hosts.fleet(renew=0.02)
    fleet.observe(["h1", "h2"])
    hold(fleet)
    until = time.monotonic() + 10
    while hosts.asked().count("lock") < 4:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert hosts.hosts["h1"].requests[1]["lease"] == LEASE_S >= 3 * RENEW_S
    assert hosts.hosts["h1"].requests[-1]["again"] is True
    assert hosts.asked("h2") == ["observe"]
    fleet.close()
    time.sleep(0.1)
    count = len(hosts.asked())
    time.sleep(0.2)
    assert len(hosts.asked()) == count


def test_a_session_that_broke_in_the_quiet_is_replaced_by_the_next_request() -> None:
    """The lock comes first, as ever."""
    hosts = Hosts("h1")
    fleet = hosts.fleet(renew=0.02)
    hold(fleet)
    hosts.sessions[0].end()
    time.sleep(0.2)
    fleet.request("h1", STEPS, timeout=5.0)
    assert hosts.asked()[-1] == "steps"
    assert hosts.hosts["h1"].run_lock.holder is hosts.sessions[1]
    fleet.close()


# --- Words ----------------------------------------------------------------------------------------------------------


def test_the_name_of_a_run_tells_nothing_of_its_salt() -> None:
    """It lies in a file on the host; the salt must not."""
    assert run_name("00" * 16) != run_name("11" * 16)
    assert "00" * 8 not in run_name("00" * 16)


def test_whoami_names_person_and_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the user has no name."""
    monkeypatch.setenv("LOGNAME", "alice")
    assert whoami().startswith("alice@")

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert whoami().startswith("somebody@")


def test_a_command_with_something_secret_in_it_is_sent_without() -> None:
    """Nobody should type a token; who did must not find it on every host."""
    hosts = Hosts("h1")
    hosts.fleet().lock("h1", owner="a@b\x1b[2J\n", command=f"vmreconcile start {TOKEN} https://u:pw@host/x")
    (request,) = hosts.hosts["h1"].requests
    assert TOKEN not in str(request)
    assert "pw@" not in str(request)
    assert request["owner"] == "a@b"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (None, "a run that left no name"),
        ([], "a run that left no name"),
        ({"owner": 5, "command": ["x"], "since": "now", "age": {}}, "a run that left no name"),
        ({"since": 1e300, "age": -5}, "a run that left no name"),
        ({"owner": "a\x1b]0;x\x07\r\nb", "command": "x\u202ey"}, "a  b: x y"),
        ({"owner": TOKEN, "command": f"-- {TOKEN}"}, "***: -- ***"),
        ({"owner": "a" * 5000, "command": ""}, "a" * 120),
        ({"owner": "a@b", "since": 5, "age": 1e18}, "a@b since 1970-01-01 00:00:05 UTC (277777777777778 h)"),
        ({"owner": "a@b", "since": 1795386000.5, "age": 400}, "a@b since 2026-11-22 22:20:00 UTC (7 min)"),
        ({"owner": "a@b", "since": 1795386000, "age": None}, "a@b since 2026-11-22 22:20:00 UTC"),
    ],
)
def test_whatever_a_host_says_of_a_holder(said: JsonValue, shown: str) -> None:
    """On one line, without secrets and control characters, not longer than it should be."""
    assert str(holder_of(said)) == shown


def test_other_refusals_are_told_as_they_are() -> None:
    """A folder that cannot be used, and the agent's lock of single steps."""
    for error in (AgentError("unsafe-path", "x"), AgentError("locked", "another run is at work (pid 5)")):
        assert refusal(error) is error

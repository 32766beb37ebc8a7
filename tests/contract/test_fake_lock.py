"""The lock of the host in memory is the real agent's: the same questions to two agents of each, the same answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.driver import Agent, Refused
from tests.lab.fake_host import FakeHost
from vmreconcile.effects.session import AgentError

Json = dict[str, Any]
Ask = Callable[..., tuple[Json, list[Json]]]
"""Asks one agent: the last answer, and those before it."""

ALICE = {"do": "lock", "owner": "alice@laptop", "command": "vmreconcile apply", "run": "a" * 32, "timeout": 0}
BOB = {"do": "lock", "owner": "bob@desk", "command": "vmreconcile stop m", "run": "b" * 32, "timeout": 0}
RELEASE = {"do": "lock", "release": True}


def fake_agent(host: FakeHost) -> tuple[Ask, Callable[[], object]]:
    """A session in memory, and what ends it."""
    session = host.open()

    def ask(**request: Any) -> tuple[Json, list[Json]]:  # noqa: ANN401 - JSON values
        progress: list[Json] = []
        return session.request(request, timeout=60.0, on_progress=progress.append), progress

    return ask, session.close


def real_agent(folder: Path) -> tuple[Ask, Callable[[], object]]:
    """A process, and what ends it."""
    agent = Agent(folder)

    def ask(**request: Any) -> tuple[Json, list[Json]]:  # noqa: ANN401 - JSON values
        try:
            return agent.ask(request.pop("do"), **request)
        except Refused as error:
            raise AgentError(error.kind, str(error), more=error.answer["error"]) from error

    return ask, agent.close


class Two:
    """Two agents of one host, each asked by calling it; `end` ends the first."""

    def __init__(self, first: tuple[Ask, Callable[[], object]], second: tuple[Ask, Callable[[], object]]) -> None:
        """Keep both."""
        (self.first, self.end), (self.second, self.end_second) = first, second

    def close(self) -> None:
        """End both."""
        for end in (self.end, self.end_second):
            end()


@pytest.fixture(params=["fake", "real"])
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Two]:
    """Either kind."""
    host = FakeHost("h1", systemd=None)
    made = (
        Two(fake_agent(host), fake_agent(host))
        if request.param == "fake"
        else Two(real_agent(tmp_path), real_agent(tmp_path))
    )
    yield made
    made.close()


def refused(ask: Ask, **request: Any) -> AgentError:  # noqa: ANN401 - JSON values
    """The refusal of a request."""
    with pytest.raises(AgentError) as caught:
        ask(**request)
    return caught.value


def test_the_second_is_refused_and_told_by_whom(two: Two) -> None:
    """With everything that a person needs, and not the run's own name."""
    assert two.first(**ALICE)[0]["held"] is True
    assert two.first(**ALICE)[0]["held"] is True
    error = refused(two.second, **BOB)
    assert error.kind == "locked"
    holder = error.more["holder"]
    assert isinstance(holder, dict)
    assert set(holder) == {"owner", "command", "since", "age", "pid"}
    assert (holder["owner"], holder["command"]) == (ALICE["owner"], ALICE["command"])


def test_it_ends_with_its_session_or_when_it_is_let_go(two: Two) -> None:
    """Whose it is not, that one lets nothing go."""
    two.first(**ALICE)
    assert two.second(**RELEASE)[0]["changed"] is False
    assert refused(two.second, **BOB).kind == "locked"
    assert two.first(**RELEASE)[0]["changed"] is True
    assert two.second(**BOB)[0]["held"] is True
    assert refused(two.first, **ALICE).kind == "locked"
    two.second(**RELEASE)
    two.first(**ALICE)
    two.end()
    assert two.second(**BOB)[0]["held"] is True


@pytest.mark.slow
def test_who_waits_is_told_of_the_holder_and_has_the_lock_in_the_end(two: Two) -> None:
    """The first one ends after two seconds."""
    two.first(**ALICE)
    ending = threading.Timer(2.0, two.end)
    ending.start()
    answer, told = two.second(**{**BOB, "timeout": 30})
    ending.join()
    assert answer["held"] is True
    assert {part["holder"]["owner"] for part in told} == {"alice@laptop"}


def test_the_same_run_takes_over_and_the_agent_that_was_lost_does_nothing_more(two: Two) -> None:
    """Neither of them does steps without the lock; looking is no matter."""
    two.first(**ALICE)
    two.second(**ALICE)
    assert refused(two.first, do="steps", slug="m", steps=[]).kind == "locked"
    assert two.second(do="steps", slug="m", steps=[])[0]["changed"] is False
    two.second(**RELEASE)
    assert two.first(do="steps", slug="m", steps=[])[0]["changed"] is False
    assert refused(two.second, **BOB).kind == "locked"


def test_steps_of_an_agent_that_never_asked(two: Two) -> None:
    """They are for those who keep order otherwise: they are carried out."""
    two.first(**ALICE)
    assert two.second(do="steps", slug="m", steps=[])[0]["changed"] is False


def test_it_is_free_once_nothing_of_ours_is_left(two: Two) -> None:
    """The file goes with the folders; the first has it again with its next steps, or is refused."""
    two.first(**ALICE)
    gone = {"do": "steps", "slug": "m", "steps": [{"step": "remove-server", "slug": "m"}]}
    two.first(**gone)
    assert two.second(**BOB)[0]["held"] is True
    assert refused(two.first, **gone).kind == "locked"
    two.second(**RELEASE)
    two.first(**gone)


@pytest.mark.parametrize("wrong", [{"owner": None}, {"run": 5}, {"command": ["x"]}])
def test_a_request_that_makes_no_sense(two: Two, wrong: Json) -> None:
    """Refused."""
    assert refused(two.first, **{**ALICE, **wrong}).kind == "bad-request"

"""The run lock of a host in memory, as docs/wire.md has it: who holds it, and the session that it ends with.

Time is the test's own: a lock is waited for in real seconds. tests/contract/test_fake_lock.py asks the real agent the
same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.lab.fake_kernel import Refusal
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError

Json = dict[str, Any]
LOOK_S = 0.01
WORDS = ("owner", "command", "run")


class Answers(Protocol):
    """Whoever can be asked on behalf of a session."""

    def answer(
        self, payload: Mapping[str, object], timeout: float, on_progress: Callable[[Json], None] | None, asker: object
    ) -> Json:
        """The last answer to a request of the session `asker`."""

    def gone(self, asker: object) -> None:
        """That session has ended."""


@dataclass(slots=True)
class FakeSession:
    """A session of its own to a host, with an agent of its own, which holds what it holds until it is closed.

    `broken`: the connection is lost, and nobody has told the agent, which lives on.
    """

    host: Answers
    broken: bool = False

    def request(
        self,
        payload: Mapping[str, object],
        *,
        timeout: float,
        on_progress: Callable[[Json], None] | None = None,
    ) -> Json:
        """Ask the host."""
        if self.broken:
            raise UnreachableError("the connection was lost")
        return self.host.answer(payload, timeout, on_progress, self)

    def close(self) -> None:
        """The agent ends, and with it its lock."""
        if not self.broken:
            self.host.gone(self)

    def end(self) -> None:
        """The connection is lost, and the agent hears of it."""
        self.close()
        self.broken = True

    def __eq__(self, other: object) -> bool:
        """Two sessions are never the same."""
        return self is other

    def __hash__(self) -> int:
        """By identity."""
        return id(self)


@dataclass(slots=True)
class FakeLock:
    """Who holds the host: a session and its claim. `claims` are those of all sessions that ever held it."""

    holder: object | None = None
    claims: dict[object, Json] = field(default_factory=dict)

    def request(self, request: Json, progress: Callable[[Json], None], asker: object) -> Json:
        """The request `lock`."""
        if request.get("release") is True:
            changed = self.holder is asker
            self.gone(asker)
            return {"held": False, "changed": changed}
        if not all(isinstance(request.get(name), str) for name in WORDS):
            raise Refusal("bad-request", "lock: owner, command and run are texts")
        until = time.monotonic() + request["timeout"]
        claim = {name: request[name] for name in WORDS}
        while not self._take(asker, claim, claim["run"]):
            if time.monotonic() >= until:
                raise self._refused()
            progress({"holder": self.shown()})
            time.sleep(LOOK_S)
        return {"held": True}

    def keep(self, asker: object) -> None:
        """Before steps of a session that took the lock: it must still have it."""
        claim = self.claims.get(asker)
        if claim is not None and not self._take(asker, claim, ""):
            raise self._refused()

    def gone(self, asker: object) -> None:
        """A session ends, or lets go."""
        self.claims.pop(asker, None)
        self.holder = None if self.holder is asker else self.holder

    def told(self) -> Json:
        """What is said of the holder."""
        claim = self.claims.get(self.holder, {})
        return {**dict.fromkeys(WORDS, ""), **claim, "since": 1795386000.0, "age": 60.0, "pid": 7}

    def _take(self, asker: object, claim: Json, over: str) -> bool:
        if self.holder not in {None, asker} and (not over or self.claims[self.holder]["run"] != over):
            return False
        self.holder, self.claims[asker] = asker, claim
        return True

    def _refused(self) -> AgentError:
        return AgentError("locked", "the host is locked", more={"class": "locked", "holder": self.shown()})

    def shown(self) -> Json:
        """The same without what only its run knows."""
        return {name: value for name, value in self.told().items() if name != "run"}

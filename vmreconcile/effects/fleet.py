"""Many hosts at once: one session each, opened when first needed and kept for the run. Decides nothing."""

from __future__ import annotations

import collections
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vmreconcile.effects.locks import ANSWER_S, LEASE_S, RELEASE, Claim, Holder, holder_of, refusal, run_name
from vmreconcile.effects.looks import Look
from vmreconcile.effects.lost import lost_host
from vmreconcile.effects.observe import host_view
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.model.observed import FleetView, HostView, Unreachable
from vmreconcile.model.values import JsonValue

OBSERVE_TIMEOUT_S = 60.0
HTTP_TIMEOUT_S = 2.0
PAUSE_S = 0.5
"""Between two tries to reach a host again."""

QUESTIONS = frozenset({"observe", "gate", "hub-check", "checkup", "checkpoint", "lock", "revisions"})
"""Requests that may be asked twice: they change nothing, or (`lock`) nothing more."""

Answer = dict[str, JsonValue]


class Session(Protocol):
    """What a host answers through: the real one is `effects.session.AgentSession`."""

    def request(
        self,
        payload: Mapping[str, object],
        *,
        timeout: float,
        on_progress: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Send one request and wait for its last answer."""

    def close(self) -> None:
        """End the session."""


@dataclass(slots=True)
class Fleet:
    """The hosts of a run. `open_host` opens a session by host name and raises `UnreachableError`.

    Several threads may ask one host: their requests go one after the other, through the session that is there then.
    """

    open_host: Callable[[str], Session]
    looks: Mapping[str, Look]
    salt: str
    forks: int = 20
    patience: float = 0.0
    """Seconds for which a host that was reached before is tried again where the connection broke under a question."""
    renew: float = 0.0
    """Seconds after which a host that is held is asked again, so that its lock does not lapse; 0: it never does."""
    _claims: dict[str, Claim] = field(default_factory=dict)
    _renewing: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)
    _reached: set[str] = field(default_factory=set)
    _sessions: dict[str, Session] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _turns: dict[str, threading.RLock] = field(default_factory=lambda: defaultdict(threading.RLock))

    def observe(
        self, hosts: Iterable[str], *, once: bool = False, metrics: bool = False, stalls: bool = False
    ) -> FleetView:
        """Look at every host, `forks` at a time; one that cannot be reached is data.

        With `once`, a host's session ends as soon as it was seen: nothing is to follow, and a thousand connections that
        are kept for nothing cost both sides. `metrics` asks each server for them too: the longest of its answers.
        `stalls`: also whether servers that have something to do are doing it, which takes half a minute of those that
        seem not to.
        """

        def look(host: str) -> HostView:
            try:
                return self.observe_host(host, metrics=metrics, stalls=stalls)
            finally:
                if once:
                    self._forget(host)

        views: list[HostView] = []
        unreachable: list[Unreachable] = []
        for host, result in for_each(tuple(hosts), look, self.forks):
            match result:
                case HostView():
                    views.append(result)
                case UnreachableError() | AgentError():
                    unreachable.append(lost_host(host, result))
                case _:
                    kind = type(result).__name__
                    unreachable.append(
                        Unreachable(host=host, reason=f"vmreconcile failed on what it answered ({kind})")
                    )
        return FleetView(hosts=tuple(sorted(views, key=lambda view: view.host)), unreachable=tuple(sorted(unreachable)))

    def observe_host(
        self,
        host: str,
        only: str | None = None,
        *,
        metrics: bool = False,
        gpus: bool = False,
        stalls: bool = False,
    ) -> HostView:
        """Look at one host; with `only`, at one server of it (cheap enough to repeat while waiting).

        `gpus` are looked at beside one server only where that is asked for.

        Raises:
            UnreachableError: where it cannot be reached or the agent cannot answer.
        """
        look = self.looks.get(host, Look())
        payload = {
            "do": "observe",
            "salt": self.salt,
            "executables": list(look.executables),
            "ports": list(look.ports),
            "servers": None if only is None else [only],
            "http_timeout": HTTP_TIMEOUT_S,
            "gpus": gpus or only is None,
            "metrics": metrics,
            "stalls": stalls,
            "models": [each.as_json() for each in look.models],
        }
        return host_view(host, self.salt, self.request(host, payload, timeout=OBSERVE_TIMEOUT_S))

    def observe_gpus(self, host: str) -> HostView:
        """Look at the GPUs of one host, and at none of its servers: cheap enough to repeat while memory is waited for.

        Raises:
            UnreachableError: where it cannot be reached or its answer cannot be read.
            AgentError: where the agent says that it could not.
        """
        payload: dict[str, object] = {
            "do": "observe",
            "salt": self.salt,
            "executables": [],
            "ports": [],
            "servers": [],
            "http_timeout": HTTP_TIMEOUT_S,
            "gpus": True,
        }
        return host_view(host, self.salt, self.request(host, payload, timeout=OBSERVE_TIMEOUT_S))

    def request(
        self,
        host: str,
        payload: Mapping[str, object],
        *,
        timeout: float,
        on_progress: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """One request to one host's agent; a session that broke is forgotten, so that the next request opens anew.

        A question is asked again over a new connection where the old one broke, once at least and for `patience`
        seconds: an outage of a link or of sshd while a server starts is no reason to give up on its host.

        Raises:
            UnreachableError: where the host cannot be reached, or is lost before it answered.
            AgentError: where the agent says that it could not.
        """
        whole = {**payload, "folders": self._folders(host)}
        with self._turn(host):
            again = payload.get("do") in QUESTIONS and host in self._reached
            until: float | None = None
            while True:
                try:
                    return self._session(host).request(whole, timeout=timeout, on_progress=on_progress)
                except UnreachableError:
                    self._forget(host)
                    if not again or (until is not None and time.monotonic() >= until):
                        self._reached.discard(host)  # given up: who asks next need not be as patient
                        raise
                if until is not None:
                    self._ended.wait(PAUSE_S)
                until = until or time.monotonic() + self.patience

    def lock(
        self,
        host: str,
        *,
        owner: str,
        command: str,
        timeout: float = 0.0,
        on_wait: Callable[[Holder], None] | None = None,
    ) -> None:
        """Take a host's run lock for the rest of the run, waiting `timeout` seconds for it.

        Held with its session, and taken again before anything else where that broke. `on_wait` hears every second of
        who holds it, and may raise to end the waiting.

        Raises:
            AgentError: `locked`, with the holder; or the lock's file cannot be made.
            UnreachableError: where the host cannot be reached, or is lost meanwhile.
        """
        claim = Claim(owner=owner, command=command, run=run_name(self.salt))

        def waiting(answer: Answer) -> None:
            if on_wait is not None:
                on_wait(holder_of(answer.get("holder")))

        payload = claim.payload(timeout=timeout, lease=self._lease)
        with self._turn(host):
            try:
                self.request(host, payload, timeout=timeout + ANSWER_S, on_progress=waiting)
            except AgentError as error:
                raise refusal(error) from None
            with self._lock:
                self._claims[host] = claim
                first, self._renewing = not self._renewing, True
        if first and self.renew:
            threading.Thread(target=self._renew_all, daemon=True).start()

    def release(self, host: str) -> None:
        """Let a host's run lock go before the run ends; a session that is lost has let it go already."""
        with self._turn(host):
            self._claims.pop(host, None)
            session = self._sessions.get(host)
            try:
                if session is not None:
                    session.request({**RELEASE, "folders": self._folders(host)}, timeout=ANSWER_S)
            except AgentError:
                return
            except UnreachableError:
                self._forget(host)

    @property
    def _lease(self) -> float:
        return LEASE_S if self.renew else 0.0

    def _folders(self, host: str) -> Mapping[str, str] | None:
        return self.looks.get(host, Look()).folders

    def _renew_all(self) -> None:
        """Let every host that is held hear of us, until the run ends."""
        while not self._ended.wait(self.renew):
            collections.deque(for_each(sorted(self._claims), self._renew, self.forks), maxlen=0)

    def _renew(self, host: str) -> None:
        """Say to one host that we are there, unless it is being asked something just now."""
        turn = self._turn(host)
        if not turn.acquire(blocking=False):
            return
        try:
            session, claim = self._sessions.get(host), self._claims.get(host)
            if session is not None and claim is not None:
                self._claim_on(session, host, claim)
        except AgentError:
            return  # another run has it by now, which the next request will be told
        except UnreachableError:
            self._forget(host)
        finally:
            turn.release()

    def _claim_on(self, session: Session, host: str, claim: Claim) -> None:
        payload = claim.payload(timeout=0.0, lease=self._lease)
        session.request({**payload, "again": True, "folders": self._folders(host)}, timeout=ANSWER_S)

    def drop(self, host: str) -> None:
        """End the session of one host, with whatever its agent is at; the next request opens another."""
        self._forget(host)

    def close(self) -> None:
        """End every session, and with it every lock."""
        self._ended.set()
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.close()

    def _turn(self, host: str) -> threading.RLock:
        """Held while one host is asked, from the opening of its session on.

        So it gets one session, and one that broke is forgotten before the next thread finds it.
        """
        with self._lock:
            return self._turns[host]

    def _session(self, host: str) -> Session:
        with self._lock:
            session = self._sessions.get(host)
        if session is None:
            session = self.open_host(host)
            if (claim := self._claims.get(host)) is not None:
                self._claim_again(session, host, claim)
            with self._lock:
                self._sessions[host] = session
                self._reached.add(host)
        return session

    def _claim_again(self, session: Session, host: str, claim: Claim) -> None:
        """Hold a host over its new session before anything else is asked there.

        Raises:
            AgentError: `locked`, where another run has it by now; the session is then closed.
        """
        try:
            self._claim_on(session, host, claim)
        except AgentError as error:
            session.close()
            raise refusal(error) from None
        except BaseException:
            session.close()
            raise

    def _forget(self, host: str) -> None:
        with self._lock:
            session = self._sessions.pop(host, None)
        if session is not None:
            session.close()

"""Proof that an action is done: the host is read again, and a wanted server has answered a real completion."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import assert_never

from vmreconcile.core.actions import Decision, exists
from vmreconcile.core.diff import drift_of
from vmreconcile.core.gpus.applied import with_placed
from vmreconcile.core.planning import decision_of, subject_of
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.failing import NotReady, ended, too_late, wrong_model
from vmreconcile.flows.learning import learn
from vmreconcile.flows.patience import Patience
from vmreconcile.flows.run import Run
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Endpoint, HostView, ObservedServer, Root
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Action, Change, Gate
from vmreconcile.model.values import JsonValue

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 2.0
GATE_TIMEOUT_S = 60.0
HEALTHY = 200


class Interrupted(VmreconcileError):  # noqa: N818 - an outcome, reported as one
    """The person asked to stop while a server was waited for."""

    exit_code = 130


def settle(change: Change, run: Run) -> None:
    """Read the host again after a stop or a removal, and see it gone.

    Raises:
        NotReady: where something is still there.
    """
    server = change.server
    match change.action:
        case Action.STOP:
            left = _look(server, run).process is not None
        case Action.REMOVE:
            left = exists(_look(server, run))
        case Action.START | Action.RESTART | Action.RETUNE | Action.NOOP | Action.BLOCKED:
            left = False
        case _:
            assert_never(change.action)
    if left:
        raise NotReady(
            Failure(
                kind="still_there",
                summary=f"{server} is still there after {change.action}",
                remedy=f"vmreconcile show {server} tells what is left",
            )
        )


def _look(server: ServerId, run: Run) -> ObservedServer:
    return run.fleet.observe_host(server.host, server.slug).server(server.slug)


def accept_moved(change: Change, run: Run, told: str) -> None:
    """Another run got to the server first: see whether it did what was planned here.

    Raises:
        NotReady: it did something else.
    """
    wanted = run.desired.get(change.server)
    if wanted is None or change.gate is None:
        return  # a stop or a removal, whose end is seen by itself
    _, decision = _judged_now(change, wanted, run)
    if decision.action is not Action.NOOP:
        raise NotReady(
            Failure(
                kind="moved",
                summary=f"{change.server} is no longer what was looked at: {told}",
                remedy="run apply again: it looks anew",
            )
        )


def wait_ready(change: Change, wanted: DesiredServer, gate: Gate, run: Run) -> None:
    """Wait until the server is healthy, has answered a completion, stayed so for a while, and shows no drift.

    Raises:
        NotReady: it died, it is too late, or it came up different from what is wanted.
        Interrupted: the person asked to stop.
    """
    watch = _Watch(change, run)
    patience = Patience(wanted=wanted, gate=gate, run=run)
    begun, pause = time.monotonic(), FIRST_PAUSE_S
    while True:
        host = watch.look()
        problem = _gate_problem(host.server(wanted.id.slug), gate, run, wanted.id) or _soak(watch, gate)
        if not problem:
            break
        waited = time.monotonic() - begun
        run.reporter.waits(wanted.id, waited, problem)
        if patience.is_over(waited):
            raise NotReady(too_late(with_placed(wanted, change.placed), patience.deadline, problem, host, run))
        _rest(pause, run)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    _in_sync(change, wanted, run)
    learn(wanted, run)


@dataclass(slots=True)
class _Watch:
    """Looks at one server, again and again; the first look that finds its start ended raises."""

    change: Change
    run: Run
    proven: bool = False
    """Whether it has passed its gate, and only has to stay up."""
    _root: Root | None = None
    _restarts: int | None = None

    def look(self) -> HostView:
        """Read the host again.

        Raises:
            NotReady: the server's process has ended, or another one has taken its place.
        """
        server = self.change.server
        host = self.run.fleet.observe_host(server.host, server.slug)
        observed = host.server(server.slug)
        restarts = observed.unit.restarts if observed.unit else 0
        self._restarts = restarts if self._restarts is None else self._restarts
        died = _died(observed, restarts - self._restarts) or self._replaced(observed)
        if died:
            raise ended(self.change, f"{died}, just after it was ready" if self.proven else died, host, self.run)
        return host

    def _replaced(self, observed: ObservedServer) -> str:
        """Whether another root runs than at the last look, "" where it is the same or none was seen yet."""
        process, before = observed.process, self._root
        if process is None:
            return ""
        self._root = process.root
        return "" if before in {None, self._root} else "its process ended, and another was started"


def _soak(watch: _Watch, gate: Gate) -> str:
    """See a server that has passed its gate stay up for as long as the gate wants; why it did not, "" where it did.

    Files alone that were written anew need no soak: the process has been there all the time.

    Raises:
        NotReady: it ended.
        Interrupted: the person asked to stop.
    """
    change, begun = watch.change, time.monotonic()
    if change.action is Action.RETUNE and not change.disruptive:
        return ""
    watch.proven = True
    while (left := begun + gate.soak - time.monotonic()) > 0:
        _rest(min(left, LONGEST_PAUSE_S / 2), watch.run)
        endpoint = watch.look().server(change.server.slug).endpoint
        if endpoint is None or endpoint.health != HEALTHY:
            return f"{_unhealthy(endpoint)}, after it was ready"
    return ""


def _rest(pause: float, run: Run) -> None:
    """Wait a little.

    Raises:
        Interrupted: the person asked to stop.
    """
    if run.stopping.wait(pause):
        raise Interrupted("interrupted")


def _died(observed: ObservedServer, restarts: int) -> str:
    """How a start ended, '' while it goes on."""
    unit = observed.unit
    if unit is not None and (unit.active == "failed" or unit.sub == "auto-restart" or restarts > 0):
        return f"exit status {unit.exit_code}" if unit.exit_code is not None else (unit.result or unit.sub)
    if observed.process is None and unit is None:
        return "its process ended"
    if unit is not None and unit.active == "inactive":
        return "its unit was stopped"
    return ""


def _gate_problem(observed: ObservedServer, gate: Gate, run: Run, server: ServerId) -> str:
    """Why the gate is not passed yet, '' where it is.

    Raises:
        NotReady: it serves another model, which time does not change.
    """
    endpoint = observed.endpoint
    if endpoint is None or endpoint.health != HEALTHY:
        return _unhealthy(endpoint)
    if not endpoint.models:
        return "/v1/models names no model yet"
    if not set(gate.models) <= set(endpoint.models):
        raise NotReady(wrong_model(server, gate, endpoint))
    return _completion_problem(gate, run, server) if gate.completion else ""


def _unhealthy(endpoint: Endpoint | None) -> str:
    """What /health says where it does not say 200."""
    if endpoint is None or endpoint.health is None:
        return (endpoint.problem if endpoint else None) or "no answer on its port yet"
    return f"/health answers {endpoint.health}"


def _completion_problem(gate: Gate, run: Run, server: ServerId) -> str:
    """Why the server did not answer one request of its task, '' where it did."""
    payload: dict[str, JsonValue] = {
        "do": "gate",
        "slug": server.slug,
        "address": gate.address,
        "port": gate.port,
        "completion": True,
        "model": gate.models[0] if gate.models else None,
        "runner": gate.runner,
        "timeout": GATE_TIMEOUT_S / 2,
    }
    try:
        answer = run.fleet.request(server.host, payload, timeout=GATE_TIMEOUT_S)
    except AgentError as error:
        return str(error)
    match answer.get("completion"):
        case {"ok": True}:
            return ""
        case {"problem": str(problem)}:
            return f"no completion: {problem}"
        case _:
            return "no completion"


def _judged_now(change: Change, wanted: DesiredServer, run: Run) -> tuple[ObservedServer, Decision]:
    """Read the host again: what is there of a server, and what would still have to be done to it as it was decided.

    Its GPUs are read too: tuning rules may ask for them.
    """
    host = run.fleet.observe_host(wanted.id.host, wanted.id.slug, gpus=True)
    subject = subject_of(wanted, host, run.known, change.placed)
    return subject.observed, decision_of(subject, drift_of(subject))


def _in_sync(change: Change, wanted: DesiredServer, run: Run) -> None:
    observed, decision = _judged_now(change, wanted, run)
    if decision.action is Action.NOOP:
        return
    differing = ", ".join(f"{field.path} ({field.before} instead of {field.after})" for field in decision.fields)
    drop_ins = observed.unit.drop_ins if observed.unit else ()
    remedy = f"see the drop-in {drop_ins[0]}" if drop_ins else f"vmreconcile show {wanted.id} compares both"
    raise NotReady(
        Failure(
            kind="still_differs",
            summary=f"{wanted.id} runs, but still differs: {differing or decision.reason}",
            remedy=remedy,
        )
    )

"""Proof that an action is done: the host is read again, and a wanted server has answered a real completion."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import assert_never

from vmreconcile.core.actions import Decision, exists
from vmreconcile.core.diff import drift_of
from vmreconcile.core.gpus.applied import with_placed
from vmreconcile.core.phases import runtime_of
from vmreconcile.core.planning import decision_of, subject_of
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.explaining import in_place, latest_start_of
from vmreconcile.flows.learning import learn
from vmreconcile.flows.run import Run, send_steps
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Action, Change, Gate
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.signatures import UNKNOWN, Explanation, cause, explain

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 2.0
GATE_TIMEOUT_S = 60.0
TOO_LATE = Explanation(
    kind="startup_timeout",
    summary="",
    evidence="",
    line=0,
    remedy="raise health.startup_timeout if it only needs longer",
    settings=("health.startup_timeout",),
)


class NotReady(VmreconcileError):  # noqa: N818 - an outcome, reported as one
    """A server did not become what it should; carries the failure for the report.

    `lines` are the log of a start that ended by itself and is stopped for good now; none in every other case.
    """

    def __init__(self, failure: Failure, lines: Sequence[str] = ()) -> None:
        """Keep both."""
        super().__init__(failure.summary, remedy=failure.remedy)
        self.failure = failure
        self.lines = tuple(lines)


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
    """Wait until the server is healthy, has answered a completion and shows no drift.

    Raises:
        NotReady: it died, it is too late, or it came up different from what is wanted.
        Interrupted: the person asked to stop.
    """
    begun, pause = time.monotonic(), FIRST_PAUSE_S
    before: int | None = None
    while True:
        host = run.fleet.observe_host(wanted.id.host, wanted.id.slug)
        observed = host.server(wanted.id.slug)
        restarts = observed.unit.restarts if observed.unit else 0
        before = restarts if before is None else before
        died = _died(observed, restarts - before)
        if died:
            raise _ended(change, died, host, run)
        problem = _gate_problem(observed, gate, run, wanted.id)
        if not problem:
            break
        waited = time.monotonic() - begun
        run.reporter.waits(wanted.id, waited, problem)
        if waited > gate.timeout:
            raise NotReady(_too_late(with_placed(wanted, change.placed), gate, problem, host, run))
        if run.stopping.wait(pause):
            raise Interrupted("interrupted")
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    _in_sync(change, wanted, run)
    learn(wanted, run)


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
    """Why the gate is not passed yet, '' where it is."""
    endpoint = observed.endpoint
    if endpoint is None or endpoint.health is None:
        return (endpoint.problem if endpoint else None) or "no answer on its port yet"
    if endpoint.health != 200:
        return f"/health answers {endpoint.health}"
    if not endpoint.models:
        return "/v1/models names no model yet"
    if not gate.completion:
        return ""
    payload: dict[str, JsonValue] = {
        "do": "gate",
        "slug": server.slug,
        "address": gate.address,
        "port": gate.port,
        "completion": True,
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


def _ended(change: Change, died: str, host: HostView, run: Run) -> NotReady:
    """What is to be raised of a start that ended, which is stopped for good first."""
    lines = latest_start_of(change.server, run.fleet)
    failure = _failure(change, died, host, run, lines)
    left = _leave_stopped(change, host, host.server(change.server.slug), failure, run)
    return NotReady(left, lines if left is failure else ())


def _failure(change: Change, died: str, host: HostView, run: Run, lines: Sequence[str]) -> Failure:
    """Why a start ended, from its own log."""
    server = change.server
    unit = host.server(server.slug).unit
    found = cause(lines, unit.exit_code if unit else None, ended=True)
    ended = f"{server} ended while starting ({died}); its log shows no known cause"
    if found is None:
        return Failure(kind=UNKNOWN, summary=ended, remedy=f"vmreconcile logs {server}")
    wanted = run.desired.get(server)
    found = in_place(found, server, with_placed(wanted, change.placed) if wanted else None, host)
    return Failure(
        kind=found.kind,
        summary=ended if found.kind == UNKNOWN else f"{server} did not start: {found.summary}",
        evidence=found.evidence,
        remedy=f"{found.remedy} (vmreconcile logs {server})",
    )


def _leave_stopped(change: Change, host: HostView, observed: ObservedServer, failure: Failure, run: Run) -> Failure:
    """Stop what systemd would start again and again; the failure stays the report."""
    runtime = runtime_of(observed)
    if runtime is not None:
        try:
            send_steps(change.server, runtime.stop(host, observed), run)
        except AgentError as error:
            return Failure(
                kind=failure.kind,
                summary=f"{failure.summary}; stopping it failed too: {error}",
                evidence=failure.evidence,
                remedy=failure.remedy,
            )
    return failure


def _too_late(wanted: DesiredServer, gate: Gate, problem: str, host: HostView, run: Run) -> Failure:
    found = explain(latest_start_of(wanted.id, run.fleet)) or TOO_LATE
    found = in_place(found, wanted.id, wanted, host)
    return Failure(
        kind=found.kind,
        summary=f"{wanted.id} was not ready within {gate.timeout:g} s: {problem}",
        evidence=found.evidence,
        remedy=f"{found.remedy} (it was left as it is; vmreconcile logs {wanted.id})",
    )

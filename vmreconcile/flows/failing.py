"""A start that failed: why, from its own log, and what is left of it on its host."""

from __future__ import annotations

from collections.abc import Sequence

from vmreconcile.core.gpus.applied import with_placed
from vmreconcile.core.phases import runtime_of
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.explaining import in_place, latest_start_of
from vmreconcile.flows.run import Run, send_steps
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Endpoint, HostView, ObservedServer
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Change, Gate
from vmreconcile.vllm.signatures import UNKNOWN, Explanation, cause, explain

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


def ended(change: Change, died: str, host: HostView, run: Run) -> NotReady:
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


def wrong_model(server: ServerId, gate: Gate, endpoint: Endpoint) -> Failure:
    """What answers on the port, healthy, serves something else; it is left as it is."""
    wanted, seen = (", ".join(names) for names in (gate.models, endpoint.models))
    return Failure(
        kind="wrong_model",
        summary=f"{server} answers as {seen}, and should as {wanted}",
        evidence=f"/v1/models on port {endpoint.port}: {seen}",
        remedy=f"compare model and args.served_model_name with: vmreconcile show {server} (it was left as it is)",
    )


def too_late(wanted: DesiredServer, waited: float, problem: str, host: HostView, run: Run) -> Failure:
    """Why a start that goes on still is not ready after `waited` seconds; it is left as it is."""
    found = explain(latest_start_of(wanted.id, run.fleet)) or TOO_LATE
    found = in_place(found, wanted.id, wanted, host)
    return Failure(
        kind=found.kind,
        summary=f"{wanted.id} was not ready within {waited:g} s: {problem}",
        evidence=found.evidence,
        remedy=f"{found.remedy} (it was left as it is; vmreconcile logs {wanted.id})",
    )

"""What follows a change that did not become ready: the last good settings come back, where there are other ones.

Decides that from what the host kept; how steps are sent and a server is proven stays with `flows/acting.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vmreconcile.core.actions import Decision
from vmreconcile.core.blocks import block_of
from vmreconcile.core.diff import Subject
from vmreconcile.core.gates import gate_of
from vmreconcile.core.phases import phase_of
from vmreconcile.core.planning import subject_of
from vmreconcile.core.revisions import changed_fields, fields_text, is_running, kept_of, newest_good
from vmreconcile.core.reviving import (
    CannotGoBackError,
    as_wanted,
    executable_of,
    literal,
    other_version,
    placed_anew,
    port_of,
)
from vmreconcile.core.staleness import digest_of
from vmreconcile.core.stepping import bringing_up, stops_of
from vmreconcile.effects.looks import Look
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.draining import back_in
from vmreconcile.flows.failing import NotReady
from vmreconcile.flows.giving_up import Failed, failed_json, leave_stopped, more, note_in_record
from vmreconcile.flows.keeping import keep_failed, revisions_of
from vmreconcile.flows.mending import settled
from vmreconcile.flows.run import Expected, Run, seen_through, send_steps
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Action, Change, Field, Reason
from vmreconcile.model.revision import Revision

SERVES = frozenset({"still_differs"})
"""Failures of a server that serves all the same: it is not taken down again for them."""

NOT_OURS_TO_MEND = frozenset({"moved", "locked"})
"""Failures behind which another run is at work."""

LEFT = Decision(action=Action.RESTART, reason=Reason.ROLLED_BACK, disruptive=True)
BACK = Decision(action=Action.START, reason=Reason.ROLLED_BACK)


class RolledBack(VmreconcileError):  # noqa: N818 - an outcome, reported as one
    """A server is back on its last good settings, and ready; carries why it could not have the new ones."""

    def __init__(self, failure: Failure) -> None:
        """Keep it."""
        super().__init__(failure.summary, remedy=failure.remedy)
        self.failure = failure


def go_back(change: Change, failure: Failure, run: Run, bring_up: Callable[[Change, Run], None]) -> None:
    """Bring the last good settings back after `change` failed; `bring_up` carries out a change and proves it.

    Comes back where nothing was done: the failure then stays the report. A Ctrl-C does not end it: what was begun with
    a stop ends with a start.

    Raises:
        RolledBack: the server is ready again, as it was before.
        NotReady: it is not, for the reason that is told beside the first failure.
        UnreachableError: the host was lost.
    """
    wanted = run.desired.get(change.server)
    if wanted is None or change.gate is None or failure.untouched or failure.kind in {*SERVES, *NOT_OURS_TO_MEND}:
        return
    try:
        revisions = revisions_of(change.server, run.fleet)
        good = newest_good(revisions)
        host = _look(change.server, good, run)
        failed = Failed(
            change=change,
            failure=failure,
            host=host,
            kept=kept_of(subject_of(wanted, host, run.known, change.placed)),
        )
    except AgentError as error:
        raise NotReady(
            more(failure, f"what it ran before cannot be read ({error}), so it is not brought back")
        ) from None
    if _untouched(failed, good):
        raise NotReady(replace(failure, untouched=True))
    if not _was_good(change):
        _give_up(failed, run)
    else:
        _bring_back(failed, good, run, bring_up)


def _give_up(failed: Failed, run: Run) -> None:
    """Leave a start stopped that never was good, whatever it may still be at; nothing to do where none was begun.

    Raises:
        NotReady: it had to be stopped for that.
    """
    if failed.observed.record is None:
        return
    keep_failed(failed.server, failed.kept, failed.failure.kind, run)
    if failed.change.action is not Action.START or failed.observed.process is None:
        note_in_record(failed, run)
        return
    leave_stopped(failed, run)
    raise NotReady(more(failed.failure, "it never was good, and is left stopped"))


def _was_good(change: Change) -> bool:
    """Whether it ran before, as far as the plan saw: also where a change of it was cut off between stop and start."""
    match change.action, change.reason:
        case ((Action.RETUNE | Action.RESTART), _):
            return change.disruptive
        case Action.START, (Reason.CRASHED | Reason.ROOT_DIED):
            return True
        case Action.START, Reason.STOPPED:
            return change.digest.get("unit.enabled") == "enabled"
        case _:
            return False


def _untouched(failed: Failed, good: Revision | None) -> bool:
    """Whether what ran still runs: the steps failed before it was stopped."""
    process = failed.observed.process
    if process is None:
        return False
    return failed.change.root == process.root or (
        good is not None and good.kept != failed.kept and is_running(good.kept, failed.observed)
    )


def _look(server: ServerId, good: Revision | None, run: Run) -> HostView:
    """The host now, with the program of the revision looked for too."""
    fleet = run.fleet
    if good is not None:
        look = fleet.looks.get(server.host, Look())
        look = replace(look, executables=tuple(sorted({*look.executables, executable_of(good)})))
        fleet = replace(fleet, looks={**fleet.looks, server.host: look})
    return fleet.observe_host(server.host, server.slug, gpus=True)


def _bring_back(failed: Failed, good: Revision | None, run: Run, bring_up: Callable[[Change, Run], None]) -> None:
    """As `go_back`, for a server that was good before."""
    wanted = run.desired[failed.server]
    fields = changed_fields(good.kept, failed.kept, wanted) if good else ()
    told = ""
    if good is None:
        told = "no revision of it is kept, so there is nothing to go back to"
    elif not fields:
        told = _same(good, failed)
    else:
        keep_failed(failed.server, failed.kept, failed.failure.kind, run)
        try:
            back, anew = _back(failed, good, run)
        except CannotGoBackError as error:
            told = f"it is not brought back: {error}; {error.remedy}"
        else:
            _carry_out(failed, good, fields, (back, anew), bring_up)
    leave_stopped(failed, run)
    raise NotReady(more(failed.failure, f"{told}; it is left stopped"))


def _same(good: Revision, failed: Failed) -> str:
    """What to say where the settings are those that were good."""
    now = failed.kept.vllm_version
    if good.kept.vllm_version and now and other_version(good, failed.host):
        return (
            f"its settings are those of revision {good.number}, which was good with vLLM {good.kept.vllm_version}, "
            f"and {now} is there now: there is nothing to go back to"
        )
    return f"its settings are those of revision {good.number}, the last good one: there is nothing to go back to"


def _back(failed: Failed, good: Revision, run: Run) -> tuple[Change, Run]:
    """The change that brings a revision back, and the run in which it is what is wanted.

    Raises:
        CannotGoBackError: it cannot be.
    """
    host, server = failed.host, failed.server
    good = placed_anew(good, failed.change.placed, host)
    wanted, subject = _revived(failed, good, run)
    gate = gate_of(wanted, failed.observed, good.kept.placed)
    change = Change(
        server=server,
        action=failed.change.action,
        reason=Reason.ROLLED_BACK,
        phase=phase_of(failed.observed, host.now, gate.timeout),
        disruptive=True,
        stops=stops_of(host, failed.observed, LEFT),
        steps=bringing_up(subject, BACK),
        gate=gate,
        placed=good.kept.placed,
        digest=digest_of(host, failed.observed),
    )
    return change, replace(seen_through(run), desired={**run.desired, server: wanted})


def _revived(failed: Failed, good: Revision, run: Run) -> tuple[DesiredServer, Subject]:
    """The server as it was launched then. On today's port where another one has got the old one since.

    Raises:
        CannotGoBackError: something keeps it from starting.
    """
    todays = run.desired[failed.server]
    wanted = as_wanted(good, todays, failed.host)
    subject = subject_of(wanted, failed.host, run.known, good.kept.placed)
    words = literal(good.kept, subject.launch.argv)
    block = block_of(subject, {})
    if block is not None and block.reason is Reason.PORT_HELD and todays.port != wanted.port:
        wanted = replace(wanted, port=todays.port)
        subject = subject_of(wanted, failed.host, run.known, good.kept.placed)
        words, block = subject.launch.argv, block_of(subject, {})
    if block is not None:
        raise CannotGoBackError(f"revision {good.number} cannot start: {block.note}", remedy=block.remedy)
    record = {**subject.launch.record, "failed": failed_json(failed, good)}
    return wanted, replace(subject, launch=replace(subject.launch, argv=words, record=record))


def _carry_out(
    failed: Failed,
    good: Revision,
    fields: tuple[Field, ...],
    back: tuple[Change, Run],
    bring_up: Callable[[Change, Run], None],
) -> None:
    """Go back, and tell how it ended.

    Raises:
        RolledBack: well.
        NotReady: not.
    """
    change, run = back
    differing = fields_text(fields)
    version = other_version(good, failed.host)
    older = f", now with vLLM {version}" if version else ""
    older += f", on port {change.gate.port}" if change.gate and change.gate.port != port_of(good) else ""
    older += ", on the GPUs that it was to have" if change.placed != good.kept.placed else ""
    first = failed.failure.summary.removeprefix(f"{failed.server} ")
    run.reporter.says(failed.server, f"{first}: back to revision {good.number}{older}")
    try:
        bring_up(_with_memory_given_back(change, failed, run), run)
    except NotReady as error:
        second = error.failure
    except AgentError as error:
        second = Failure(kind=error.kind, summary=str(error), remedy=error.remedy)
    else:
        told = f"{differing}; it is back on revision {good.number}{older}, ready"
        raise RolledBack(back_in(change, more(failed.failure, told), run))
    leave_stopped(failed, run)
    told = f"{differing}; going back to revision {good.number} failed too, and it is left stopped: {second.summary}"
    both = " | ".join(text for text in (failed.failure.evidence, second.evidence) if text)
    raise NotReady(replace(more(failed.failure, told), evidence=both))


def _with_memory_given_back(change: Change, failed: Failed, run: Run) -> Change:
    """The change, once the memory of the failed start is given back, where nobody knows what its own start takes."""
    tried = failed.change.placed
    if (change.placed is not None and change.placed.requested) or tried is None or not tried.devices:
        return change
    process = failed.observed.process
    send_steps(change.server, change.stops, run, Expected(process.root if process else None))
    settled(change.server, tried, run)
    return replace(change, stops=(), digest={})

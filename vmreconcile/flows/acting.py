"""One server of a plan, from its steps to the proof that it is as wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from vmreconcile.core.gpus.lanes import starts
from vmreconcile.core.rollout.units import is_work
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.draining import drained, proven
from vmreconcile.flows.failing import NotReady
from vmreconcile.flows.going_back import RolledBack, go_back
from vmreconcile.flows.keeping import keep_good, keep_what_runs
from vmreconcile.flows.mending import Again, second_try
from vmreconcile.flows.ready import Interrupted, accept_moved, settle, wait_ready
from vmreconcile.flows.room import see_devices, wait_for_room
from vmreconcile.flows.run import MOVED, Expected, Run, seen_through, send_steps
from vmreconcile.model.outcome import Failure, Result, Status
from vmreconcile.model.plan import Action, Change, Reason

INTERRUPTED = Failure(
    kind="interrupted",
    summary="interrupted before it was done",
    remedy="run apply again: it goes on from what is there",
)


def carry_out(change: Change, run: Run, later: Iterable[Change] = ()) -> Result:
    """Do what a change says, and see it done. `later` are the changes that come after it on the same GPUs.

    Raises:
        UnreachableError: the host was lost.
    """
    if change.action is Action.BLOCKED:
        why = Failure(kind=change.reason, summary=change.note, remedy=change.remedy)
        return _result(change, Status.SKIPPED, why)
    if run.stopping.is_set():
        return _result(change, Status.SKIPPED, INTERRUPTED) if is_work(change) else _result(change, Status.OK)
    return _told(change, lambda: _carry_out(change, run, later))


def _carry_out(change: Change, run: Run, later: Iterable[Change]) -> Status:
    if change.pending:
        run.reporter.begins(change)
        return Status.CHANGED if _do(change, run, later) else Status.OK
    if change.reason is Reason.STILL_STARTING:
        _prove(change, run)
        keep_good(change, run)
        proven(change, run)
    return Status.OK


def take_down(change: Change, run: Run) -> Result | None:
    """Stop a server whose port or GPU others of its unit need before any of them starts; None where it is down now.

    Else how it ended: it serves on as before, or got its last good settings back, or is left stopped, which is told.

    Raises:
        UnreachableError: the host was lost.
    """
    result = _told(change, lambda: _take_down(change, run))
    return None if result.status is Status.OK else result


def _take_down(change: Change, run: Run) -> Status:
    keep_what_runs(change, run)
    try:
        with drained(change, run):
            send_steps(change.server, change.stops, run, Expected(change.root))
    except (NotReady, AgentError) as error:
        failure = error.failure if isinstance(error, NotReady) else agent_failure(change, error)
        _go_back(change, failure, run)
        raise
    return Status.OK


def _result(change: Change, status: Status, failure: Failure | None = None, seconds: float = 0.0) -> Result:
    return Result(server=change.server, action=change.action, status=status, seconds=seconds, failure=failure)


def _told(change: Change, work: Callable[[], Status]) -> Result:
    """What came of the work on one server."""
    begun = time.monotonic()
    try:
        status, failure = work(), None
    except NotReady as error:
        status, failure = Status.FAILED, error.failure
    except RolledBack as error:
        status, failure = Status.ROLLED_BACK, error.failure
    except Interrupted:
        status, failure = Status.SKIPPED, INTERRUPTED
    except AgentError as error:
        status, failure = Status.FAILED, agent_failure(change, error)
    return _result(change, status, failure, round(time.monotonic() - begun, 3))


def _do(change: Change, run: Run, later: Iterable[Change]) -> bool:
    """Carry out the steps and see what comes of them; a start that fails for memory is tried once more.

    Where it still fails, the last good settings come back. What was taken down for it, or is to be put into a load
    balancer, is seen through whatever a first Ctrl-C says.

    Returns:
        False where another run has meanwhile done what the steps are for.
    """
    keep_what_runs(change, run)
    tried, done = change, True
    try:
        done = _act(change, run)
        through = _through(change, run)
        try:
            _prove(change, through)
        except NotReady as first:
            if not done:
                raise
            again = second_try(change, first, run, later)
            run.reporter.says(change.server, f"{_unnamed(first.failure.summary, change)}: {again.told}")
            tried = again.change
            _once_more(again, through)
    except (NotReady, AgentError) as error:
        if done:
            failure = error.failure if isinstance(error, NotReady) else agent_failure(tried, error)
            _go_back(tried, failure, run)
        raise
    keep_good(tried, run)
    if done:
        proven(tried, run)
    return done


def _through(change: Change, run: Run) -> Run:
    """The run for the wait that follows: what was taken down, or has a hook to come, is seen through."""
    wanted = run.desired.get(change.server)
    owed = wanted is not None and wanted.hooks.after_ready is not None
    return seen_through(run) if starts(change) and (change.disruptive or owed) else run


def _go_back(change: Change, failure: Failure, run: Run) -> None:
    """As `go_back`. A host that is lost meanwhile does not hide that the change failed: others must not get it too."""
    try:
        go_back(change, failure, run, _bring_up)
    except UnreachableError as error:
        told = f"its host was lost before it was back on its last good settings ({error.reason})"
        remedy = f"look at {change.server} once its host can be reached: vmreconcile apply goes on; {failure.remedy}"
        raise NotReady(replace(failure, summary=f"{failure.summary}; {told}", remedy=remedy)) from None


def _bring_up(change: Change, run: Run) -> None:
    """Carry out a change that goes back, and prove it; nothing is tried a second time.

    Raises:
        AgentError: a step failed.
        NotReady: it did not become ready.
    """
    _act(change, run)
    _prove(change, run)


def _unnamed(summary: str, change: Change) -> str:
    """A failure's summary without the server's name, which stands before the line already."""
    return summary.removeprefix(f"{change.server} ")


def _once_more(again: Again, run: Run) -> None:
    """The second try, whose end counts, whatever it is.

    Raises:
        NotReady: it failed, too; the failure tells that there was a first one.
        Interrupted: the person asked to stop.
    """
    try:
        _act(again.change, run)
        _prove(again.change, run)
    except NotReady as error:
        failure = error.failure
    except AgentError as error:
        failure = agent_failure(again.change, error)
    else:
        return
    raise NotReady(replace(failure, summary=f"{failure.summary} ({again.told})"))


def _act(change: Change, run: Run) -> bool:
    """Carry out the steps; False where another run has meanwhile done what they are for.

    Raises:
        NotReady: another run has done something else, or the memory that it needs does not come free.
        Interrupted: the person asked to stop before anything was done.
    """
    try:
        with drained(change, run):
            _send(change, run)
    except AgentError as error:
        if error.kind != MOVED:
            raise
        accept_moved(change, run, str(error))
        return False
    return True


def _send(change: Change, run: Run) -> None:
    """Stops and steps in one request, unless free memory must be seen between them."""
    stops, expected = ((), Expected(None)) if change.early else (change.stops, Expected(change.root))
    placed = change.placed
    if placed is not None and any(placed.requested) and starts(change):
        if stops and change.disruptive:
            see_devices(change.server, placed, run)
        send_steps(change.server, stops, run, expected)
        wait_for_room(change.server, placed, run, stopped=bool(change.stops) and change.disruptive)
        stops, expected = (), Expected(None) if change.stops else expected
    send_steps(change.server, (*stops, *change.steps), run, expected)


def _prove(change: Change, run: Run) -> None:
    wanted = run.desired.get(change.server)
    settle(change, run)
    if wanted is not None and change.gate is not None:
        wait_ready(change, wanted, change.gate, run)


def agent_failure(change: Change, error: AgentError) -> Failure:
    """A step's failure; classes in reports are in snake_case, whoever found them."""
    where = f" ({error.path})" if error.path and error.path not in str(error) else ""
    return Failure(
        kind=error.kind.replace("-", "_"),
        summary=f"{change.server.host}: {error}{where}",
        remedy=error.remedy or "mend it on the host, then run apply again: it goes on from what is there",
    )

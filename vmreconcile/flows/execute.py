"""Carry out a plan: hosts in parallel, the servers of a host one after the other, each until it is seen ready.

Servers that start at once on one GPU mis-size each other's KV cache (vllm#55827); as long as GPUs are not placed, a
host is taken as one GPU.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable

from vmreconcile.effects.lost import lost_host
from vmreconcile.effects.parallel import for_each, wait_for
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.fetching import NotFetched, fetch
from vmreconcile.flows.ready import Interrupted, NotReady, accept_moved, settle, wait_ready
from vmreconcile.flows.run import MOVED, Expected, Run, send_steps
from vmreconcile.model.desired import DEFAULT_PRIORITY
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Unreachable
from vmreconcile.model.outcome import Failure, Outcome, Result, Status
from vmreconcile.model.plan import Action, Change, Plan, Reason


def execute(plan: Plan, run: Run) -> Outcome:
    """Carry out `plan`; the first Ctrl-C lets running steps end and starts no more, a second one leaves at once.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C; what the agents are doing goes on to its end.
    """
    results: list[Result] = []
    lost: list[Unreachable] = []
    errors: list[BaseException] = []
    hosts = sorted({change.server.host for change in plan.changes})

    def collect() -> None:
        for _, done in for_each(hosts, lambda host: _host(host, plan.on(host), run), run.fleet.forks):
            if isinstance(done, BaseException):
                errors.append(done)
                continue
            results.extend(done[0])
            lost.extend(done[1])

    _wait(collect, run)
    if errors:
        raise errors[0]
    return Outcome(
        results=tuple(sorted([*results, *_away(plan)], key=lambda result: result.server)),
        unreachable=tuple(sorted((*plan.unreachable, *lost))),
        interrupted=run.stopping.is_set(),
    )


def _away(plan: Plan) -> list[Result]:
    """The servers of the hosts that could not be seen, each with the reason."""
    why = {host.host: host for host in plan.unreachable}
    return [
        Result(
            server=server,
            action=Action.NOOP,
            status=Status.UNREACHABLE,
            failure=_lost(why[server.host]) if server.host in why else None,
        )
        for server in plan.unreachable_servers
    ]


def _lost(host: Unreachable) -> Failure:
    return Failure(kind="unreachable", summary=host.reason, remedy=host.remedy)


def _wait(work: Callable[[], None], run: Run) -> None:
    """Do `work` in another thread, for only the main one hears of Ctrl-C, and wait for its end."""
    begun, done = threading.Event(), threading.Event()

    def body() -> None:
        begun.set()
        try:
            work()
        finally:
            done.set()

    try:
        threading.Thread(target=body, daemon=True).start()
    except KeyboardInterrupt:
        if not begun.wait(1.0):
            raise
        _interrupt(run)
    while True:
        try:
            return wait_for(done)
        except KeyboardInterrupt:
            _interrupt(run)


def _interrupt(run: Run) -> None:
    """Ctrl-C was pressed.

    Raises:
        KeyboardInterrupt: not for the first time.
    """
    if run.stopping.is_set():
        raise KeyboardInterrupt
    run.stopping.set()
    run.reporter.interrupted()


def _host(host: str, changes: tuple[Change, ...], run: Run) -> tuple[list[Result], list[Unreachable]]:
    """All changes of one host, those that free something first."""
    results: list[Result] = []
    queue = sorted(changes, key=lambda change: _order(change, run))
    try:
        stuck = _fetch_first(queue, run)
        stuck |= _stop_early([change for change in queue if change.server not in stuck], run)
        for change in queue:
            failure = stuck.get(change.server)
            result = _failed(change, failure) if failure else _change(change, run)
            run.reporter.ends(result)
            results.append(result)
    except UnreachableError as error:
        done = {result.server for result in results}
        lost = lost_host(host, error)
        results += [
            Result(server=change.server, action=change.action, status=Status.UNREACHABLE, failure=_lost(lost))
            for change in queue
            if change.server not in done
        ]
        return results, [lost]
    return results, []


def _fetch_first(queue: list[Change], run: Run) -> dict[ServerId, Failure]:
    """Fetch models for servers that ask for it, while everything still runs; why some must not go on."""
    failed: dict[ServerId, Failure] = {}
    for change in queue:
        wanted = run.desired.get(change.server)
        loads = change.action is Action.START or (change.disruptive and change.gate is not None)
        if wanted is None or not (wanted.prefetch and change.pending and loads and wanted.from_hub):
            continue
        if run.stopping.is_set():
            break
        try:
            fetch(wanted, run.fleet, run.secrets, functools.partial(_tell_fetching, change.server, run))
        except NotFetched as error:
            if error.bearable(disruptive=change.disruptive):
                run.reporter.says(change.server, f"{error.failure.summary}; going on without")
            else:
                failed[change.server] = error.failure
        except Interrupted:
            run.fleet.drop(change.server.host)  # the agent ends the fetching as its controller goes away
            break
    return failed


def _tell_fetching(server: ServerId, run: Run, seconds: float, line: str) -> None:
    """Tell of a fetch that goes on.

    Raises:
        Interrupted: the person asked to stop.
    """
    run.reporter.waits(server, seconds, line)
    if run.stopping.is_set():
        raise Interrupted("interrupted")


def _stop_early(queue: list[Change], run: Run) -> dict[ServerId, Failure]:
    """Take down what another server of the host needs the port of; the failures of those that would not go."""
    stuck: dict[ServerId, Failure] = {}
    for change in queue:
        if not (change.early and change.pending) or run.stopping.is_set():
            continue
        try:
            send_steps(change.server, change.stops, run, _planned_for(change))
        except AgentError as error:
            stuck[change.server] = _agent_failure(change, error)
    return stuck


def _failed(change: Change, failure: Failure) -> Result:
    return Result(server=change.server, action=change.action, status=Status.FAILED, failure=failure)


def _order(change: Change, run: Run) -> tuple[int, int, ServerId]:
    """What frees something first, then what takes nothing down, then the rest; each by priority."""
    frees = change.action in {Action.STOP, Action.REMOVE}
    wanted = run.desired.get(change.server)
    return (
        0 if frees else 1 if not change.disruptive else 2,
        wanted.priority if wanted else DEFAULT_PRIORITY,
        change.server,
    )


def _change(change: Change, run: Run) -> Result:
    """One server, from its steps to the proof that it is as wanted."""
    begun = time.monotonic()

    def result(status: Status, failure: Failure | None = None) -> Result:
        seconds = round(time.monotonic() - begun, 3)
        return Result(server=change.server, action=change.action, status=status, seconds=seconds, failure=failure)

    if run.stopping.is_set():
        return result(Status.SKIPPED, INTERRUPTED) if change.pending else result(Status.OK)
    if change.action is Action.BLOCKED:
        return result(Status.SKIPPED, Failure(kind=change.reason, summary=change.note, remedy=change.remedy))
    try:
        if change.pending:
            run.reporter.begins(change)
            done = _act(change, run)
            _prove(change, run)
            return result(Status.CHANGED if done else Status.OK)
        if change.reason is Reason.STILL_STARTING:
            _prove(change, run)
    except NotReady as error:
        return result(Status.FAILED, error.failure)
    except Interrupted:
        return result(Status.SKIPPED, INTERRUPTED)
    except AgentError as error:
        return result(Status.FAILED, _agent_failure(change, error))
    return result(Status.OK)


def _act(change: Change, run: Run) -> bool:
    """Carry out the steps; False where another run has meanwhile done what they are for.

    Raises:
        NotReady: another run has done something else.
    """
    steps = change.steps if change.early else (*change.stops, *change.steps)
    expected = Expected(None) if change.early else _planned_for(change)
    try:
        send_steps(change.server, steps, run, expected)
    except AgentError as error:
        if error.kind != MOVED:
            raise
        accept_moved(change, run, str(error))
        return False
    return True


def _planned_for(change: Change) -> Expected:
    """The root process that was seen when the plan was made."""
    pid, ticks = (change.digest.get(f"process.{part}") for part in ("pid", "start_ticks"))
    return Expected((pid, ticks) if isinstance(pid, int) and isinstance(ticks, int) else None)


INTERRUPTED = Failure(
    kind="interrupted",
    summary="interrupted before it was done",
    remedy="run apply again: it goes on from what is there",
)


def _prove(change: Change, run: Run) -> None:
    wanted = run.desired.get(change.server)
    settle(change, run)
    if wanted is not None and change.gate is not None:
        wait_ready(change, wanted, change.gate, run)


def _agent_failure(change: Change, error: AgentError) -> Failure:
    """A step's failure; classes in reports are in snake_case, whoever found them."""
    where = f" ({error.path})" if error.path else ""
    return Failure(
        kind=error.kind.replace("-", "_"),
        summary=f"{change.server.host}: {error}{where}",
        remedy=error.remedy or "mend it on the host, then run apply again: it goes on from what is there",
    )

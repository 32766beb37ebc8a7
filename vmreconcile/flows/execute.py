"""Carry out a plan: hosts in parallel, and on a host those servers that share no GPU, each until it is seen ready.

Which servers go side by side, and in which order the others: `core/gpus/lanes.py`. One server: `flows/acting.py`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vmreconcile.core.gpus.lanes import Lane, in_order, lanes, starts, uses_lane
from vmreconcile.effects.lost import lost_host
from vmreconcile.effects.parallel import for_each, wait_for
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.acting import agent_failure, carry_out, planned_for
from vmreconcile.flows.fetching import NotFetched, fetch
from vmreconcile.flows.ready import Interrupted
from vmreconcile.flows.run import Run, send_steps
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Unreachable
from vmreconcile.model.outcome import Failure, Outcome, Result, Status
from vmreconcile.model.plan import Action, Change, Plan

LANES = 8
"""Servers of one host at work at once: as many as most hosts have GPUs."""


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


@dataclass(frozen=True, slots=True)
class _Begun:
    """What came of one host so far; its lanes write here at the same time."""

    results: list[Result] = field(default_factory=list)
    lost: list[UnreachableError] = field(default_factory=list)


def _host(host: str, changes: tuple[Change, ...], run: Run) -> tuple[list[Result], list[Unreachable]]:
    """All changes of one host: those that free something first, then the lanes side by side."""
    queue = in_order(changes, run.desired)
    begun = _Begun()
    try:
        stuck = _fetch_first(queue, run)
        stuck |= _stop_early([change for change in queue if change.server not in stuck], run)
    except UnreachableError as error:
        begun.lost.append(error)
    else:
        _lane(tuple(change for change in queue if not uses_lane(change)), stuck, run, begun)
        _side_by_side(lanes([*filter(uses_lane, queue)], run.desired), lambda lane: _lane(lane, stuck, run, begun))
    if not begun.lost:
        return begun.results, []
    done = {result.server for result in begun.results}
    lost = lost_host(host, begun.lost[0])
    left = [
        Result(server=change.server, action=change.action, status=Status.UNREACHABLE, failure=_lost(lost))
        for change in queue
        if change.server not in done
    ]
    return [*begun.results, *left], [lost]


def _side_by_side(found: list[Lane], work: Callable[[Lane], None]) -> None:
    """Do every lane, `LANES` at a time, and wait for all of them, whatever becomes of one."""
    errors = [error for _, error in for_each(found, work, LANES) if isinstance(error, Exception)]
    if errors:
        raise errors[0]


def _lane(lane: Lane, stuck: Mapping[ServerId, Failure], run: Run, begun: _Begun) -> None:
    """One server after the other, each until it is seen ready; none any more once the host was lost."""
    for at, change in enumerate(lane):
        if begun.lost:
            return
        try:
            failure = stuck.get(change.server)
            result = _failed(change, failure) if failure else carry_out(change, run, lane[at + 1 :])
        except UnreachableError as error:
            begun.lost.append(error)
            return
        run.reporter.ends(result)
        begun.results.append(result)


def _fetch_first(queue: list[Change], run: Run) -> dict[ServerId, Failure]:
    """Fetch models for servers that ask for it, while everything still runs; why some must not go on."""
    failed: dict[ServerId, Failure] = {}
    for change in queue:
        wanted = run.desired.get(change.server)
        if wanted is None or not (wanted.prefetch and starts(change) and wanted.from_hub):
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
            send_steps(change.server, change.stops, run, planned_for(change))
        except AgentError as error:
            stuck[change.server] = agent_failure(change, error)
    return stuck


def _failed(change: Change, failure: Failure) -> Result:
    return Result(server=change.server, action=change.action, status=Status.FAILED, failure=failure)

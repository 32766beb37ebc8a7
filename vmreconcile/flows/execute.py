"""Carry out a plan: what may begin does, each server until it is seen ready, as the course of the rollout allows.

What may begin when: `core/rollout/course.py`. One server: `flows/acting.py`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from vmreconcile.core.rollout.course import Course, Ended, Held, course_of
from vmreconcile.core.rollout.units import Unit, is_work
from vmreconcile.effects.locks import LOCKED
from vmreconcile.effects.lost import lost_host
from vmreconcile.effects.parallel import wait_for
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.acting import INTERRUPTED, carry_out, take_down
from vmreconcile.flows.fetching import fetch_first
from vmreconcile.flows.locking import lock_host
from vmreconcile.flows.run import Run, seen_through
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase, Unreachable
from vmreconcile.model.outcome import Failure, Outcome, Result, Status
from vmreconcile.model.plan import Action, Change, Plan

RUN_BY_HAND = "vmreconcile restart {server}, or the hook by hand"


def execute(plan: Plan, run: Run) -> Outcome:
    """Carry out `plan`; the first Ctrl-C begins nothing more, a second one leaves at once.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C; what the agents are doing goes on to its end.
    """
    rollout = _Rollout(plan=plan, run=run, course=course_of(plan, run.desired, run.limits))
    _wait(rollout.go, run)
    if rollout.errors:
        raise rollout.errors[0]
    return Outcome(
        results=tuple(sorted([*rollout.results, *_away(plan)], key=lambda result: result.server)),
        unreachable=tuple(sorted((*plan.unreachable, *rollout.lost.values()))),
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
    """Do `work` in another thread, for only the main one hears of Ctrl-C, and wait for its end.

    Raises:
        BaseException: what `work` raised; its results are not all there then.
    """
    begun, done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def body() -> None:
        begun.set()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the thread that waits raises it
            errors.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=body, daemon=True).start()
    except KeyboardInterrupt:
        if not begun.wait(1.0):
            raise
        _interrupt(run)
    while not done.is_set():
        try:
            wait_for(done)
        except KeyboardInterrupt:
            _interrupt(run)
    if errors:
        raise errors[0]


def _interrupt(run: Run) -> None:
    """Ctrl-C was pressed.

    Raises:
        KeyboardInterrupt: not for the first time.
    """
    if run.stopping.is_set():
        for server in sorted(run.out):
            run.reporter.says(server, f"before_stop ran, after_ready did not: {RUN_BY_HAND.format(server=server)}")
        raise KeyboardInterrupt
    run.stopping.set()
    run.reporter.interrupted()


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of a unit: results of its changes, and whether its host was lost or must be left alone."""

    unit: Unit
    results: list[Result] = field(default_factory=list)
    lost: UnreachableError | None = None
    refused: Failure | None = None
    error: BaseException | None = None


@dataclass(slots=True, kw_only=True)
class _Rollout:
    """A plan being carried out: one thread follows the course, each unit at work has one of its own."""

    plan: Plan
    run: Run
    course: Course
    results: list[Result] = field(default_factory=list)
    lost: dict[str, Unreachable] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)
    stuck: dict[ServerId, Result] = field(default_factory=dict)
    """Servers that must not go on, because something before it failed, with how that ended."""
    finished: queue.SimpleQueue[_Done] = field(default_factory=queue.SimpleQueue)

    def go(self) -> None:
        """Go through the course to its end."""
        for change in self.plan.changes:
            if not is_work(change):
                self._ends(carry_out(change, self.run))
        while True:
            now = time.monotonic()
            stopping = self.run.stopping.is_set() or bool(self.errors)  # what is at work comes to its end all the same
            for unit in [] if stopping else self.course.begin(now):
                later = [change for each in self.course.beside(unit) for change in each.changes]
                threading.Thread(target=self._work, args=(unit, later), daemon=True).start()
            pause = self.course.wakes(now)
            if self.course.working:
                self._hear(pause)
            elif pause is not None and not stopping:
                self.run.stopping.wait(pause)
            elif self.course.waiting and not self.errors:
                self._give_up()
            else:
                break

    def _give_up(self) -> None:
        """Nothing is at work, and nothing may begin: tell of what cannot be done, so that what waits behind it can."""
        for unit, held in self.course.give_up().items():
            for change in unit.changes:
                self._ends(_held(change, held, self.run))

    def _hear(self, longest: float | None) -> None:
        """Wait until a unit is done, or a pause over, and note what came of it."""
        try:
            done = self.finished.get(timeout=longest)
        except queue.Empty:
            return
        if done.error is not None:
            self.errors.append(done.error)
            self.course.end(done.unit, {}, time.monotonic())
            return
        host, changes = done.unit.host, {change.server: change for change in done.unit.changes}
        ended = {result.server: _ended(changes[result.server], result) for result in done.results}
        self.course.end(done.unit, ended, time.monotonic())
        if not self.course.left[host] and done.unit.changes and (self.course.working or self.course.waiting):
            threading.Thread(target=self._release, args=(host,), daemon=True).start()  # others may have it now
        if done.lost is not None:
            self.lost.setdefault(host, lost_host(host, done.lost))
            self._drop(done, host)
        elif done.refused is not None:
            for unit in self.course.drop(host, lost=done.refused.kind == LOCKED):
                for change in unit.changes:
                    self._ends(_refused(change, done.refused))

    def _drop(self, done: _Done, host: str) -> None:
        """A host was lost: nothing more is begun on it, and what was not done of it stays as it is."""
        seen = {result.server for result in done.results}
        left = [change for unit in (done.unit, *self.course.drop(host, lost=True)) for change in unit.changes]
        failure = _lost(self.lost[host])
        for change in left:
            if change.server not in seen:
                self.results.append(
                    Result(server=change.server, action=change.action, status=Status.UNREACHABLE, failure=failure)
                )

    def _work(self, unit: Unit, later: list[Change]) -> None:
        """Do a unit, in a thread of its own; whatever happens, the course hears of it."""
        done = _Done(unit)
        try:
            refused = self._open(unit.host) if not unit.changes else None
            self._act(unit, later, done.results)
        except UnreachableError as error:
            self.finished.put(_Done(unit, done.results, lost=error))
        except BaseException as error:  # noqa: BLE001 - the thread that waits decides, this one must not lose it
            self.finished.put(_Done(unit, error=error))
        else:
            self.finished.put(_Done(unit, done.results, refused=refused))

    def _release(self, host: str) -> None:
        """Let a host go whose work is done; whatever comes of it, the lock ends with the session at the latest."""
        with contextlib.suppress(Exception):
            self.run.fleet.release(host)

    def _open(self, host: str) -> Failure | None:
        """Before anything else on a host: hold it; fetch models for servers that ask for it, while all still runs."""
        refused = lock_host(host, self.run)
        if refused is None:
            changes = {change.server: change for change in self.plan.on(host)}
            for server, failure in fetch_first(changes.values(), self.run).items():
                self.stuck[server] = replace(_skipped(changes[server], failure), status=Status.FAILED)
        return refused

    def _act(self, unit: Unit, later: list[Change], results: list[Result]) -> None:
        """One change after the other, each until it is seen done."""
        fit = [change for change in unit.changes if change.server not in self.stuck]
        stopped = not self.run.stopping.is_set() and _stop_early(fit, self.run, self.stuck)
        run = seen_through(self.run) if stopped else self.run  # what was stopped comes up again
        for at, change in enumerate(unit.changes):
            result = self.stuck.get(change.server) or carry_out(change, run, [*unit.changes[at + 1 :], *later])
            results.append(result)
            self._ends(result)

    def _ends(self, result: Result) -> None:
        self.results.append(result)
        self.run.reporter.ends(result)


def _ended(change: Change, result: Result) -> Ended:
    """What a result means for the others."""
    match result.status:
        case Status.CHANGED | Status.OK:
            return Ended(up=True, well=True)
        case Status.ROLLED_BACK:
            return Ended(up=True, well=False, failed=True)
        case Status.FAILED:
            untouched = result.failure is not None and result.failure.untouched
            return Ended(up=untouched and change.phase is Phase.READY, well=False, failed=True)
        case Status.SKIPPED | Status.UNREACHABLE:
            return Ended(up=change.phase is Phase.READY and result.status is Status.SKIPPED, well=False)


def _held(change: Change, held: Held, run: Run) -> Result:
    """What was not begun: because of Ctrl-C, or because the rollout allows no more."""
    if run.stopping.is_set() or not change.pending:
        return carry_out(change, run)
    return _skipped(change, Failure(kind=held.kind, summary=f"not begun: {held.why}", remedy=held.remedy))


def _refused(change: Change, failure: Failure) -> Result:
    """A server of a host that could not be held: by its lock's own fault, or because another run has it."""
    result = _skipped(change, failure)
    return result if failure.kind in {LOCKED, INTERRUPTED.kind} else replace(result, status=Status.FAILED)


def _skipped(change: Change, failure: Failure) -> Result:
    return Result(server=change.server, action=change.action, status=Status.SKIPPED, failure=failure)


def _stop_early(changes: Iterable[Change], run: Run, stuck: dict[ServerId, Result]) -> bool:
    """Take down what another server of the unit needs the port or GPU of; those that would not go are `stuck`.

    Returns:
        Whether anything was stopped; from then on a Ctrl-C does not end it, for the others need what they free.
    """
    stopped = False
    for change in changes:
        if not (change.early and change.pending):
            continue
        failed = take_down(change, run)
        if failed is None:
            stopped, run = True, seen_through(run)
        elif failed.status is Status.SKIPPED:
            break  # a Ctrl-C, before anything was stopped
        else:
            stuck[change.server] = failed
    return stopped

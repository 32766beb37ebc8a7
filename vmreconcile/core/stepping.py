"""The literal steps of a decision: what takes down, what brings up, what removes. Pure."""

from __future__ import annotations

from dataclasses import replace

from vmreconcile.core.actions import Decision, exists
from vmreconcile.core.diff import Subject
from vmreconcile.core.phases import runtime_of
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.plan import Action, Reason
from vmreconcile.model.steps import RemoveServer, Step
from vmreconcile.runtimes.registry import choose
from vmreconcile.vllm.draining import shutdown_timeout_of


def taking_down(subject: Subject, decision: Decision) -> tuple[Step, ...]:
    """What goes before `_steps`.

    Where a server only comes back different, its files are written while it still serves: what cannot be written (a
    full disk, a read-only one) then takes nothing down.
    """
    if _comes_back(subject, decision):
        launch = replace(subject.launch, drains=max(subject.launch.drains, _drains_now(subject)))
        return (*subject.runtime.refresh(launch), *subject.runtime.halt(subject.host, subject.observed))
    return stops_of(subject.host, subject.observed, decision)


def _comes_back(subject: Subject, decision: Decision) -> bool:
    """Whether what runs is replaced under the same runtime."""
    former = runtime_of(subject.observed)
    return decision.replaces and former is not None and former.name == subject.runtime.name


def _drains_now(subject: Subject) -> int:
    """Seconds that what runs may take for its requests, and so must be given by what is written before its stop."""
    process = subject.observed.process
    return shutdown_timeout_of(process.argv) if process else 0


def stops_of(host: HostView, observed: ObservedServer, decision: Decision) -> tuple[Step, ...]:
    """Steps that take down what is there: for a start too, where something is left over."""
    runtime = runtime_of(observed)
    if runtime is None or not exists(observed):
        return ()
    left_over = decision.action is Action.START and decision.reason in {Reason.CRASHED, Reason.ROOT_DIED}
    if decision.replaces or left_over or decision.action in {Action.STOP, Action.REMOVE}:
        return runtime.stop(host, observed)
    return ()


def bringing_up(subject: Subject, decision: Decision) -> tuple[Step, ...]:
    """What comes after `taking_down`: start, begin again, write files anew, or remove."""
    if _comes_back(subject, decision):
        written = _drains_now(subject) <= subject.launch.drains
        return subject.runtime.begin(subject.launch) if written else subject.runtime.start(subject.launch)
    if decision.replaces or decision.action is Action.START:
        return (*_moved_runtime(subject), *subject.runtime.start(subject.launch))
    match decision.action:
        case Action.RETUNE:
            return subject.runtime.refresh(subject.launch)
        case Action.REMOVE:
            return removal(subject.host, subject.observed)
        case _:
            return ()


def _moved_runtime(subject: Subject) -> tuple[Step, ...]:
    """What the former runtime left: its unit must not start at the next boot."""
    former = runtime_of(subject.observed)
    if former is None or former.name == subject.runtime.name:
        return ()
    # Record and env file stay: both are written anew, and a token that only the host has must not be lost.
    return tuple(step for step in former.remove(subject.host, subject.observed) if not isinstance(step, RemoveServer))


def removal(host: HostView, observed: ObservedServer) -> tuple[Step, ...]:
    """Remove everything of a server, whatever runtime it was under."""
    runtime = runtime_of(observed) or choose("process", host)
    return runtime.remove(host, observed)

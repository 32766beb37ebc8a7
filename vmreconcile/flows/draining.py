"""Before a server that answers is taken down: out of the load balancer, and its requests finished; and back after.

The user's hooks run on this controller; what the requests are doing is read from the server's own metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vmreconcile.core.draining import drain_of
from vmreconcile.core.gates import startup_timeout, weights_of
from vmreconcile.core.phases import phase_of
from vmreconcile.effects.hooks import Hook, HookError, run_hook
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError, VmreconcileError
from vmreconcile.flows.failing import NotReady
from vmreconcile.flows.ready import Interrupted
from vmreconcile.flows.run import Run
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.observed import ObservedServer, Phase
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Action, Change
from vmreconcile.vllm.draining import shutdown_timeout_of

BEFORE_STOP, AFTER_READY = "before_stop", "after_ready"
PAUSE_S = 0.5
IDLE_LOOKS = 2
"""How often in a row no request may be seen: one that was just accepted is not counted yet."""

TAKES_DOWN = frozenset({Action.RETUNE, Action.RESTART, Action.STOP, Action.REMOVE})
HOOK_FAILED = "hook_failed"


class HookFailed(NotReady):
    """A hook failed: nothing was stopped for it, or the server is ready all the same."""


@contextmanager
def drained(change: Change, run: Run) -> Iterator[None]:
    """Drain a server; in the block it is taken down. Where that fails while it still serves, it is put back.

    Raises:
        HookFailed: its before_stop hook failed, and the server was left alone.
        Interrupted: the person asked to stop before anything was stopped.
        UnreachableError: the host was lost.
    """
    wanted = run.desired.get(change.server)
    port = _serving_port(change, wanted, run) if wanted is not None and _is_drained(change, wanted) else None
    if wanted is None or port is None:
        yield
        return
    occasion = _Occasion(change=change, wanted=wanted, port=port)
    try:
        _take_out(occasion, run)
        _wait_idle(wanted, run)
        if run.stopping.is_set():
            raise Interrupted("interrupted")
        yield
    except UnreachableError:
        if wanted.hooks.before_stop is not None:
            run.reporter.says(change.server, "lost after before_stop: after_ready was not run")
        raise
    except NotReady as error:
        failed = _put_back(occasion, run)
        if not failed:
            raise
        told = f"{error.failure.summary}; {failed}: it may be out of its load balancer"
        raise type(error)(replace(error.failure, summary=told), error.lines) from None
    except (VmreconcileError, AgentError):
        _put_back(occasion, run)
        raise


def proven(change: Change, run: Run) -> None:
    """A server was just proven ready after a start: its after_ready hook is run.

    Raises:
        HookFailed: the hook failed; the server is ready all the same.
    """
    wanted = run.desired.get(change.server)
    if wanted is None or change.gate is None or (change.action is Action.RETUNE and not change.disruptive):
        return
    try:
        _hook(AFTER_READY, _Occasion(change=change, wanted=wanted, port=wanted.port), run)
    except HookError as error:
        raise HookFailed(
            Failure(
                kind=HOOK_FAILED,
                summary=f"{change.server} is ready, but its after_ready hook failed: {error}",
                evidence=error.evidence,
                remedy=f"do by hand what it should have done, and mend the hook{_where(wanted)}",
            )
        ) from None


def back_in(change: Change, failure: Failure, run: Run) -> Failure:
    """A server is ready again on its former settings: its after_ready hook is run; `failure`, with how that ended."""
    try:
        proven(change, run)
    except HookFailed as error:
        said = " | ".join(filter(None, (failure.evidence, error.failure.evidence)))
        return replace(failure, summary=f"{failure.summary}; {error.failure.summary}", evidence=said)
    return failure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Occasion:
    """What a hook is run for; `port` is where the server listens at that moment."""

    change: Change
    wanted: DesiredServer
    port: int


def _is_drained(change: Change, wanted: DesiredServer) -> bool:
    """Whether a change takes down what served, and there is something to do before that."""
    takes_down = change.action in TAKES_DOWN and change.disruptive and bool(change.stops)
    return takes_down and (wanted.hooks.before_stop is not None or drain_of(wanted) > 0)


def _ready(wanted: DesiredServer, run: Run) -> ObservedServer | None:
    """The server as it is now, where it answers; None where there is nobody whom it serves."""
    host = run.fleet.observe_host(wanted.id.host, wanted.id.slug, metrics=True)
    observed = host.server(wanted.id.slug)
    phase = phase_of(observed, host.now, startup_timeout(wanted, weights_of(observed, None)))
    return observed if phase is Phase.READY else None


def _serving_port(change: Change, wanted: DesiredServer, run: Run) -> int | None:
    """Where the server answers now, which may be another port than it is to have.

    None where it does not, and where another process answers than the change was planned for: that one stays.
    """
    observed = _ready(wanted, run)
    if observed is None or observed.endpoint is None or observed.process is None:
        return None
    return observed.endpoint.port if change.root in {observed.process.root, None} else None


def _take_out(occasion: _Occasion, run: Run) -> None:
    """Run the before_stop hook.

    Raises:
        HookFailed: it failed.
    """
    try:
        _hook(BEFORE_STOP, occasion, run)
    except HookError as error:
        raise HookFailed(
            Failure(
                kind=HOOK_FAILED,
                summary=f"{occasion.change.server} was left as it is: its before_stop hook failed: {error}",
                evidence=error.evidence,
                remedy=f"mend the hook{_where(occasion.wanted)}, then run apply again",
                untouched=True,
            )
        ) from None


def _wait_idle(wanted: DesiredServer, run: Run) -> None:
    """Wait until no request is in flight, as long as `rollout.drain` says; an interruption ends it."""
    seconds, begun, idle = drain_of(wanted), time.monotonic(), 0
    while seconds > 0 and not run.stopping.is_set():
        observed = _ready(wanted, run)
        if observed is None:
            return
        requests = _in_flight(observed)
        if requests is None:
            run.reporter.says(wanted.id, "no metrics: requests in flight are not waited for")
            return
        idle = 0 if requests else idle + 1
        if idle == IDLE_LOOKS:
            return
        waited = time.monotonic() - begun
        if waited >= seconds:
            if requests:
                run.reporter.says(wanted.id, _cut_off(requests, seconds, observed))
            return
        run.reporter.waits(wanted.id, waited, f"{_counted(requests)} in flight")
        run.stopping.wait(PAUSE_S)


def _in_flight(observed: ObservedServer) -> int | None:
    """Requests that run or wait; None where the server does not tell."""
    endpoint = observed.endpoint
    if endpoint is None or endpoint.requests_running is None:
        return None
    return int(endpoint.requests_running + (endpoint.requests_waiting or 0))


def _cut_off(requests: int, seconds: float, observed: ObservedServer) -> str:
    """What becomes of requests that took longer than they may."""
    more = shutdown_timeout_of(observed.process.argv) if observed.process else 0
    told = f"{_counted(requests)} in flight after {seconds:g} s"
    return f"{told}; vLLM gives them {more} s more" if more else f"{told}: cut off by the stop"


def _counted(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _put_back(occasion: _Occasion, run: Run) -> str:
    """Run after_ready for a server that was to be taken down and still serves; what fails here is told and returned."""
    server, hooks, failed = occasion.change.server, occasion.wanted.hooks, ""
    if hooks.before_stop is None or hooks.after_ready is None:
        return failed
    try:
        if _ready(occasion.wanted, run) is not None:
            run.reporter.says(server, "it still serves: after_ready is run to put it back")
            _hook(AFTER_READY, occasion, run)
    except HookError as error:
        failed = f"after_ready failed too: {error}"
    except (AgentError, UnreachableError) as error:
        failed = f"after_ready was not run: {error}"
    if failed:
        run.reporter.says(server, failed)
    return failed


def _hook(name: str, occasion: _Occasion, run: Run) -> None:
    """Run one hook of a server, where it has that.

    Raises:
        HookError: it failed.
    """
    change, server, hooks = occasion.change, occasion.change.server, occasion.wanted.hooks
    command = hooks.before_stop if name == BEFORE_STOP else hooks.after_ready
    if command is None:
        return
    facts = {
        "VMRECONCILE_HOOK": name,
        "VMRECONCILE_SERVER": str(server),
        "VMRECONCILE_MODEL": server.model,
        "VMRECONCILE_HOST": server.host,
        "VMRECONCILE_ADDRESS": run.controller.addresses.get(server.host, server.host),
        "VMRECONCILE_PORT": str(occasion.port),
        "VMRECONCILE_ACTION": str(change.action),
        "VMRECONCILE_REASON": str(change.reason),
    }
    hook = Hook(command=command, timeout=hooks.timeout, facts=facts)
    if name == BEFORE_STOP and hooks.after_ready is not None:
        run.out.add(server)
    run_hook(hook, run.controller, lambda seconds: run.reporter.waits(server, seconds, f"{name} hook"))
    if name == AFTER_READY:
        run.out.discard(server)


def _where(wanted: DesiredServer) -> str:
    """Where the hooks were written."""
    origin = wanted.origins.get("hooks")
    return f" ({origin.place})" if origin and origin.place else ""

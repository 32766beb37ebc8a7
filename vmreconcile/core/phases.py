"""In which phase an observed server is. Pure: the host's clock comes with the observation."""

from __future__ import annotations

from vmreconcile.core.gates import extension_of, longest_wait
from vmreconcile.model.observed import Endpoint, ObservedServer, Phase
from vmreconcile.runtimes.base import Runtime
from vmreconcile.runtimes.registry import RUNTIMES


def phase_of(server: ObservedServer, now: float, startup_timeout: float) -> Phase:
    """The phase of one server; `now` and `startup_timeout` in seconds, on the host's clock.

    A server that does not answer yet is starting until its startup_timeout is over, then unhealthy. Beyond that time
    it counts as starting for as long as a run would wait for it, if its log was written lately: that is all that one
    look can tell of progress, and who restarts what another run still waits for does more harm than who comes late.
    """
    if server.process is None:
        return _without_process(server)
    endpoint = server.endpoint
    if endpoint is not None and endpoint.health == 200:
        return Phase.UNHEALTHY if endpoint.wedged else Phase.READY
    if endpoint is not None and endpoint.health is not None:
        return Phase.UNHEALTHY
    age = now - server.process.started_at
    limit = longest_wait(startup_timeout) if _logs(server, now, startup_timeout) else startup_timeout
    return Phase.STARTING if age < limit else Phase.UNHEALTHY


def _logs(server: ObservedServer, now: float, startup_timeout: float) -> bool:
    """Whether the server's log was written within the time that progress is waited for."""
    written = server.log_written_at
    return written is not None and now - written < extension_of(startup_timeout)


def stall_text(endpoint: Endpoint) -> str:
    """What was seen of a server that is healthy and does nothing."""
    running, seconds = int(endpoint.requests_running or 0), endpoint.stalled_s or 0.0
    return f"/health is 200, but no request moved for {seconds:.0f} s ({running} running), nor was one token answered"


def runtime_of(server: ObservedServer) -> Runtime | None:
    """The runtime that a server was started with; None where nothing says so."""
    name = server.runtime or (server.record.runtime if server.record else "") or ("systemd" if server.unit else "")
    return RUNTIMES.get(name)


def _without_process(server: ObservedServer) -> Phase:
    runtime = runtime_of(server)
    if runtime is None:
        return Phase.CRASHED if server.orphans else Phase.ABSENT
    if server.orphans or runtime.crashed(server):
        return Phase.CRASHED
    unit = server.unit
    if unit is not None and unit.active in {"activating", "reloading", "deactivating"}:
        return Phase.STARTING if unit.active == "activating" else Phase.STOPPED
    return Phase.STOPPED

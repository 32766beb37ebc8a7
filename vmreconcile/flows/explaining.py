"""Why servers that should run do not: from their own logs, asked only of those."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from vmreconcile.core.explaining import located, wedged
from vmreconcile.core.tuning import tuned
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.logs import Part, read_log
from vmreconcile.flows.prepare import Prepared
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, HostView, Phase
from vmreconcile.model.plan import Plan
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.signatures import Explanation, cause

LOG_LINES = 600
LOG_TIMEOUT_S = 30.0
HEALTHY = 200
DOWN = frozenset({Phase.STOPPED, Phase.CRASHED, Phase.UNHEALTHY})
"""Phases in which a server that is wanted running has a reason that its log may tell."""


def explanations(prepared: Prepared, view: FleetView, plan: Plan) -> Mapping[ServerId, Explanation]:
    """The cause, for each server that is wanted running, does not, and whose log shows one."""
    wanted = {server.id: server for server in prepared.inputs.desired.servers}
    asked: dict[str, list[DesiredServer]] = {}
    for change in plan.changes:
        server = wanted.get(change.server)
        if server is not None and change.phase in DOWN and server.state is DesiredState.RUNNING:
            asked.setdefault(change.server.host, []).append(server)
    hosts = {host.host: host for host in view.hosts if host.host in asked}
    found: dict[ServerId, Explanation] = {}
    for _, result in for_each(
        hosts, lambda name: _of_host(hosts[name], asked[name], prepared.fleet), prepared.fleet.forks
    ):
        if not isinstance(result, Exception):  # what cannot be read explains nothing; a host is reported elsewhere
            found |= result
    return found


def explanation_of_log(server: ServerId, prepared: Prepared) -> Explanation | None:
    """The cause that the whole latest start in one server's log shows, where it does not serve; as `explanations`.

    The server itself is looked at only where its log shows one: a look leaves lines in the log that is read here.
    """
    lines = latest_start_of(server, prepared.fleet)
    if cause(lines) is None:
        return None
    host: HostView | None = None
    with suppress(AgentError, UnreachableError):
        host = prepared.fleet.observe_host(server.host, server.slug)
    observed = host.server(server.slug) if host else None
    if observed is not None and observed.endpoint is not None and observed.endpoint.health == HEALTHY:
        return None
    exit_code = observed.unit.exit_code if observed and observed.unit else None
    found = cause(lines, exit_code)
    wanted = next((each for each in prepared.inputs.desired.servers if each.id == server), None)
    return None if found is None else in_place(found, server, wanted, host)


def in_place(found: Explanation, server: ServerId, wanted: DesiredServer | None, host: HostView | None) -> Explanation:
    """The explanation with names and places, among them those of what tuning rules set on this host."""
    if wanted is not None and host is not None:
        wanted, _ = tuned(wanted, host, catalogue_for(host.installed(wanted.executable).version))
    return located(found, server, wanted)


def latest_start_of(server: ServerId, fleet: Fleet, lines: int = LOG_LINES) -> list[str]:
    """The end of the server's log since its latest start, oldest first; empty where it cannot be read."""
    found: list[str] = []
    with suppress(AgentError, UnreachableError):
        read_log(server, Part(lines=lines, latest=True), fleet, found.append, timeout=LOG_TIMEOUT_S)
    return found


def _of_host(host: HostView, servers: list[DesiredServer], fleet: Fleet) -> dict[ServerId, Explanation]:
    found = {}
    for server in servers:
        unit, endpoint = host.server(server.id.slug).unit, host.server(server.id.slug).endpoint
        if endpoint is not None and endpoint.wedged:
            found[server.id] = wedged(server.id, endpoint)
            continue
        explanation = cause(latest_start_of(server.id, fleet), unit.exit_code if unit else None)
        if explanation is not None:
            found[server.id] = in_place(explanation, server.id, server, host)
    return found

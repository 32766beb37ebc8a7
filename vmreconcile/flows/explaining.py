"""Why servers that should run do not: from their own logs, asked only of those."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from vmreconcile.core.explaining import located
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.logs import Part, read_log
from vmreconcile.flows.prepare import Prepared
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, ObservedServer, Phase
from vmreconcile.model.plan import Plan
from vmreconcile.vllm.signatures import Explanation, cause, gave_up

LOG_LINES = 600
LOG_TIMEOUT_S = 30.0
DOWN = frozenset({Phase.STOPPED, Phase.CRASHED, Phase.UNHEALTHY})
"""Phases in which a server that is wanted running has a reason that its log may tell."""


def explanations(prepared: Prepared, view: FleetView, plan: Plan) -> Mapping[ServerId, Explanation]:
    """The cause, for each server that is wanted running, does not, and whose log shows one."""
    wanted = {server.id: server for server in prepared.inputs.desired.servers}
    asked: dict[str, list[ObservedServer]] = {}
    for change in plan.changes:
        server, host = wanted.get(change.server), view.host(change.server.host)
        if server is not None and host is not None and change.phase in DOWN and server.state is DesiredState.RUNNING:
            asked.setdefault(host.host, []).append(host.server(change.server.slug))
    found: dict[ServerId, Explanation] = {}
    for host_name, result in for_each(asked, lambda name: _of_host(name, asked[name], prepared), prepared.fleet.forks):
        if isinstance(result, Exception):
            continue  # what cannot be read explains nothing; the host itself is reported elsewhere
        for slug, explanation in result.items():
            server_id = ServerId.from_slug(slug, host_name)
            found[server_id] = located(explanation, server_id, wanted[server_id])
    return found


def explanation_of_log(server: ServerId, prepared: Prepared) -> Explanation | None:
    """The cause that the whole latest start in a server's log shows, where it did not get ready or is dead since."""
    lines = latest_start_of(server, prepared.fleet)
    found = cause(lines) if gave_up(lines) else None
    wanted = next((each for each in prepared.inputs.desired.servers if each.id == server), None)
    return None if found is None else located(found, server, wanted)


def latest_start_of(server: ServerId, fleet: Fleet) -> list[str]:
    """The server's log since its latest start, oldest first; empty where it cannot be read."""
    lines: list[str] = []
    with suppress(AgentError, UnreachableError):
        read_log(server, Part(lines=LOG_LINES, latest=True), fleet, lines.append, timeout=LOG_TIMEOUT_S)
    return lines


def _of_host(host: str, servers: list[ObservedServer], prepared: Prepared) -> dict[str, Explanation]:
    found = {}
    for server in servers:
        lines = latest_start_of(ServerId.from_slug(server.slug, host), prepared.fleet)
        explanation = cause(lines, server.unit.exit_code if server.unit else None)
        if explanation is not None:
            found[server.slug] = explanation
    return found

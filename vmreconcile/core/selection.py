"""Which servers a command line names, and a fleet with their wanted state replaced. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vmreconcile.errors import UsageError
from vmreconcile.model.desired import DesiredFleet, DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.values import Origin, OriginKind


def on_hosts(desired: DesiredFleet, hosts: Iterable[str]) -> DesiredFleet:
    """What is wanted on these hosts: `--limit` narrows what is acted on."""
    selected = frozenset(hosts)
    return replace(desired, servers=tuple(server for server in desired.servers if server.id.host in selected))


def named_servers(names: Sequence[str], desired: DesiredFleet, *, wanted: DesiredState | None) -> frozenset[ServerId]:
    """The servers that `NAME`, `NAME@HOST` and `NAME/N@HOST` mean: NAME is every server of a model.

    With `wanted`, only servers in that wanted state may be named with their host; NAME leaves the others out.

    Raises:
        UsageError: a name means no server, or one in another wanted state.
    """
    found: set[ServerId] = set()
    for name in names:
        matching = [server for server in desired.servers if name in {server.id.model, str(server.id)}]
        if not matching:
            raise UsageError(f"no server is called {name!r}{similar(name, desired)}", remedy="vmreconcile status")
        right = [server for server in matching if wanted is None or server.state is wanted]
        if not right:
            state = matching[0].state.value
            raise UsageError(f"{name} is wanted {state}", remedy=f"vmreconcile start {name}, or change its state:")
        found |= {server.id for server in right}
    return frozenset(found)


def similar(name: str, desired: DesiredFleet) -> str:
    """What to say after a name that is wrong: the nearest right one, as a question, or nothing."""
    known = sorted({server.id.model for server in desired.servers} | {str(server.id) for server in desired.servers})
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def with_state(desired: DesiredFleet, servers: frozenset[ServerId], state: DesiredState) -> DesiredFleet:
    """The fleet with `state` wanted of `servers`."""
    origin = Origin(kind=OriginKind.TOOL, note="asked for on the command line")

    def changed(server: DesiredServer) -> DesiredServer:
        if server.id not in servers:
            return server
        return replace(server, state=state, origins={**server.origins, "state": origin})

    return replace(desired, servers=tuple(changed(server) for server in desired.servers))

"""The log of one server, wherever its runtime keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

from vmreconcile.core.selection import similar
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UsageError, VmreconcileError
from vmreconcile.flows.prepare import Prepared
from vmreconcile.model.names import ServerId
from vmreconcile.model.values import JsonValue

LOG_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Which part of a log: its last `lines`, only since the `latest` start, and what `follow`s."""

    lines: int
    latest: bool = False
    follow: bool = False


def read_log(server: ServerId, part: Part, fleet: Fleet, tell: Callable[[str], None], *, timeout: float) -> None:
    """Hand a part of a server's log to `tell`, line by line; `timeout` in seconds is the longest silence.

    Raises:
        AgentError: there is no such log, or it cannot be read.
        UnreachableError: the host cannot be reached.
    """

    def progress(answer: dict[str, JsonValue]) -> None:
        found = answer.get("lines")
        for line in found if isinstance(found, list) else ():
            tell(str(line))

    payload: dict[str, JsonValue] = {"do": "log", "slug": server.slug, **asdict(part)}
    fleet.request(server.host, payload, timeout=timeout, on_progress=progress)


def follow_log(server: ServerId, prepared: Prepared, *, lines: int, follow: bool, tell: Callable[[str], None]) -> None:
    """Hand the last `lines` lines, and with `follow` every further one, to `tell`.

    Raises:
        AgentError: there is no such log, or it cannot be read.
        UsageError: there is none, and no such server is wanted.
        UnreachableError: the host cannot be reached.
    """
    timeout = math.inf if follow else LOG_TIMEOUT_S
    try:
        read_log(server, Part(lines=lines, follow=follow), prepared.fleet, tell, timeout=timeout)
    except AgentError as error:
        raise _explained(error, server, prepared) from error


def _explained(error: AgentError, server: ServerId, prepared: Prepared) -> VmreconcileError:
    """The agent's refusal with the server's name, or 'did you mean' where nobody wants such a server."""
    desired = prepared.inputs.desired
    if error.kind == "no-log" and all(wanted.id != server for wanted in desired.servers):
        near = similar(str(server), desired)
        return UsageError(f"no server is called {str(server)!r}, and it left no log{near}", remedy="vmreconcile status")
    told = AgentError(error.kind, f"{server}: {error}", path=error.path)
    told.remedy = f"vmreconcile status tells whether it was ever started (vmreconcile show {server})"
    return told

"""The log of one server, wherever its runtime keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable

from vmreconcile.flows.prepare import Prepared
from vmreconcile.model.names import ServerId
from vmreconcile.model.values import JsonValue

LOG_TIMEOUT_S = 60.0


def follow_log(server: ServerId, prepared: Prepared, *, lines: int, follow: bool, tell: Callable[[str], None]) -> None:
    """Hand the last `lines` lines, and with `follow` every further one, to `tell`.

    Raises:
        AgentError: there is no such log, or it cannot be read.
        UnreachableError: the host cannot be reached.
    """

    def progress(answer: dict[str, JsonValue]) -> None:
        found = answer.get("lines")
        for line in found if isinstance(found, list) else ():
            tell(str(line))

    payload: dict[str, JsonValue] = {"do": "log", "slug": server.slug, "lines": lines, "follow": follow}
    timeout = math.inf if follow else LOG_TIMEOUT_S
    prepared.fleet.request(server.host, payload, timeout=timeout, on_progress=progress)

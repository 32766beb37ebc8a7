"""When a server counts as ready: the address to ask, and for how long. Pure."""

from __future__ import annotations

from vmreconcile.core.launching import launch_settings
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.plan import Gate
from vmreconcile.model.values import JsonValue


def gate_of(server: DesiredServer) -> Gate:
    """When this server counts as ready."""
    return Gate(
        address=probe_address(launch_settings(server).get("host")),
        port=server.port,
        timeout=server.health.startup_timeout,
        completion=server.health.completion,
    )


def probe_address(host: JsonValue) -> str:
    """Where to ask a server that listens on `--host`: every address and none are reached over loopback."""
    return "127.0.0.1" if host in {None, "", "0.0.0.0", "::", "localhost"} else str(host)  # noqa: S104 - compared, not bound

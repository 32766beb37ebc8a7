"""Every runtime there is, by name. A new one is one file, its test, and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from vmreconcile.model.observed import HostView
from vmreconcile.runtimes.base import Runtime
from vmreconcile.runtimes.process import ProcessRuntime
from vmreconcile.runtimes.systemd import SystemdRuntime

RUNTIMES: Mapping[str, Runtime] = {runtime.name: runtime for runtime in (SystemdRuntime(), ProcessRuntime())}


def choose(wanted: str, host: HostView) -> Runtime:
    """The wanted runtime; '' takes systemd where it can be used, else process."""
    if wanted:
        return RUNTIMES[wanted]
    systemd = RUNTIMES["systemd"]
    return RUNTIMES["process"] if systemd.problem(host) else systemd

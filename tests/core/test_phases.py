"""In which phase an observed server is."""

from __future__ import annotations

import pytest

from vmreconcile.core.phases import phase_of, runtime_of
from vmreconcile.model.observed import Endpoint, ObservedServer, Phase, Process, Record, Unit, Worker

WORKER = Worker(pid=900, start_ticks=8300)
RAN = Record(runtime="process", state="running")
NOW = 1000.0


def unit(active: str, sub: str = "", result: str = "success") -> Unit:
    """A unit in systemd's words."""
    return Unit(name="vmreconcile-m.service", active=active, sub=sub, result=result)


@pytest.mark.parametrize(
    ("health", "age", "phase"),
    [
        (200, 1.0, Phase.READY),
        (200, 1e6, Phase.READY),
        (503, 1.0, Phase.UNHEALTHY),
        (None, 1.0, Phase.STARTING),
        (None, 59.9, Phase.STARTING),
        (None, 60.0, Phase.UNHEALTHY),
        (None, -5.0, Phase.STARTING),
    ],
)
def test_a_process_is_as_its_endpoint_says(health: int | None, age: float, phase: Phase) -> None:
    """No answer counts as starting until the startup_timeout is over, by the host's clock."""
    process = Process(pid=1, start_ticks=1, started_at=NOW - age, argv=())
    for endpoint in (Endpoint(health=health), None):
        server = ObservedServer(slug="m", process=process, endpoint=endpoint)
        assert phase_of(server, NOW, 60.0) is (phase if endpoint or health is None else phase_of(server, NOW, 60.0))


@pytest.mark.parametrize(
    ("parts", "phase"),
    [
        ({}, Phase.ABSENT),
        ({"orphans": (WORKER,)}, Phase.CRASHED),
        ({"unit": unit("inactive", "dead")}, Phase.STOPPED),
        ({"unit": unit("failed", "failed", "exit-code")}, Phase.CRASHED),
        ({"unit": unit("inactive", "dead", "oom-kill")}, Phase.CRASHED),
        ({"unit": unit("activating", "auto-restart", "exit-code")}, Phase.CRASHED),
        ({"unit": unit("activating", "start")}, Phase.STARTING),
        ({"unit": unit("deactivating", "stop-sigterm")}, Phase.STOPPED),
        ({"unit": unit("inactive"), "orphans": (WORKER,)}, Phase.CRASHED),
        ({"record": RAN}, Phase.CRASHED),
        ({"record": Record(runtime="process", state="stopped")}, Phase.STOPPED),
        ({"record": Record(runtime="systemd", state="running")}, Phase.STOPPED),
        ({"record": Record()}, Phase.ABSENT),
        ({"runtime": "process", "record": RAN, "orphans": (WORKER,)}, Phase.CRASHED),
        ({"runtime": "made-up"}, Phase.ABSENT),
    ],
)
def test_without_a_process_the_runtime_tells(parts: dict[str, object], phase: Phase) -> None:
    """Crashed, stopped, starting or absent, by what the runtime left."""
    assert phase_of(ObservedServer(slug="m", **parts), NOW, 60.0) is phase  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({}, None),
        ({"runtime": "process", "unit": unit("active")}, "process"),
        ({"record": RAN, "unit": unit("active")}, "process"),
        ({"unit": unit("active")}, "systemd"),
        ({"runtime": "made-up"}, None),
    ],
)
def test_the_runtime_is_what_the_host_says(parts: dict[str, object], name: str | None) -> None:
    """What the agent says, else the record, else that there is a unit."""
    runtime = runtime_of(ObservedServer(slug="m", **parts))  # type: ignore[arg-type]
    assert (runtime.name if runtime else None) == name

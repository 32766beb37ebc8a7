"""Documents for scripts: what they are made of. Their keys: tests/contract/test_json.py."""

from __future__ import annotations

from dataclasses import replace

from tests.lab.worlds import World, only, wanted, world
from vmreconcile.core.reports import gpu_memory_of, gpus_of, plan_json, status_json
from vmreconcile.model.gpus import Gpu
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, HostView, ObservedServer, Worker
from vmreconcile.model.plan import Plan

GIB = 1024**3


def gpu(index: int, *processes: tuple[int, int | None]) -> Gpu:
    """One GPU with these processes on it."""
    return Gpu(
        index=index, uuid="", name="", memory_total=80 * GIB, memory_used=0, memory_free=0, processes=processes
    )  # fmt: skip


def on_gpus(there: World, *gpus: Gpu) -> HostView:
    """The only host, with GPUs."""
    return replace(there.observe().hosts[0], gpus=gpus)


def test_gpus_are_those_that_a_server_holds_memory_on() -> None:
    """Root, workers and orphans; a stranger's memory is not counted."""
    there = world(wanted()).settle()
    observed = there.observe().hosts[0].server("m")
    assert observed.process is not None
    root, worker = observed.process.pid, observed.process.children[0].pid
    host = on_gpus(there, gpu(0, (root, GIB), (worker, 2 * GIB)), gpu(1, (4711, 5 * GIB)), gpu(3, (worker, None)))
    assert gpus_of(observed, host) == (0, 3)
    assert gpu_memory_of(observed, host) == 3 * GIB
    orphaned = ObservedServer(slug="m", orphans=(Worker(pid=4711, start_ticks=1),))
    assert (gpus_of(orphaned, host), gpu_memory_of(orphaned, host)) == ((1,), 5 * GIB)


def test_memory_is_unknown_without_gpus() -> None:
    """Null, not zero."""
    there = world(wanted()).settle()
    host = on_gpus(there)
    assert gpu_memory_of(host.server("m"), host) is None
    with_gpu = on_gpus(there, gpu(0))
    assert gpu_memory_of(with_gpu.server("m"), with_gpu) == 0


def test_a_status_row_of_what_does_not_run_names_the_wanted_port() -> None:
    """Nothing answers, but it is known where it will."""
    there = world(wanted(port=8123))
    (row,) = status_json(there.observe(), there.plan())["servers"]  # type: ignore[misc]
    assert isinstance(row, dict)
    assert (row["port"], row["pid"], row["phase"]) == (8123, None, "absent")


def test_an_unreachable_server_is_unknown() -> None:
    """In status and in plan, after those that were seen."""
    plan = Plan(unreachable_servers=(ServerId(host="h9", model="m", replica=1),))
    assert status_json(FleetView(), plan)["servers"] == [
        {
            **dict.fromkeys(("pid", "port", "gpu_memory_bytes", "started_at", "vllm_version", "runtime", "memory")),
            "server": "m/1@h9",
            "host": "h9",
            "model": "m",
            "phase": "unknown",
            "gpus": [],
            "drift": [],
        }
    ]
    assert plan_json(plan)["servers"] == [{"server": "m/1@h9", "host": "h9", "action": "noop", "phase": "unknown"}]


def test_notes_are_diagnostics_and_the_change_has_its_reason() -> None:
    """A block is an error, any other note a warning."""
    there = world(wanted()).settle().want()
    document = plan_json(there.plan())
    rows = document["diagnostics"]
    assert isinstance(rows, list)
    assert [(row["severity"], row["code"], row["remedy"]) for row in rows if isinstance(row, dict)] == [
        ("warning", "unclaimed", only(there.plan()).remedy)
    ]
    assert document["changes"] == []

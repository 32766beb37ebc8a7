"""Memory is seen free before a server is started: waited for, told where it is held, never taken from anybody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Refusal
from tests.lab.worlds import World, wanted, world
from vmreconcile.flows import room
from vmreconcile.flows.execute import execute
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.outcome import Failure, Outcome
from vmreconcile.model.plan import Plan
from vmreconcile.simulator.devices import requested

GIB = 1 << 30
SHARE = 0.6
BOTH = pytest.mark.parametrize("runtime", ["systemd", "process"])


def on_gpu(name: str = "m", port: int = 8000, share: float = SHARE, **fields: object) -> DesiredServer:
    """A server on the first GPU with a share of it."""
    args = {"gpu_memory_utilization": share}
    return wanted(f"{name}@h1", port=port, args=args, env={"CUDA_VISIBLE_DEVICES": "0"}, **fields)


def placed(there: World, plan: Plan | None = None, **options: object) -> Plan:
    """A plan with what each server needs of the first GPU."""
    gpu = there.hosts["h1"].gpu(0)
    shares = {server.id: server.settings["gpu_memory_utilization"].value for server in there.desired.servers}

    def decided(share: object) -> Placed:
        assert isinstance(share, float)
        return Placed(devices=(gpu.uuid,), requested=requested(gpu.cuda, share))

    plan = plan or there.plan(**options)
    changes = (
        replace(each, placed=decided(shares[each.server]) if each.server in shares else None) for each in plan.changes
    )
    return replace(plan, changes=tuple(changes))


def runs(**fields: object) -> World:
    """One server that runs on the one GPU of its host."""
    there = world(on_gpu(**fields), gpus=1)
    assert statuses(apply(there, placed(there))) == {"m@h1": "changed"}
    return there


def failure(outcome: Outcome) -> Failure:
    """Why the one server failed."""
    (found,) = [result.failure for result in outcome.results if result.status == "failed"]
    assert found is not None
    return found


def at(host: FakeHost, when: Callable[[dict[str, Any]], bool], act: Callable[[], object]) -> None:
    """Do something right after the first request that `when` is about."""
    request, due = host.request, [True]

    def watched(payload: dict[str, Any], **options: Any) -> object:  # noqa: ANN401 - passed on
        answer = request(payload, **options)
        if due and when(payload):
            due.clear()
            act()
        return answer

    host.request = watched  # type: ignore[method-assign,assignment]


def is_stop(payload: dict[str, Any]) -> bool:
    """Whether a request takes the server down."""
    return payload["do"] == "steps" and any(step["step"] in {"stop-unit", "stop-process"} for step in payload["steps"])


def is_gpu_look(payload: dict[str, Any]) -> bool:
    """Whether a request looks at GPUs alone."""
    return payload["do"] == "observe" and payload["servers"] == [] and payload["gpus"] is True


@BOTH
def test_memory_that_is_freed_late_is_waited_for(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver takes its time after a stop; without the wait the new process finds too little."""
    monkeypatch.setattr(room, "LONGEST_WAIT_S", 20.0)
    there = runs(runtime=runtime)
    there.hosts["h1"].gpus_freed_after = 12.0
    there.want(on_gpu(share=0.7, runtime=runtime))
    witness = Witness()
    outcome = execute(placed(there), run_of(there, witness))
    assert statuses(outcome) == {"m@h1": "changed"}
    waited = [line for _, line in witness.waited if "are needed" in line]
    assert len(waited) > 5
    assert waited[0].startswith("GPU 0: 31.2 of 79.6 GiB are free, ")
    assert not there.plan().pending


def test_without_the_wait_it_would_fail() -> None:
    """What the wait is for: the same world, nothing known of its GPUs."""
    there = runs()
    there.hosts["h1"].gpus_freed_after = 12.0
    there.want(on_gpu(share=0.7))
    assert failure(apply(there)).kind == "gpu_already_used"


def test_memory_held_for_ever_fails_with_the_numbers() -> None:
    """A stranger's: nothing is written or started for it, the stranger is named and goes on."""
    there = world(on_gpu(), gpus=1)
    host = there.hosts["h1"]
    stranger = host.stranger(9000)
    host.hold(0, stranger.pid, 41.2)
    found = failure(execute(placed(there), run_of(there)))
    assert found.kind == "gpu_memory_held"
    assert found.summary == (
        "m@h1 was not started: GPU 0: 38.0 of 79.6 GiB are free, 48.0 are needed; "
        f"held: 41.2 GiB by pid {stranger.pid} "
        "(not ours: /home/alice/venv/bin/python /home/alice/venv/bin/vllm serve)"
    )
    assert "other gpus or a smaller gpu_memory_utilization" in found.remedy
    assert host.done == []
    assert stranger.pid in host.kernel.processes
    host.release(stranger.pid)
    assert statuses(apply(there, placed(there))) == {"m@h1": "changed"}


@BOTH
def test_what_was_stopped_for_it_is_told(runtime: str) -> None:
    """Somebody takes the memory the moment it is given back: the server is down, and the report says so."""
    there = runs(runtime=runtime)
    host = there.hosts["h1"]
    at(host, is_stop, lambda: host.hold(0, 4711, 60.0))
    there.want(on_gpu(share=0.7, runtime=runtime))
    found = failure(execute(placed(there), run_of(there)))
    assert "60.0 GiB by pid 4711 (not ours)" in found.summary
    assert found.summary.endswith("; what ran before was stopped for this, and stays stopped")
    assert not there.pids()
    assert statuses(apply(there, placed(there))) == {"m@h1": "failed"}
    host.release(4711)
    assert statuses(apply(there, placed(there))) == {"m@h1": "changed"}


def test_a_server_of_ours_that_holds_it_is_named() -> None:
    """By its name; it is not touched."""
    there = runs()
    pids = there.pids()
    there.want(on_gpu(), on_gpu("n", port=8001))
    found = failure(execute(placed(there), run_of(there)))
    assert "(our server m@h1)" in found.summary
    assert there.pids() == pids


def test_orphans_of_ours_are_named_with_what_ends_them() -> None:
    """Workers whose root was killed hold their memory for good."""
    there = runs(runtime="process")
    host = there.hosts["h1"]
    host.kill_root("m")
    there.want(on_gpu("n", port=8001))
    found = failure(execute(placed(there), run_of(there)))
    assert "an orphaned worker of our server m@h1" in found.summary
    assert found.remedy.startswith("vm cleanup -l h1 ends the orphaned workers")


def test_its_own_orphans_are_ended_first() -> None:
    """Their memory comes free by the stops of this very change."""
    there = runs(runtime="process")
    there.hosts["h1"].kill_root("m")
    assert statuses(execute(placed(there), run_of(there))) == {"m@h1": "changed"}


def test_a_gpu_that_fell_off_the_bus() -> None:
    """Not seen any more: told at once, with what is there."""
    there = world(on_gpu(), gpus=2)
    plan = placed(there)
    kernel = there.hosts["h1"].kernel
    gone = kernel.gpus.devices.pop(0)
    found = failure(execute(plan, run_of(there)))
    assert found.kind == "gpu_missing"
    assert gone.uuid in found.summary
    assert not there.pids()


def test_gpus_that_cannot_be_read_any_more_stop_nobody() -> None:
    """The server is started without the wait, and the person is told why."""
    there = world(on_gpu(), gpus=1)
    plan = placed(there)
    there.hosts["h1"].gpus["problem"] = "NVML: Driver/library version mismatch"
    witness = Witness()
    assert statuses(execute(plan, run_of(there, witness))) == {"m@h1": "changed"}
    said = [line for _, line in witness.waited if "cannot be read now" in line]
    assert said == [
        "its GPUs cannot be read now (NVML: Driver/library version mismatch): started without waiting for free memory"
    ]


def test_an_agent_that_cannot_look_stops_nobody() -> None:
    """The same where the look itself fails."""
    there = world(on_gpu(), gpus=1)
    plan = placed(there)
    host = there.hosts["h1"]
    answer = host._answer

    def failing(request: dict[str, Any], progress: Any) -> Any:  # noqa: ANN401 - passed on
        if is_gpu_look(request):
            raise Refusal("agent-bug", "TypeError at gpus.py:7")
        return answer(request, progress)

    host._answer = failing  # type: ignore[method-assign]
    witness = Witness()
    assert statuses(execute(plan, run_of(there, witness))) == {"m@h1": "changed"}
    assert any("TypeError at gpus.py:7" in line for _, line in witness.waited)


def test_what_vllm_may_find_enough_is_left_to_vllm() -> None:
    """Only what CUDA is estimated to take is missing: said, waited for, and tried."""
    there = world(on_gpu(), gpus=1)
    host = there.hosts["h1"]
    gpu = host.gpu(0)
    host.hold(0, 4711, (gpu.cuda - requested(gpu.cuda, SHARE)) / GIB - 0.3)
    witness = Witness()
    execute(placed(there), run_of(there, witness))
    assert any("started all the same" in line for _, line in witness.waited)
    assert any(step["step"] == "systemctl" and step["verb"] == "start" for step in host.done)


def test_memory_freed_at_the_last_moment_counts() -> None:
    """The last look, which is for names, decides."""
    there = world(on_gpu(), gpus=1)
    host = there.hosts["h1"]
    host.hold(0, 4711, 60.0)
    plan, request = placed(there), host.request

    def freeing(payload: dict[str, Any], **options: Any) -> object:  # noqa: ANN401 - passed on
        if payload["do"] == "observe" and payload["servers"] is None:
            host.release(4711)
        return request(payload, **options)

    host.request = freeing  # type: ignore[method-assign,assignment]
    assert statuses(execute(plan, run_of(there))) == {"m@h1": "changed"}


# --- Ctrl-C, other runs ----------------------------------------------------------------------------------------------


def test_ctrl_c_ends_a_wait_before_anything_was_begun() -> None:
    """Skipped, nothing done."""
    there = world(on_gpu(), gpus=1)
    there.hosts["h1"].hold(0, 4711, 60.0)
    witness = Witness()
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    assert statuses(execute(placed(there), run)) == {"m@h1": "skipped"}
    assert there.hosts["h1"].done == []


def test_ctrl_c_leaves_no_server_down_that_was_stopped_to_be_started_again() -> None:
    """What its stop began, its start ends."""
    there = runs()
    there.hosts["h1"].gpus_freed_after = 12.0
    there.want(on_gpu(share=0.7))
    witness = Witness()
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    execute(placed(there), run)
    assert there.pids()
    assert not there.plan().pending


def test_another_run_that_starts_it_meanwhile_is_noticed() -> None:
    """Between stop and start it comes up as wanted: nothing more is done, and that counts as ok."""
    there = runs(runtime="process")
    host = there.hosts["h1"]
    there.want(on_gpu(share=0.7, runtime="process"))
    plan = placed(there)
    at(host, is_gpu_look, there.settle)
    assert statuses(execute(plan, run_of(there))) == {"m@h1": "ok"}
    assert not there.plan().pending


def test_what_starts_nothing_waits_for_nothing() -> None:
    """A file that is mended, a server in sync, a stop: no look at the GPUs alone."""
    there = runs()
    host = there.hosts["h1"]
    host.hold(0, 4711, 30.0)
    host.requests.clear()
    host.kernel.files["/etc/vmreconcile/env/m.env"].mode = 0o644
    assert statuses(execute(placed(there), run_of(there))) == {"m@h1": "changed"}
    assert statuses(execute(placed(there), run_of(there))) == {"m@h1": "ok"}
    there.want()
    assert statuses(execute(placed(there, prune=True), run_of(there))) == {"m@h1": "changed"}
    assert not [request for request in host.requests if is_gpu_look(request)]

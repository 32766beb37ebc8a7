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
from vmreconcile.model.outcome import Failure, Outcome
from vmreconcile.simulator.devices import requested

GIB = 1 << 30
SHARE = 0.6
BOTH = pytest.mark.parametrize("runtime", ["systemd", "process"])
IMPATIENT = pytest.mark.usefixtures("impatient")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for memory for a moment only."""
    monkeypatch.setattr(room, "LONGEST_WAIT_S", 0.05)


def on_gpu(name: str = "m", port: int = 8000, share: float = SHARE, **fields: object) -> DesiredServer:
    """A server with a share of a GPU."""
    return wanted(f"{name}@h1", port=port, args={"gpu_memory_utilization": share}, **fields)


def runs(**fields: object) -> World:
    """One server that runs on the one GPU of its host."""
    there = world(on_gpu(**fields), gpus=1)
    assert statuses(apply(there)) == {"m@h1": "changed"}
    return there


def runs_beside(there: World, *, killed: bool = False) -> None:
    """Another run starts a server `o` on the first GPU, whose root is killed then or not."""
    wanted_here = there.desired
    there.want(on_gpu("o", port=8009, runtime="process")).settle().desired = wanted_here
    if killed:
        there.hosts["h1"].kill_root("o")


def failure(outcome: Outcome) -> Failure:
    """Why the one server failed."""
    (found,) = [result.failure for result in outcome.results if result.status in {"failed", "rolled_back"}]
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
def test_memory_that_is_freed_late_is_waited_for(runtime: str) -> None:
    """The driver takes its time after a stop; without the wait the new process finds too little."""
    there = runs(runtime=runtime)
    there.hosts["h1"].gpus_freed_after = 12.0
    there.want(on_gpu(share=0.7, runtime=runtime))
    witness = Witness()
    outcome = execute(there.plan(), run_of(there, witness))
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
    plan = there.plan()
    blind = replace(plan, changes=tuple(replace(change, placed=None) for change in plan.changes))
    assert failure(apply(there, blind)).kind == "gpu_already_used"


@IMPATIENT
def test_memory_held_for_ever_fails_with_the_numbers() -> None:
    """A stranger's: nothing is written or started for it, the stranger is named and goes on."""
    there = world(on_gpu(), gpus=1)
    host = there.hosts["h1"]
    plan, stranger = there.plan(), host.stranger(9000)
    stranger.argv = ("vllm", "serve", "/models/m")
    host.hold(0, stranger.pid, 41.2)
    found = failure(apply(there, plan))
    assert found.kind == "gpu_memory_held"
    assert found.summary == (
        "m@h1 was not started: GPU 0: 38.0 of 79.6 GiB are free, 48.0 are needed; "
        f"held: 41.2 GiB by pid {stranger.pid} (not ours: vllm serve /models/m)"
    )
    assert "other gpus or a smaller gpu_memory_utilization" in found.remedy
    assert host.done == []
    assert stranger.pid in host.kernel.processes
    host.release(stranger.pid)
    assert statuses(apply(there)) == {"m@h1": "changed"}


@BOTH
@IMPATIENT
def test_what_was_stopped_for_it_is_told(runtime: str) -> None:
    """Somebody takes the memory the moment it is given back: the server is down, and the report says so."""
    there = runs(runtime=runtime)
    host = there.hosts["h1"]
    at(host, is_stop, lambda: host.hold(0, 4711, 60.0))
    there.want(on_gpu(share=0.7, runtime=runtime))
    found = failure(apply(there))
    assert "60.0 GiB by pid 4711 (not ours: python train.py)" in found.summary
    assert "; what ran before was stopped for this; " in found.summary
    assert "going back to revision 1 failed too, and it is left stopped" in found.summary
    assert not there.pids()
    assert statuses(apply(there)) == {"m@h1": "skipped"}
    host.release(4711)
    assert statuses(apply(there)) == {"m@h1": "changed"}


@IMPATIENT
def test_a_server_of_ours_that_holds_it_is_named() -> None:
    """By its name; it is not touched."""
    there = world(on_gpu(), gpus=1)
    plan = there.plan()
    runs_beside(there)
    pids = there.pids()
    found = failure(apply(there, plan))
    assert "(our server o)" in found.summary
    assert there.pids() == pids


@IMPATIENT
def test_orphans_of_ours_are_named_with_what_ends_them() -> None:
    """Workers whose root was killed hold their memory for good."""
    there = world(on_gpu(), gpus=1)
    plan = there.plan()
    runs_beside(there, killed=True)
    found = failure(apply(there, plan))
    assert "(our server o)" in found.summary
    assert "is an orphaned worker of ours: vm cleanup -l h1 ends such" in found.remedy


def test_its_own_orphans_are_ended_first() -> None:
    """Their memory comes free by the stops of this very change."""
    there = runs(runtime="process")
    there.hosts["h1"].kill_root("m")
    assert statuses(apply(there)) == {"m@h1": "changed"}


def test_a_gpu_that_fell_off_the_bus() -> None:
    """Not seen any more: told at once, with what is there."""
    there = world(on_gpu(), gpus=2)
    plan = there.plan()
    kernel = there.hosts["h1"].kernel
    gone = kernel.gpus.devices.pop(0)
    found = failure(execute(plan, run_of(there)))
    assert found.kind == "gpu_missing"
    assert gone.uuid in found.summary
    assert not there.pids()


def test_gpus_that_cannot_be_read_any_more_stop_nobody() -> None:
    """The server is started without the wait, and the person is told why."""
    there = world(on_gpu(), gpus=1)
    plan = there.plan()
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
    plan = there.plan()
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


@IMPATIENT
def test_what_vllm_may_find_enough_is_left_to_vllm() -> None:
    """Only what CUDA is estimated to take is missing: said, waited for, and tried."""
    there = world(on_gpu(), gpus=1)
    host, plan = there.hosts["h1"], there.plan()
    gpu = host.gpu(0)
    host.hold(0, 4711, (gpu.cuda - requested(gpu.cuda, SHARE)) / GIB - 0.3)
    witness = Witness()
    execute(plan, run_of(there, witness))
    assert any("started all the same" in line for _, line in witness.waited)
    assert any(step["step"] == "systemctl" and step["verb"] == "start" for step in host.done)


@IMPATIENT
def test_memory_freed_at_the_last_moment_counts() -> None:
    """The last look, which is for names, decides."""
    there = world(on_gpu(), gpus=1)
    host, plan = there.hosts["h1"], there.plan()
    host.hold(0, 4711, 60.0)
    request = host.request

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
    plan = there.plan()
    there.hosts["h1"].hold(0, 4711, 60.0)
    witness = Witness()
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    assert statuses(execute(plan, run)) == {"m@h1": "skipped"}
    assert there.hosts["h1"].done == []


def test_ctrl_c_leaves_no_server_down_that_was_stopped_to_be_started_again() -> None:
    """What its stop began, its start ends."""
    there = runs()
    there.hosts["h1"].gpus_freed_after = 12.0
    there.want(on_gpu(share=0.7))
    witness = Witness()
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    execute(there.plan(), run)
    assert there.pids()
    assert not there.plan().pending


def test_another_run_that_starts_it_meanwhile_is_noticed() -> None:
    """Between stop and start it comes up as wanted: nothing more is done, and that counts as ok."""
    there = runs(runtime="process")
    host = there.hosts["h1"]
    there.want(on_gpu(share=0.7, runtime="process"))
    plan = there.plan()
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
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert statuses(apply(there)) == {"m@h1": "ok"}
    there.want()
    assert statuses(execute(there.plan(prune=True), run_of(there))) == {"m@h1": "changed"}
    assert not [request for request in host.requests if is_gpu_look(request)]

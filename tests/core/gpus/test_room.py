"""Whether there is room on a server's GPUs, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace

from vmreconcile.core.gpus.room import held_by, missing, short_of, unreadable
from vmreconcile.model.gpus import Gpu, Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer, Orphan, Process, Stranger, Worker

GIB = 1 << 30
M = ServerId.parse("m@h1")


def gpu(index: int, free: float, *processes: tuple[int, float | None], **fields: object) -> Gpu:
    """A GPU of 80 GiB with so many free; processes with their GiB."""
    rows = tuple((pid, None if size is None else round(size * GIB)) for pid, size in processes)
    seen = Gpu(
        index=index,
        uuid=f"GPU-{index}",
        name="H100",
        memory_total=80 * GIB,
        memory_used=round((80 - free) * GIB),
        memory_free=round(free * GIB),
        processes=rows,
    )
    return replace(seen, **fields)  # type: ignore[arg-type]  # fields of Gpu


def host(*gpus: Gpu, **fields: object) -> HostView:
    """A host with these GPUs."""
    seen = HostView(
        host="h1", now=0.0, boot_id="b", uid=0, user="root", config_dir="/etc/v", state_dir="/var/v", gpus=gpus
    )
    return replace(seen, **fields)  # type: ignore[arg-type]  # fields of HostView


def placed(gib: float, *devices: str) -> Placed:
    """What needs so many GiB on each of these."""
    return Placed(devices=devices or ("GPU-0",), requested=(round(gib * GIB),) * len(devices or ("GPU-0",)))


def told(need: Placed, seen: HostView, stopped: str = "") -> tuple[str, str]:
    """Summary and remedy of the failure."""
    failure = held_by(M, short_of(need, seen), seen, stopped)
    assert failure.kind == "gpu_memory_held"
    return failure.summary, failure.remedy


def test_what_must_be_free() -> None:
    """What vLLM asks for, and what CUDA takes before vLLM looks; on every GPU of the server and on no other."""
    assert short_of(placed(40), host(gpu(0, 40.5))) == ()
    (short,) = short_of(placed(40), host(gpu(0, 40.4)))
    assert not short.surely
    (short,) = short_of(placed(40), host(gpu(0, 39.9)))
    assert short.surely
    assert str(short) == "GPU 0: 39.9 of 80.0 GiB are free, 40.5 are needed"
    found = short_of(placed(40, "GPU-1", "GPU-2"), host(gpu(0, 0), gpu(1, 50), gpu(2, 1)))
    assert [each.gpu.index for each in found] == [2]


def test_who_holds_it_is_named() -> None:
    """Strangers with what they are, servers of ours by name, each with its pid and GiB."""
    process = Process(pid=7, start_ticks=1, started_at=0.0, argv=(), children=(Worker(pid=8, start_ticks=1),))
    seen = host(
        gpu(0, 12.3, (4711, 41.2), (8, 26.0)),
        servers=(ObservedServer(slug="big_1", process=process),),
        strangers=(Stranger(host="h1", pid=4711, port=None, what="python train.py"),),
    )
    summary, remedy = told(placed(40), seen)
    assert summary == (
        "m@h1 was not started: GPU 0: 12.3 of 80.0 GiB are free, 40.5 are needed; "
        "held: 41.2 GiB by pid 4711 (not ours: python train.py), 26.0 GiB by pid 8 (our server big_1)"
    )
    assert "other gpus" in remedy
    assert "cleanup" not in remedy


def test_orphans_of_ours_are_ended_by_a_command() -> None:
    """The remedy is the one that frees just them; those of others are not ours to end."""
    worker = Worker(pid=9, start_ticks=1, title="VLLM::EngineCore")
    ours = Orphan(host="h1", pid=9, title="VLLM::EngineCore", server="old")
    seen = host(gpu(0, 6, (9, 73.6)), servers=(ObservedServer(slug="old", orphans=(worker,)),), orphans=(ours,))
    summary, remedy = told(placed(40), seen)
    assert "73.6 GiB by pid 9 (our server old)" in summary
    assert remedy.startswith("pid 9 is an orphaned worker of ours: vm cleanup -l h1 ends such")
    foreign = host(gpu(0, 6, (9, 73.6)), orphans=(replace(ours, server=""),))
    summary, remedy = told(placed(40), foreign)
    assert "73.6 GiB by pid 9 (an orphaned VLLM::EngineCore)" in summary
    assert "cleanup" not in remedy


def test_memory_of_nobody_who_can_be_seen() -> None:
    """Containers hide their processes; a driver that does not tell sizes leaves nothing to work out."""
    assert "GiB by processes that cannot be seen from here" in told(placed(40), host(gpu(0, 10)))[0]
    seen = host(gpu(0, 10, (5, None)))
    assert told(placed(40), seen)[0].endswith("held: an unknown part by pid 5")
    seen = host(gpu(0, 10, memory_used=0))
    assert told(placed(40), seen)[0].endswith("nobody who can be seen holds it")


def test_what_was_stopped_is_told() -> None:
    """At the end of the summary."""
    assert told(placed(40), host(gpu(0, 10, (5, 70.0))), "; it was stopped")[0].endswith("; it was stopped")


def test_a_gpu_that_is_gone() -> None:
    """Named by its UUID, beside those that are there."""
    failure = missing(M, placed(1, "GPU-0", "GPU-7"), host(gpu(0, 80)), "")
    assert failure is not None
    assert failure.kind == "gpu_missing"
    assert failure.summary == "m@h1 was not started: GPU-7 is not seen on h1 any more"
    assert failure.evidence == "GPU 0 is GPU-0"
    assert missing(M, placed(1), host(gpu(0, 80)), "") is None


def test_when_nothing_can_be_said() -> None:
    """No GPU at all, with the driver's reason; or no numbers."""
    assert unreadable(placed(40), host(gpu_problem="NVML: Driver/library version mismatch")).startswith("NVML")
    assert unreadable(placed(40), host()) == "no GPU is seen"
    assert unreadable(placed(40), host(gpu(0, 0, memory_total=0))) == "their memory is not told"
    assert unreadable(placed(40), host(gpu(0, 0))) == ""


def test_a_gpu_that_tells_nothing_blinds_nobody_to_the_others() -> None:
    """The whole of a split GPU tells its memory to root only."""
    seen = host(gpu(0, 0, memory_total=0, split=True), gpu(1, 30))
    assert unreadable(placed(40, "GPU-1"), seen) == ""
    (short,) = short_of(placed(40, "GPU-1"), seen)
    assert short.gpu.index == 1

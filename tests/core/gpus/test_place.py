"""Who gets which GPUs of a host: stable, explained, and never what cannot work."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.gpu_views import card, indices, machine, model, numbers, placing, seen, stopped, uuids
from vmreconcile.core.gpus.place import Placing
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Gpu, Needs
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Orphan, Stranger
from vmreconcile.model.plan import Block, Reason
from vmreconcile.vllm.memory.sizes import GIB

ID = ServerId.parse("a@h1")


def block(found: Placing, server: str = "a@h1") -> Block:
    """Why a server must not start."""
    return found.blocks[ServerId.parse(server)]


def group(name: str, ways: int, **fields: object) -> DesiredServer:
    """A model over several GPUs."""
    return model(name, args={"tensor_parallel_size": ways}, **fields)


def test_each_gets_a_gpu_of_its_own() -> None:
    """As long as there are enough; nothing is asked about models, and vLLM's default stands."""
    found = placing([model("a"), model("b"), model("c")], machine(8), files=False)
    assert indices(found) == {"a": [0], "b": [1], "c": [2]}
    assert set(numbers(found).values()) == {None}
    assert not found.asks
    assert not found.blocks


def test_the_same_fleet_gives_the_same_plan_in_any_order() -> None:
    """The order of the files says nothing; importance and size do."""
    servers = [model("z", priority=1), group("big", 4), model("a"), group("pair", 2)]
    found = placing(servers, machine(8))
    assert indices(found) == {"z": [0], "big": [4, 5, 6, 7], "pair": [2, 3], "a": [1]}
    assert placing(servers[::-1], machine(8)) == found


def test_devices_are_named_by_uuid() -> None:
    """From vLLM 0.24.0 on; before, each word is taken for a number."""
    (placed,) = placing([group("a", 2)], machine(8)).placed.values()
    assert placed.devices == placed.visible == uuids(0, 1)
    (placed,) = placing([group("a", 2)], machine(8, version="0.23.0")).placed.values()
    assert (placed.devices, placed.visible) == (uuids(0, 1), ("0", "1"))


def test_needs_are_tensor_times_pipeline_times_data_parallel() -> None:
    """Each of the engines of data parallel has GPUs of its own."""
    args = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "data_parallel_size": 2}
    assert indices(placing([model("a", args=args)], machine(8))) == {"a": [0, 1, 2, 3, 4, 5, 6, 7]}


def test_a_server_keeps_its_gpus() -> None:
    """Also when a lower one is free, and when another one is wanted that sorts before it."""
    there = machine(8, seen("b", 10, visible=uuids(5)[0]))
    assert indices(placing([model("b"), model("a")], there)) == {"b": [5], "a": [0]}


def test_a_stopped_server_comes_back_to_its_gpu() -> None:
    """Its env file remembers; unless somebody else is there now."""
    before = stopped(seen("b", 10, visible=uuids(5)[0]))
    assert indices(placing([model("a"), model("b")], machine(8, before))) == {"a": [0], "b": [5]}
    taken = machine(8, before, seen("c", 11, visible=uuids(5)[0]))
    found = placing([model("b"), model("c", args={"gpu_memory_utilization": 0.9})], taken)
    assert indices(found) == {"b": [0], "c": [5]}
    assert "moved from GPU 5: there is no room for it any more" in found.placed[ServerId.parse("b@h1")].reasons[0]


def test_one_that_was_told_nothing_stays_where_the_driver_sees_it() -> None:
    """Servers that were started without CUDA_VISIBLE_DEVICES are not restarted for it."""
    gpus = [card(0, held={77: 70.0}), card(1), card(2, held={10: 70.0}), card(3)]
    found = placing([model("a"), model("b")], machine(gpus, seen("a", 10)))
    assert indices(found) == {"a": [2], "b": [1]}


def test_what_the_driver_says_counts_more_than_an_index() -> None:
    """CUDA may count GPUs in another order than the driver."""
    gpus = [card(0), card(1, held={10: 70.0})]
    assert indices(placing([model("a")], machine(gpus, seen("a", 10, visible="0")))) == {"a": [1]}


def test_it_moves_when_it_must_and_says_why() -> None:
    """Its GPU was split meanwhile; more GPUs are needed than before."""
    gpus = [replace(card(0), split=True), card(1)]
    found = placing([model("a")], machine(gpus, seen("a", 10, visible=uuids(0)[0])))
    assert indices(found) == {"a": [1]}
    assert found.placed[ID].reasons[0] == "GPU 1, alone: moved from GPU 0: GPU 0 is split into instances (MIG)"
    found = placing([group("a", 2)], machine(4, seen("a", 10, visible=uuids(3)[0])))
    assert indices(found) == {"a": [0, 1]}
    assert "it takes 2 GPUs now" in found.placed[ID].reasons[0]


def test_listed_gpus_are_as_written() -> None:
    """Indices are the driver's, in the order of ranks."""
    found = placing([model("a", gpus=(3, 1), args={"tensor_parallel_size": 2})], machine(4))
    assert found.placed[ID].devices == uuids(3, 1)
    assert "as written" in found.placed[ID].reasons[0]


def test_listed_gpus_that_are_not_there() -> None:
    """Named with those that are; the running server is not taken for in sync."""
    found = placing([model("a", gpus=(9,))], machine(2))
    assert block(found).reason is Reason.GPU_MISSING
    assert block(found).note == "there is no GPU 9 here, only 0, 1"
    assert found.placed[ID].visible == ("9",)


@pytest.mark.parametrize("gpus", [(0,), 2])
def test_a_host_without_gpus(gpus: tuple[int, ...] | int) -> None:
    """`auto` is vLLM's business there; GPUs that were asked for are missing."""
    found = placing([model("a", gpus=gpus)], machine(0))
    assert block(found).reason is Reason.GPU_MISSING
    assert "no NVIDIA driver on this host" in block(found).note
    found = placing([model("a")], machine(0))
    assert (found.placed[ID].devices, found.placed[ID].visible, dict(found.blocks)) == ((), (), {})


def test_unusable_gpus_are_passed_over() -> None:
    """Split, closed to programs, or with memory that cannot be mended; one with errors comes last."""
    gpus = [
        replace(card(0), split=True),
        replace(card(1), compute_mode="prohibited"),
        replace(card(2), remapping_failed=True),
        replace(card(3), xids=(13, 79)),
        card(4),
    ]
    assert indices(placing([model("a"), model("b")], machine(gpus))) == {"a": [4], "b": [3]}
    found = placing([model("a", gpus=(1,))], machine(gpus))
    assert block(found).reason is Reason.GPU_UNUSABLE
    assert block(found).note == "GPU 1 is closed to programs (compute mode prohibited)"


def test_gpus_that_tell_no_memory_or_nothing_at_all() -> None:
    """Nothing is put there; who asks for one hears why, and so does who finds too few."""
    split = replace(card(1), memory_total=0, memory_used=0, memory_free=0, split=True)
    shared = replace(card(3), memory_total=0, memory_used=0, memory_free=0)
    lost = "GPU 2 does not answer: GPU is lost"
    view = replace(machine([card(0), split, shared]), gpu_problem=lost)
    assert indices(placing([model("a")], view)) == {"a": [0]}
    assert block(placing([model("a", gpus=(1,))], view)).note == "GPU 1 is split into instances (MIG)"
    assert block(placing([model("a", gpus=(3,))], view)).note == "GPU 3 does not tell its memory"
    assert block(placing([model("a", gpus=(2,))], view)).note == f"there is no GPU 2 here, only 0 ({lost})"
    few = block(placing([group("a", 2)], view))
    assert few.reason is Reason.TOO_FEW_GPUS
    assert few.note.endswith(f"GPU 1: is split into instances (MIG); GPU 3: does not tell its memory; {lost}")


def instance(number: int, size: float) -> Gpu:
    """A part of GPU 0."""
    whole = card(0)
    return replace(
        whole,
        uuid=f"MIG-{number:08d}-0000-5000-8000-000000000000",
        name=f"{whole.name} MIG 3g.40gb",
        memory_total=int(size * GIB),
        memory_free=int(size * GIB),
        parent=whole.uuid,
        instance=number,
    )


def test_instances_are_gpus_for_one_server_each() -> None:
    """Not for groups, and not for a vLLM that cannot be told a UUID."""
    gpus = [replace(card(0), split=True), instance(0, 40), instance(1, 40)]
    found = placing([model("a"), model("b")], machine(gpus))
    assert [placed.visible for placed in found.placed.values()] == [(gpus[1].uuid,), (gpus[2].uuid,)]
    found = placing([group("a", 2)], machine(gpus))
    assert block(found).reason is Reason.TOO_FEW_GPUS
    assert "GPU 0 instance 0, 0 instance 1: is one instance, and several GPUs are needed" in block(found).note
    found = placing([model("a")], machine(gpus, version="0.22.1"))
    assert block(found).reason is Reason.GPU_UNUSABLE
    assert "vLLM 0.22.1 cannot read" in block(found).note


def test_too_few() -> None:
    """Every GPU is named with what is against it."""
    servers = [group("a", 4), *(model(f"b{n}", args={"gpu_memory_utilization": 0.9}, gpus=(n,)) for n in (0, 1, 2))]
    found = placing(servers, machine(4))
    assert block(found).reason is Reason.TOO_FEW_GPUS
    assert block(found).note.startswith("no room for 4 GPUs. GPU 0: 79.2 GiB")
    assert "b2 takes 71.3 GiB" in block(found).note


def test_strangers_are_passed_over_and_named() -> None:
    """Memory that others hold is theirs, whoever they are."""
    gpus = [card(0, held={4711: 41.2}), card(1)]
    assert indices(placing([model("a")], machine(gpus))) == {"a": [1]}
    host = replace(machine(gpus[:1]), strangers=(Stranger(host="h1", pid=4711, port=None, what="vllm serve x"),))
    found = placing([model("a", args={"gpu_memory_utilization": 0.9})], host)
    assert block(found).reason is Reason.TOO_FEW_GPUS
    found = placing([model("a", gpus=(0,), args={"gpu_memory_utilization": 0.9})], host)
    assert block(found).reason is Reason.GPU_MEMORY_HELD
    assert "GPU 0: 41.2 of 79.2 GiB held, 41.2 by pid 4711 (not ours: vllm serve x)" in block(found).note
    assert "a asks for 0.9 of it, 71.3 GiB (models.d/m.yaml:9)" in block(found).note


def test_orphans_hold_memory_until_they_are_ended() -> None:
    """Those of a server that is about to start are ended first; others are in the way, and named."""
    host = replace(machine([card(0, held={5: 70.0})]), orphans=(Orphan(host="h1", pid=5, title="VLLM::EngineCore"),))
    found = placing([model("a", gpus=(0,), args={"gpu_memory_utilization": 0.9})], host)
    assert "an orphaned VLLM::EngineCore" in block(found).note


def test_memory_that_nobody_is_seen_to_hold() -> None:
    """Containers hide their processes."""
    hidden = replace(card(0), memory_used=60 * GIB, memory_free=20 * GIB)
    assert indices(placing([model("a")], machine([hidden, card(1)]))) == {"a": [1]}


def test_cordoned_gpus_get_nothing_new() -> None:
    """What runs there goes on; what is listed there is blocked when it is to start."""
    cordoned = {"cordoned_gpus": ("0", uuids(1)[0])}
    there = machine(4, seen("b", 10, visible=uuids(1)[0]))
    found = placing([model("a", **cordoned), model("b", **cordoned)], there)
    assert indices(found) == {"a": [2], "b": [1]}
    found = placing([model("a", gpus=(0,), **cordoned)], machine(4))
    assert block(found).reason is Reason.CORDONED


def test_gpus_in_the_environment_are_somebodys_own_business() -> None:
    """They are left as written, and reckoned with."""
    found = placing([model("a", env={"CUDA_VISIBLE_DEVICES": "1"}), model("b"), model("c")], machine(3))
    assert indices(found) == {"a": [1], "b": [0], "c": [2]}
    assert found.placed[ID].visible == ()


def test_groups_are_of_one_kind_and_side_by_side() -> None:
    """Aligned runs first; GPUs of different models only where nothing else is left, and then with a warning."""
    gpus = [card(0, name="A"), card(1), card(2), card(3), card(4), card(5)]
    assert indices(placing([group("a", 2)], machine(gpus))) == {"a": [2, 3]}
    found = placing([group("a", 2)], machine([card(0, name="A", total=40 * GIB), card(1)]))
    assert indices(found) == {"a": [0, 1]}
    assert "its GPUs differ (GPU 0 A, GPU 1 NVIDIA H100 80GB HBM3)" in found.notes[ID]


def test_on_the_cpu_no_gpu_is_taken() -> None:
    """A server that says so leaves them to others."""
    found = placing([model("a", args={"device": "cpu"}), model("b")], machine(1))
    assert indices(found) == {"a": [], "b": [0]}


@pytest.mark.parametrize("total", [1, -5, GIB // 2])
def test_a_gpu_with_next_to_no_memory_ends_no_plan(total: int) -> None:
    """A driver that is out of its mind, or a host that lies: nothing fits there, and the others are planned."""
    servers = [model("a", needs=Needs(kv_tokens=1000)), model("b", gpus=(0,)), model("c", gpus=(0,))]
    found = placing(servers, machine([card(0, total=total), card(1)]))
    assert indices(found)["a"] == [1]
    alone = placing([model("a"), model("b", needs=Needs(kv_tokens=1000))], machine([card(0, total=total)]))
    assert {placed.devices for placed in alone.placed.values()} == {()}


def test_a_server_that_is_starting_is_not_moved() -> None:
    """One that was told no GPUs holds memory of the first of its GPUs only, for a moment."""
    for first, expected in ((0, [0, 1]), (2, [2, 0])):
        gpus = [card(index, held={100: 1.0} if index == first else {}) for index in range(4)]
        found = placing([group("a", 2)], machine(gpus, seen("a", 100, "--tensor-parallel-size 2")))
        assert indices(found) == {"a": expected}


def test_with_ray_nothing_is_told() -> None:
    """Neither to one that is started nor to one that runs: its workers may be elsewhere."""
    args: dict[str, object] = {"distributed_executor_backend": "ray", "tensor_parallel_size": 2}
    words = "--distributed-executor-backend ray --tensor-parallel-size 2"
    gpus = [card(0, held={100: 70.0}), card(1, held={100: 70.0}), card(2)]
    for host in (machine(gpus, seen("a", 100, words)), machine(3)):
        (placed,) = placing([model("a", args=args)], host).placed.values()
        assert placed.visible == ()


def test_a_small_gpu_that_is_free_is_taken() -> None:
    """What CUDA's context takes is estimated for large ones, and vLLM's default need not leave as much."""
    for size in (4.75, 6.0, 8.0):
        gpus = [card(0, total=int(size * GIB))]
        args = {"max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 8}
        for known in (False, True):
            found = placing([model("a", "qwen2.5-0.5b", args=args)], machine(gpus), files=known)
            assert (indices(found), numbers(found), found.blocks) == ({"a": [0]}, {"a": None}, {})


def test_an_env_that_hides_the_gpus_stands() -> None:
    """Nothing is said over it, and no GPU is kept."""
    for word in ("", "GPU-that-is-not-there", "-1"):
        (placed,) = placing([model("a", env={"CUDA_VISIBLE_DEVICES": word})], machine(2)).placed.values()
        assert (placed.devices, placed.visible) == ((), ())


def test_odd_facts_are_survived() -> None:
    """No UUID, twice the same one, no name, sizes below zero: such GPUs are left out, the others are used."""
    odd = [
        replace(card(0), uuid=""),
        replace(card(1), memory_total=-5, memory_free=-5),
        replace(card(2), memory_total=1),
        replace(card(3), name="", processes=((0, -4 * GIB), (-1, None)), memory_used=-GIB),
        card(4),
        replace(card(5), uuid=card(4).uuid),
    ]
    for version in ("0.32.0", "", "dev"):
        found = placing([model(name) for name in "abc"], machine(odd, version=version))
        assert {device for placed in found.placed.values() for device in placed.devices} == set(uuids(3, 4))
    found = placing([model(name) for name in "ab"], machine(odd[:3]), files=False)
    assert {placed.visible for placed in found.placed.values()} == {()}


def test_an_instance_each_and_a_reason_for_one_too_many() -> None:
    """Seven instances of a split GPU."""
    whole = replace(card(0), split=True)
    part = card(0, total=int(9.75 * GIB))
    parts = [replace(part, uuid=f"MIG-{at}", parent=whole.uuid, instance=at) for at in range(7)]
    found = placing([model(f"m{at}", "qwen2.5-0.5b") for at in range(8)], machine([whole, *parts]), files=False)
    assert [placed.devices for _, placed in sorted(found.placed.items())] == [*((f"MIG-{at}",) for at in range(7)), ()]
    assert block(found, "m7@h1").reason is Reason.MEMORY_UNKNOWN


def test_one_that_is_blocked_leaves_its_room_to_others() -> None:
    """What asks for too much of a listed GPU is in nobody's way, nor named as such."""
    servers = [model(name, args={"gpu_memory_utilization": 0.6}, gpus=(0,)) for name in "ab"]
    number = {"gpu_memory_utilization": 0.3}
    found = placing([*servers, model("c", args=number)], machine(1))
    assert list(found.blocks) == [ServerId.parse("b@h1")]
    assert block(found, "b@h1").reason is Reason.GPU_OVERCOMMITTED
    assert indices(found) == {"a": [0], "b": [], "c": [0]}
    large = placing([*servers, model("c", args={"gpu_memory_utilization": 0.5})], machine(1))
    assert "a takes 47.5 GiB" in block(large, "c@h1").note
    assert "b takes" not in block(large, "c@h1").note

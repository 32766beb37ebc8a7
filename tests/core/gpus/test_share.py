"""How much of a GPU each server gets that leaves it to the tool."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.gpu_views import H100, card, indices, machine, model, numbers, placing, seen, uuids
from vmreconcile.core.gpus.demand import Demand, demand_of
from vmreconcile.core.gpus.keys import memory_key
from vmreconcile.core.gpus.knowledge import Lore, lore_of
from vmreconcile.core.placing import placing_of
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Figures, Measured, Needs
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import EnvFile, FleetView, Record
from vmreconcile.model.plan import Reason
from vmreconcile.vllm.memory.gpus import gpu_of, seen_gpu
from vmreconcile.vllm.memory.predict import CONTEXT
from vmreconcile.vllm.memory.sizes import GIB
from vmreconcile.vllm.memory.stored import Checkpoint

SMALL = {"max_model_len": 8192, "enforce_eager": True}
ID = ServerId.parse("a@h1")


def used(found_numbers: dict[str, object]) -> float:
    """The sum of what was chosen."""
    return sum(value for value in found_numbers.values() if isinstance(value, float))


def test_alone_the_default_stands() -> None:
    """No file of a model is read for it."""
    found = placing([model("a")], machine(1), files=False)
    assert numbers(found) == {"a": None}
    assert not found.asks
    assert found.placed[ID].reasons == (
        "GPU 0, alone: free",
        "gpu_memory_utilization 0.92: alone there: vLLM's own default",
    )
    assert found.placed[ID].requested[0] == pytest.approx(0.92 * gpu_of("H100").total, abs=1)


def test_a_shared_gpu_is_shared_in_proportion_to_what_is_needed() -> None:
    """Together no more than the GPU bears beside the contexts; the larger model gets more."""
    servers = [model("a", "qwen2.5-7b", args=SMALL), model("b", "qwen2.5-0.5b", args=SMALL)]
    found = placing(servers, machine(1))
    a, b = (numbers(found)[name] for name in "ab")
    assert isinstance(a, float)
    assert isinstance(b, float)
    total = gpu_of("H100").total
    assert a > 2 * b > 0.1
    assert 0.96 < a + b <= (total - 2 * CONTEXT) / total
    assert found.placed[ID].reasons[0] == "GPU 0, beside b: no GPU is free, it has the most room"
    assert "shared; " in found.placed[ID].reasons[1]
    assert "GiB predicted beside the KV cache" in found.placed[ID].reasons[1]


def test_without_files_nobody_guesses() -> None:
    """The files are asked for; where they cannot be had, the second server waits for a number."""
    found = placing([model("a"), model("b")], machine(1), files=False)
    assert found.asks == {ServerId.parse("a@h1"), ServerId.parse("b@h1")}
    block = found.blocks[ServerId.parse("b@h1")]
    assert block.reason is Reason.MEMORY_UNKNOWN
    assert "could not be read" in block.note


def test_a_stated_need_gets_the_least_that_meets_it() -> None:
    """Also alone; the rest stays free for others."""
    found = placing([model("a", args=SMALL, needs=Needs(kv_tokens=100_000))], machine(1))
    number = numbers(found)["a"]
    assert isinstance(number, float)
    demand = demand_of(model("a", args=SMALL), gpu_of("H100"), "0.32.0", *_files())
    assert isinstance(demand, Demand)
    needed = (demand.beside + 100_000 * demand.token) / gpu_of("H100").total
    assert needed <= number < needed + 0.011
    assert "for 100,000 tokens" in found.placed[ID].reasons[1]
    more = placing([model("a", args=SMALL, needs=Needs(concurrency=50))], machine(1))
    assert numbers(more)["a"] > number  # type: ignore[operator]  # 50 x 8192 tokens


def _files() -> tuple[Checkpoint, None]:
    from tests.lab.gpu_views import CONFIGS  # noqa: PLC0415 - beside its use

    return Checkpoint(config=CONFIGS["qwen2.5-7b"], tensors=None, source="tests"), None


def test_those_without_a_need_share_the_rest() -> None:
    """The one with a need is not given more than it asked for."""
    a = model("a", args=SMALL, needs=Needs(kv_tokens=100_000))
    alone = numbers(placing([a], machine(1)))["a"]
    found = placing([a, model("b", args=SMALL)], machine(1))
    assert numbers(found)["a"] == alone
    assert used(numbers(found)) > 0.96


def test_a_need_that_no_gpu_meets() -> None:
    """Blocked with the numbers, and what could be changed."""
    block = placing([model("a", args=SMALL, needs=Needs(kv_tokens=9_000_000))], machine(2)).blocks[ID]
    assert block.reason is Reason.DOES_NOT_FIT
    assert "GiB of each GPU (predicted)" in block.note
    assert "vmreconcile fit a@h1" in block.remedy


def test_written_numbers_are_kept_and_added_up() -> None:
    """A GPU on which they come to more than it has, each with its context, gets no further server."""
    part = {"gpu_memory_utilization": 0.45}
    found = placing([model(name, args=part, gpus=(0,)) for name in "abc"], machine(1))
    assert set(numbers(found).values()) == {None}
    assert list(found.blocks) == [ServerId.parse("c@h1")]
    block = found.blocks[ServerId.parse("c@h1")]
    assert block.reason is Reason.GPU_OVERCOMMITTED
    assert "a asks for 0.45 of it, 35.6 GiB (models.d/m.yaml:9)" in block.note
    halves = [model(name, args={"gpu_memory_utilization": 0.5}, gpus=(0,)) for name in "ab"]
    assert list(placing(halves, machine(1)).blocks) == [ServerId.parse("b@h1")]
    assert not placing([model("a", args={"gpu_memory_utilization": 0.99})], machine(1)).blocks


def test_a_written_number_leaves_the_rest() -> None:
    """The one that is left to the tool gets no more than what is left."""
    found = placing([model("a", args={"gpu_memory_utilization": 0.6}), model("b", args=SMALL)], machine(1))
    assert numbers(found)["a"] is None
    assert 0.37 < numbers(found)["b"] <= 0.39  # type: ignore[operator]  # a float


def test_beside_a_stranger() -> None:
    """As much of what it leaves as vLLM would take by itself."""
    found = placing([model("a", args=SMALL)], machine([card(0, held={4711: 30.0})]))
    number = numbers(found)["a"]
    assert isinstance(number, float)
    total = gpu_of("H100").total
    assert number == pytest.approx((total - 30 * GIB - CONTEXT) / total, abs=0.01)
    assert number <= (total - 30 * GIB - CONTEXT) / total
    tiny = placing([model("a")], machine([card(0, held={4711: 0.2})]), files=False)
    assert numbers(tiny) == {"a": None}


def test_a_written_number_is_checked_against_needs() -> None:
    """It stands, with a warning where it does not hold what is asked for."""
    args = {**SMALL, "gpu_memory_utilization": 0.3}
    found = placing([model("a", args=args, needs=Needs(kv_tokens=500_000))], machine(1))
    assert found.notes[ID].startswith("gpu_memory_utilization 0.3 is 23.8 GiB, and its needs take 4")
    assert not placing([model("a", args=args, needs=Needs(kv_tokens=5_000))], machine(1)).notes


def running(name: str, pid: int, number: float, *, decided: bool = True, device: int = 0) -> object:
    """A server of ours that runs with a number on a GPU."""
    args = f"--gpu-memory-utilization {number} --max-model-len 8192 --enforce-eager"
    return seen(
        name, pid, args, visible=uuids(device)[0], decided={"gpu_memory_utilization": number} if decided else {}
    )


def test_a_running_server_is_not_retuned_for_noise() -> None:
    """What strangers hold, what was predicted then, a neighbour that left: it keeps its number."""
    servers = [model("a", args=SMALL), model("b", args=SMALL)]
    fresh = numbers(placing(servers, machine(1)))
    there = machine([card(0, held={10: 38.0, 11: 38.0, 4711: 2.0})], running("a", 10, 0.48), running("b", 11, 0.47))  # type: ignore[arg-type]
    assert numbers(placing(servers, there, files=False)) == {"a": 0.48, "b": 0.47}
    assert not placing(servers, there, files=False).asks
    assert fresh["a"] != 0.48
    left = machine([card(0, held={10: 38.0})], running("a", 10, 0.48))  # type: ignore[arg-type]
    found = placing(servers[:1], left, files=False)
    assert numbers(found) == {"a": 0.48}
    assert "a restart would give it vLLM's own default" in found.placed[ID].reasons[1]


def test_it_gives_way_to_a_newcomer_that_has_no_other_gpu() -> None:
    """And only then; with a free GPU it stays as it is."""
    servers = [model("a", args=SMALL), model("b", args=SMALL)]
    there = running("a", 10, 0.92, decided=False)
    one = [card(0, held={10: 73.0})]
    found = placing(servers, machine(one, replace(there, record=None)))  # type: ignore[arg-type,type-var]
    assert numbers(found)["a"] is not None
    assert used(numbers(found)) <= 0.99
    found = placing(servers, machine([*one, card(1)], there))  # type: ignore[arg-type]
    assert indices(found) == {"a": [0], "b": [1]}
    assert numbers(found) == {"a": None, "b": None}


def test_only_who_has_most_to_spare_gives_way() -> None:
    """The other one that runs there is not restarted for a newcomer; both are where one does not have enough."""
    servers = [model(name, args=SMALL) for name in "ab"]
    there = machine([card(0, held={10: 51.0, 11: 26.0})], running("a", 10, 0.64), running("b", 11, 0.32))  # type: ignore[arg-type]
    found = numbers(placing([*servers, model("c", args={"gpu_memory_utilization": 0.2})], there))
    assert found["b"] == 0.32
    assert 0.43 < found["a"] < 0.48  # type: ignore[operator]  # a float
    larger = placing([*servers, model("c", args={"gpu_memory_utilization": 0.48})], there)
    assert not larger.blocks
    assert max(numbers(larger)[name] for name in "ab") < 0.32  # type: ignore[type-var]  # floats


def test_a_number_that_somebody_wrote_before_does_not_stay() -> None:
    """Now it is left to the tool: alone, vLLM's own default stands."""
    there = machine([card(0, held={10: 38.0})], running("a", 10, 0.48, decided=False))  # type: ignore[arg-type]
    assert numbers(placing([model("a", args=SMALL)], there)) == {"a": None}


def test_a_need_that_is_no_longer_met_is_a_reason() -> None:
    """More is asked for than it runs with."""
    server = model("a", args=SMALL, needs=Needs(kv_tokens=800_000))
    there = machine([card(0, held={10: 38.0})], running("a", 10, 0.48))  # type: ignore[arg-type]
    assert numbers(placing([server], there))["a"] > 0.6  # type: ignore[operator]  # a float
    less = replace(server, needs=Needs(kv_tokens=100_000))
    assert numbers(placing([less], there)) == {"a": 0.48}


def measured(server_key: str, **figures: int) -> Measured:
    """What an earlier start on the same kind of GPU said."""
    gpu = gpu_of("H100")
    return Measured(
        key=server_key,
        gpu="NVIDIA H100 80GB HBM3",
        gpu_memory=gpu.total,
        vllm_version="0.32.0",
        utilization=0.5,
        max_model_len=8192,
        figures=Figures(**figures),  # type: ignore[arg-type]  # its fields
    )


def test_what_was_measured_counts_before_what_is_predicted() -> None:
    """No file is asked for then."""
    from vmreconcile.core.gpus.keys import memory_key  # noqa: PLC0415 - beside its use

    server = model("a", args=SMALL, needs=Needs(kv_tokens=100_000))
    key = memory_key(server)
    known = measured(key, beside=20 * GIB, kv_bytes=10 * GIB, kv_tokens=100_000)
    lore = Lore(measured={(key, known.gpu, known.vllm_version): known})
    found = placing_of([server], machine(1), lore)
    assert not found.asks
    total = gpu_of("H100").total
    assert numbers(found)["a"] == pytest.approx((20.25 + 10) * GIB / total, abs=0.011)
    assert "20.2 GiB measured beside the KV cache" in found.placed[ID].reasons[1]


def test_a_context_that_is_left_to_the_tool() -> None:
    """The longest that fits; one that runs keeps its own; an old vLLM is never told 'auto'."""
    open_length = {"max_model_len": -1, "enforce_eager": True}
    found = placing([model("a", "llama-3.1-8b", args=open_length)], machine([card(0, name="A10", total=24 * GIB)]))
    length = found.placed[ID].settings["max_model_len"]
    assert isinstance(length, int)
    assert 8192 < length < 131072
    assert length % 256 == 0
    big = placing([model("a", "llama-3.1-8b", args=open_length)], machine(1))
    assert big.placed[ID].settings["max_model_len"] == 131072
    unread = placing([model("a", args=open_length)], machine(1), files=False)
    assert unread.placed[ID].settings["max_model_len"] == -1
    old = placing([model("a", args=open_length)], machine(1, version="0.11.2"), files=False)
    assert old.placed[ID].settings["max_model_len"] is None
    there = seen("a", 10, "--max-model-len 20224", visible=uuids(0)[0], decided={"max_model_len": 20224})
    kept = placing([model("a", args=open_length)], machine(1, there), files=False)
    assert kept.placed[ID].settings["max_model_len"] == 20224


def test_a_record_without_a_process_decides_nothing() -> None:
    """A stopped server is reckoned anew."""
    there = running("a", 10, 0.48)
    gone = replace(there, process=None, env_file=EnvFile(path="", mode=0o600, uid=0))  # type: ignore[type-var]
    assert numbers(placing([model("a", args=SMALL)], machine(1, gone))) == {"a": None}  # type: ignore[arg-type]


def test_a_given_kv_cache_is_taken_whatever_was_written_or_measured() -> None:
    """The utilization then only says how much must be free at first; what is taken is not to be had by others."""
    given = {"max_model_len": 4096, "kv_cache_memory_bytes": 40 * GIB}
    written = model("a", args={**given, "gpu_memory_utilization": 0.3})
    other = model("b", args={"max_model_len": 4096}, needs=Needs(kv_tokens=500_000))
    found = placing([written, other], machine(1))
    assert set(found.blocks) == {other.id}
    small = model("b", "qwen2.5-0.5b", args={"max_model_len": 4096}, needs=Needs(kv_tokens=8192))
    found = placing([written, small], machine(1))
    assert not found.blocks
    assert found.placed[written.id].requested[0] > 50 * GIB
    (alone,) = placing([written], machine(1)).placed.values()
    assert alone.requested[0] < 24 * GIB
    figures = Figures(beside=15 * GIB, kv_bytes=40 * GIB, kv_tokens=700_000)
    usable = seen_gpu(card(0).name, card(0).memory_total)
    measured = measured_of(model("a", args=given), figures, utilization=0.92)
    demand = demand_of(model("a", args=given), usable, "0.32.0", None, measured)
    assert not isinstance(demand, str)
    assert demand.total > 55 * GIB


def test_what_was_measured_to_hold_its_needs_is_not_restarted() -> None:
    """The margin between two measurements is more than a hundredth or two of a small GPU."""
    gpu = card(0, name="small", total=int(9.75 * GIB), held={100: 4.0})
    server = model("a", "qwen2.5-0.5b", args={"max_model_len": 4096}, needs=Needs(kv_tokens=100_000))
    runs = seen(
        "a",
        100,
        "--max-model-len 4096 --gpu-memory-utilization 0.4",
        serves="qwen2.5-0.5b",
        visible=gpu.uuid,
        decided={"gpu_memory_utilization": 0.4},
    )
    kv = 100_500 * 12288
    beside = int(0.4 * seen_gpu("small", gpu.memory_total).total) - kv
    for tokens, expected in ((100_500, 0.4), (90_000, 0.45)):
        figures = Figures(beside=beside, kv_bytes=kv, kv_tokens=tokens)
        measured = measured_of(server, figures, utilization=0.4, gpu="small")
        host = machine([gpu], replace(runs, record=Record(server="a", decided=runs.record.decided, measured=measured)))  # type: ignore[union-attr]
        found = placing_of([server], host, lore_of(FleetView(hosts=(host,), unreachable=()), {}))
        assert numbers(found)["a"] == expected


def measured_of(server: DesiredServer, figures: Figures, *, utilization: float, gpu: str = H100) -> Measured:
    """What its last start is said to have measured."""
    return Measured(
        key=memory_key(server),
        gpu=gpu,
        gpu_memory=80 * GIB,
        vllm_version="0.32.0",
        utilization=utilization,
        max_model_len=4096,
        figures=figures,
    )

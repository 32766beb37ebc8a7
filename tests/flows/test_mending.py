"""A start that fails for memory is tried once more: with which numbers, and where it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour, Refusal
from tests.lab.worlds import World, wanted, world
from vmreconcile.core.gpus.demand import LENGTH, SHARE
from vmreconcile.errors import Place
from vmreconcile.flows.execute import execute
from vmreconcile.model.gpus import Figures
from vmreconcile.model.outcome import Failure, Outcome
from vmreconcile.model.plan import Action, Plan
from vmreconcile.model.tuning import Manner, Match, Rule
from vmreconcile.model.values import JsonValue

GIB = 1 << 30
BOTH = pytest.mark.parametrize("runtime", ["systemd", "process"])
SEVEN_B = Behaviour(beside_gib=16.72, needs_gib=1.75, context=32768)
"""As Qwen2.5-7B on an H100: at 0.2 of it 0.88 GiB are missing, at 0.23 there are 1.49 (vllm 0.22.1)."""

KNOWN = Figures(beside=16 * GIB, kv_bytes=round(1.75 * GIB))
"""What was thought that it takes at least."""

MOVED = ("AssertionError: Error in memory profiling. Initial free memory 28.15 GiB, current free memory 63.47 GiB.",)
LOADED = (
    "(EngineCore pid=7) INFO 01-31 12:00:00 [gpu_model_runner.py:1] Model loading took 14.29 GiB memory and 1.0 seconds"
)
GIVEN = "(EngineCore pid=7) INFO 01-31 12:00:00 [gpu_worker.py:1] Available KV cache memory: 40.00 GiB"
FULL = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 260.00 MiB."


def chosen(
    decided: dict[str, JsonValue],
    behaviour: Behaviour,
    *,
    least: Figures | None = None,
    there: World | None = None,
    **fields: Any,  # noqa: ANN401 - a server's
) -> tuple[World, Plan]:
    """A server `m` on one GPU, with numbers that the tool chose, and the plan that starts it."""
    args, left_open = fields.pop("args", {}), {LENGTH: "auto"} if LENGTH in decided else {}
    as_decided = wanted(args={**args, **decided}, **fields)
    there = there.want(as_decided) if there else world(as_decided, gpus=1)
    there.hosts["h1"].kernel.behaviours["m"] = behaviour
    plan = there.plan()
    (change,) = plan.changes
    assert change.placed is not None
    placed = replace(change.placed, settings=decided, least=least, reasons=("GPU 0, alone: free",))
    there.want(wanted(args={**args, **left_open}, **fields))
    return there, replace(plan, changes=(replace(change, placed=placed),))


def carried_out(there: World, plan: Plan) -> tuple[Outcome, list[str]]:
    """What came of it, and what the person was told beside what was waited for."""
    witness = Witness()
    outcome = execute(plan, run_of(there, witness))
    return outcome, [line for _, line in witness.waited if "second try" in line]


def failure(outcome: Outcome, server: str = "m@h1") -> Failure:
    """Why it failed."""
    (found,) = [result.failure for result in outcome.results if str(result.server) == server]
    assert found is not None
    return found


def starts(there: World, slug: str = "m") -> int:
    """How many times it was started, as its log says."""
    return sum("non-default args" in line for line in there.hosts["h1"].kernel.logs[slug])


def argument(there: World, name: str) -> str | None:
    """What the running server was given."""
    argv = there.argv(there.desired.servers[0].id)
    return argv[argv.index(name) + 1] if name in argv else None


def before(host: FakeHost, when: Callable[[dict[str, Any]], bool], act: Callable[[], object]) -> None:
    """Do something right before the first request that `when` is about."""
    request, due = host.request, [True]

    def watched(payload: dict[str, Any], **options: Any) -> object:  # noqa: ANN401 - passed on
        if due and when(payload):
            due.clear()
            act()
        return request(payload, **options)

    host.request = watched  # type: ignore[method-assign,assignment]


def is_start(payload: dict[str, Any]) -> bool:
    """Whether a request starts a server."""
    steps = payload.get("steps", ()) if payload["do"] == "steps" else ()
    return any(step["step"] == "spawn" or step.get("verb") == "start" for step in steps)


def is_whole_look(payload: dict[str, Any]) -> bool:
    """Whether a request looks at the host with all its servers."""
    return payload["do"] == "observe" and payload["servers"] is None


def is_gpu_look(payload: dict[str, Any]) -> bool:
    """Whether a request looks at GPUs alone."""
    return payload["do"] == "observe" and payload["servers"] == []


def is_log(payload: dict[str, Any]) -> bool:
    """Whether a request reads a log: the start has failed."""
    return payload["do"] == "log"


# --- What is mended --------------------------------------------------------------------------------------------------


@BOTH
def test_no_memory_for_the_kv_cache(runtime: str) -> None:
    """Ready at the second try; told, kept on the host as the tool's own number, and as wanted from then on."""
    there, plan = chosen({SHARE: 0.2}, SEVEN_B, least=KNOWN, runtime=runtime)
    outcome, told = carried_out(there, plan)
    assert statuses(outcome) == {"m@h1": "changed"}
    (line,) = told
    assert line == (
        "did not start: not enough memory for the KV cache: second try, with gpu_memory_utilization 0.24; the "
        "first, with 0.2, ended with no_kv_memory: 0.9 GiB were missing, and the KV cache needs 1.8"
    )
    assert argument(there, "--gpu-memory-utilization") == "0.24"
    record = there.observe().hosts[0].server("m").record
    assert record is not None
    assert record.decided == {SHARE: 0.24}
    assert starts(there) == 2
    assert not there.plan().pending


@BOTH
def test_too_small_a_kv_cache(runtime: str) -> None:
    """The difference that the log names is added."""
    there, plan = chosen({SHARE: 0.23}, SEVEN_B, runtime=runtime)
    outcome, told = carried_out(there, plan)
    assert statuses(outcome) == {"m@h1": "changed"}
    assert "second try, with gpu_memory_utilization 0.24; the first, with 0.23, ended with kv_too_small" in told[0]
    assert not there.plan().pending


def test_a_context_of_the_tools_is_shortened_where_there_is_no_room() -> None:
    """A person's share stands; the context was `auto`: vLLM's estimate, a little less, which stays then."""
    there, plan = chosen({LENGTH: 32768}, SEVEN_B, args={SHARE: 0.23})
    outcome, told = carried_out(there, plan)
    assert statuses(outcome) == {"m@h1": "changed"}
    assert "second try, with max_model_len " in told[0]
    length = int(argument(there, "--max-model-len") or 0)
    assert 25000 < length < 28000
    assert length % 256 == 0
    assert argument(there, "--gpu-memory-utilization") == "0.23"
    assert not there.plan().pending


def test_memory_that_a_stranger_took_meanwhile_is_left_to_it() -> None:
    """Between the look and the start: the server takes less, as far as that can do, and the stranger goes on."""
    there, plan = chosen({SHARE: 0.9}, Behaviour())
    host = there.hosts["h1"]
    before(host, is_start, lambda: host.hold(0, 4711, 25.0))
    outcome, told = carried_out(there, plan)
    assert statuses(outcome) == {"m@h1": "changed"}
    assert "with gpu_memory_utilization 0.67; the first, with 0.9, ended with gpu_already_used" in told[0]
    assert host.kernel.gpus.by_pid()[4711] == 25 * GIB


def test_memory_that_is_free_again_needs_no_other_number() -> None:
    """The stranger has ended when the server is tried again."""
    there, plan = chosen({SHARE: 0.9}, Behaviour())
    host = there.hosts["h1"]
    before(host, is_start, lambda: host.hold(0, 4711, 25.0))
    before(host, is_log, lambda: host.release(4711))
    outcome, told = carried_out(there, plan)
    assert statuses(outcome) == {"m@h1": "changed"}
    assert "second try, with the same numbers" in told[0]
    assert argument(there, "--gpu-memory-utilization") == "0.9"


def test_memory_that_moved_is_measured_again() -> None:
    """With the same numbers, so also where a person wrote them."""
    there = world(wanted(args={SHARE: 0.5}), gpus=1)
    host = there.hosts["h1"]
    host.kernel.behaviours["m"] = Behaviour(exit_code=1, log=MOVED)
    before(host, is_log, host.kernel.behaviours.clear)
    outcome, told = carried_out(there, there.plan())
    assert statuses(outcome) == {"m@h1": "changed"}
    assert "with the same numbers; the first, with 0.5, ended with memory_moved" in told[0]


def test_running_out_while_warming_up_gives_some_back() -> None:
    """The KV cache had its memory already."""
    there, plan = chosen({SHARE: 0.9}, Behaviour(exit_code=1, log=(LOADED, GIVEN, FULL)))
    host = there.hosts["h1"]
    before(host, is_log, host.kernel.behaviours.clear)
    outcome, told = carried_out(there, plan)
    assert statuses(outcome) == {"m@h1": "changed"}
    assert "with gpu_memory_utilization 0.85; the first, with 0.9, ended with out_of_memory" in told[0]


def test_a_server_that_ran_before_is_mended_too() -> None:
    """Retuned to a model that takes more: it was stopped for that, and serves again after the second try."""
    there, plan = chosen({SHARE: 0.2}, Behaviour())
    assert statuses(execute(plan, run_of(there))) == {"m@h1": "changed"}
    there, plan = chosen({SHARE: 0.2}, SEVEN_B, least=KNOWN, there=there, model="org/larger")
    assert plan.changes[0].action is Action.RETUNE
    outcome, told = carried_out(there, plan)
    assert (statuses(outcome), len(told), starts(there)) == ({"m@h1": "changed"}, 1, 3)
    assert not there.plan().pending


def test_memory_that_the_failed_start_gives_back_late_counts() -> None:
    """Its own memory is waited for before the room is worked out, and before the second try."""
    there, plan = chosen({SHARE: 0.5}, Behaviour(beside_gib=39.0))
    there.hosts["h1"].gpus_freed_after = 5.0
    assert statuses(carried_out(there, plan)[0]) == {"m@h1": "changed"}


# --- What is not ------------------------------------------------------------------------------------------------------


def test_a_number_that_a_person_wrote_stands() -> None:
    """One start; the failure says which number would do, and which line to change."""
    there = world(wanted(args={SHARE: 0.2}), gpus=1)
    there.hosts["h1"].kernel.behaviours["m"] = SEVEN_B
    outcome, told = carried_out(there, there.plan())
    found = failure(outcome)
    assert (statuses(outcome), told, starts(there)) == ({"m@h1": "failed"}, [], 1)
    assert found.kind == "no_kv_memory"
    assert found.remedy.startswith(
        "gpu_memory_utilization 0.23 would do (0.9 GiB were missing, and the KV cache needs 1.0); raise "
    )
    assert "args.gpu_memory_utilization is 0.2, models.d/m.yaml:9" in found.remedy


def test_a_rules_own_value_stands() -> None:
    """The rule's owner said just that; a floor is another matter."""
    place = Place(file="tuning.yaml", line=3)
    for manner, tried in ((Manner.VALUE, 1), (Manner.AT_LEAST, 2)):
        rule = Rule(name="r", match=Match(model="*"), sets={SHARE: (manner, 0.95)}, reason="so", place=place)
        there = world(wanted(rules=(rule,)), gpus=1)
        there.hosts["h1"].kernel.behaviours["m"] = Behaviour(beside_gib=76.0)
        apply(there)
        assert starts(there) == tried


def test_never_below_a_rules_floor() -> None:
    """A stranger took what the floor needs: failed, with the numbers."""
    rule = Rule(
        name="r",
        match=Match(model="*"),
        sets={SHARE: (Manner.AT_LEAST, 0.8)},
        reason="so",
        place=Place(file="tuning.yaml", line=3),
    )
    there = world(wanted(rules=(rule,)), gpus=1)
    host = there.hosts["h1"]
    before(host, is_start, lambda: host.hold(0, 4711, 25.0))
    outcome, told = carried_out(there, there.plan())
    assert (told, starts(there)) == ([], 1)
    assert "gpu_memory_utilization 0.67 would be too little" in failure(outcome).summary


def test_no_more_than_the_gpu_gives() -> None:
    """Failed, with what would do and what there is."""
    there, plan = chosen({SHARE: 0.9}, Behaviour(beside_gib=80.0))
    outcome, told = carried_out(there, plan)
    assert (told, starts(there)) == ([], 1)
    found = failure(outcome)
    assert found.summary.endswith("gpu_memory_utilization 1.03 would do, there is room for 0.99")
    assert "vmreconcile logs m@h1" in found.remedy


def test_what_a_neighbour_is_still_to_get_is_not_taken() -> None:
    """Two share a GPU; the first needs more than was thought, and the second must not lose by it."""
    there = world(wanted("m@h1", port=1, args={SHARE: 0.2}), wanted("n@h1", port=2, args={SHARE: 0.78}), gpus=1)
    host = there.hosts["h1"]
    host.kernel.behaviours["m"] = SEVEN_B
    plan = there.plan()
    settings: dict[str, JsonValue] = {SHARE: 0.2}
    changes = tuple(
        replace(each, placed=replace(each.placed, settings=settings))
        if each.placed and each.server.model == "m"
        else each
        for each in plan.changes
    )
    there.want(wanted("m@h1", port=1), wanted("n@h1", port=2, args={SHARE: 0.78}))
    outcome, told = carried_out(there, replace(plan, changes=changes))
    assert statuses(outcome) == {"m@h1": "failed", "n@h1": "changed"}
    assert told == []
    assert failure(outcome).summary.endswith("gpu_memory_utilization 0.23 would do, there is room for 0.2")


def test_a_second_failure_stands_and_tells_of_both() -> None:
    """Exactly two starts; what the first was tried with is in the report."""
    there, plan = chosen({SHARE: 0.2}, replace(SEVEN_B, needs_gib=6.0))
    outcome, told = carried_out(there, plan)
    assert (statuses(outcome), len(told), starts(there)) == ({"m@h1": "failed"}, 1, 2)
    found = failure(outcome)
    assert found.kind == "kv_too_small"
    assert (
        "(second try, with gpu_memory_utilization 0.23; the first, with 0.2, ended with no_kv_memory" in found.summary
    )
    assert "args.gpu_memory_utilization is 0.23, tool" in found.remedy
    assert not there.pids()


def test_a_second_try_that_finds_no_room_tells_of_both() -> None:
    """Somebody takes the memory after the second numbers were worked out."""
    there, plan = chosen({SHARE: 0.2}, SEVEN_B)
    host = there.hosts["h1"]

    def take() -> None:
        host.hold(0, 4711, 70.0)

    before(host, is_log, lambda: before(host, is_whole_look, lambda: before(host, is_gpu_look, take)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmreconcile.flows.room.LONGEST_WAIT_S", 0.05)
        outcome, _ = carried_out(there, plan)
    found = failure(outcome)
    assert found.kind == "gpu_memory_held"
    assert "70.0 GiB by pid 4711" in found.summary
    assert "(second try, with gpu_memory_utilization 0.23; the first, with 0.2" in found.summary


def test_a_step_that_fails_at_the_second_try_tells_of_both() -> None:
    """A disk that is full by then."""
    there, plan = chosen({SHARE: 0.2}, SEVEN_B)
    host = there.hosts["h1"]
    before(host, is_log, lambda: host.failing.update({"write-env": Refusal("disk-full", "No space left on device")}))
    outcome, _ = carried_out(there, plan)
    found = failure(outcome)
    assert found.kind == "disk_full"
    assert "(second try, with gpu_memory_utilization 0.23; the first, with 0.2" in found.summary


def test_weights_that_do_not_fit_are_not_tried_again() -> None:
    """No share helps."""
    there, plan = chosen({SHARE: 0.9}, Behaviour(beside_gib=140.0))
    outcome, told = carried_out(there, plan)
    assert (told, starts(there)) == ([], 1)
    assert failure(outcome).kind == "out_of_memory"
    assert "the weights alone found no room" in failure(outcome).summary


def test_other_failures_are_not_tried_again() -> None:
    """A bad argument, a death without a cause."""
    there, plan = chosen({SHARE: 0.9}, Behaviour(exit_code=1, log=("Segmentation fault",)))
    outcome, told = carried_out(there, plan)
    assert (statuses(outcome), told, starts(there)) == ({"m@h1": "failed"}, [], 1)


def test_a_size_of_the_kv_cache_that_somebody_wrote_stands() -> None:
    """The share has no part in it."""
    there, plan = chosen({SHARE: 0.5}, SEVEN_B, args={"kv_cache_memory_bytes": GIB})
    outcome, told = carried_out(there, plan)
    assert (told, starts(there)) == ([], 1)
    assert "would do" not in failure(outcome).remedy + failure(outcome).summary


def test_ctrl_c_lets_no_second_try_begin() -> None:
    """The first failure stands."""
    there, plan = chosen({SHARE: 0.2}, SEVEN_B)
    run = run_of(there, Witness())
    before(there.hosts["h1"], is_log, run.stopping.set)
    outcome = execute(plan, run)
    assert failure(outcome).kind == "no_kv_memory"
    assert starts(there) == 1


def test_what_could_not_be_stopped_is_not_started_beside() -> None:
    """Its unit would go on trying the first numbers."""
    there, plan = chosen({SHARE: 0.2}, SEVEN_B)
    there.hosts["h1"].failing["stop-unit"] = Refusal("stop-timeout", "it does not go")
    outcome, told = carried_out(there, plan)
    assert told == []
    assert "stopping it failed too" in failure(outcome).summary


def test_a_host_that_shows_no_gpu_any_more() -> None:
    """Nothing can be worked out: the first failure stands."""
    there, plan = chosen({SHARE: 0.2}, SEVEN_B)
    host = there.hosts["h1"]
    before(host, is_log, lambda: host.gpus.update(problem="NVML: Driver/library version mismatch"))
    outcome, told = carried_out(there, plan)
    assert (told, failure(outcome).kind, starts(there)) == ([], "no_kv_memory", 1)

"""Plans for hosts whose GPUs surprise: a driver that fails, indices that moved, servers of an older vmreconcile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.core.test_gpu_plans import SMALL, by_name, files, there_is
from tests.lab.applying import apply, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.gpu_views import CONFIGS
from tests.lab.worlds import FILE, World, only, wanted, world
from vmreconcile.core.gpus import knowledge
from vmreconcile.core.gpus.demand import demand_of
from vmreconcile.core.planfile import SavedPlan, confirm, wanted_digest
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Needs
from vmreconcile.model.plan import Action, Block, Plan, Reason
from vmreconcile.model.values import Setting
from vmreconcile.vllm.memory.stored import Checkpoint

PAIR = {"tensor_parallel_size": 2}


def left_alone(plan: Plan) -> bool:
    """Whether a plan has nothing to do and nothing to complain of."""
    return not plan.pending and all(change.action is Action.NOOP for change in plan.changes)


def nobody_restarts(plan: Plan) -> bool:
    """Whether what runs goes on; files may be written anew."""
    return not any(change.disruptive or change.action is Action.BLOCKED for change in plan.changes)


def without_driver(there: World) -> None:
    """The driver was exchanged under programs that run on: NVML answers nobody until the next boot."""
    problem = "Driver/library version mismatch"
    there.hosts["h1"].gpus = {"problem": problem, "driver": None, "cuda": None, "devices": []}


def rows(there: World) -> list[dict[str, object]]:
    """The GPUs as the agent tells them now."""
    return there.hosts["h1"].kernel.gpus.rows()


def crowd() -> World:
    """Two servers on the one GPU of a host, with numbers that were chosen for them."""
    there = there_is(wanted("a@h1", args=SMALL), wanted("b@h1", port=8002, args=SMALL), gpus=1)
    there.hosts["h1"].kernel.behaviours |= dict.fromkeys("ab", Behaviour(beside_gib=17.0, needs_gib=1.75))
    assert set(statuses(apply(there, there.plan(models=files(there)))).values()) == {"changed"}
    return there


def changed(server: DesiredServer) -> DesiredServer:
    """The same with another variable, for which it must be restarted."""
    return replace(server, env={"X": Setting(value="1", origin=FILE)})


def test_a_driver_that_fails_restarts_nobody() -> None:
    """What runs keeps its GPUs and its numbers, whichever way they were asked for."""
    there = there_is(wanted("a@h1"), wanted("b@h1", port=8002, gpus=(3,)), wanted("c@h1", port=8003, gpus=2))
    apply(there)
    without_driver(there)
    assert left_alone(there.plan())
    there = crowd()
    without_driver(there)
    assert left_alone(there.plan())


def test_nobody_is_stopped_for_a_start_that_no_driver_would_let_happen() -> None:
    """What runs on GPUs could not begin again while none is seen."""
    there = there_is(wanted("a@h1"))
    apply(there)
    without_driver(there)
    change = only(there.change(changed).plan())
    assert (change.action, change.reason) == (Action.BLOCKED, Reason.GPU_MISSING)
    assert change.note == "it runs on GPUs, and h1 shows no GPU: Driver/library version mismatch"


@pytest.mark.parametrize("silent", [{0}, set(range(8))])
def test_a_gpu_that_tells_no_memory_keeps_who_is_on_it(silent: set[int]) -> None:
    """Told by name or seen there: nobody is moved because a number could not be read."""
    there = there_is(wanted("a@h1"), wanted("b@h1", port=8002, gpus=(3,)))
    apply(there)
    nothing = dict.fromkeys(("memory_total", "memory_used", "memory_free"), 0)
    there.hosts["h1"].gpus["devices"] = [row | nothing if row["index"] in silent else row for row in rows(there)]
    assert left_alone(there.plan())
    root = there.hosts["h1"].root("a")
    assert root is not None
    del root.env["CUDA_VISIBLE_DEVICES"]
    assert nobody_restarts(there.plan())


def test_indices_that_moved_restart_nobody() -> None:
    """A GPU fell out, and the others are counted anew: those on them are where their memory is, whatever they read."""
    host = FakeHost("h1", gpus=4, installed={"": ("/usr/local/bin/vllm", "0.22.1")})
    there = world(wanted("a@h1"), wanted("b@h1", port=8002), wanted("c@h1", port=8003), hosts=[host])
    apply(there)
    host.gpus["devices"] = [row | {"index": at} for at, row in enumerate(rows(there)[1:])]
    plan = by_name(there.plan())
    for name, before, after in (("b", "1", "0"), ("c", "2", "1")):
        fields = [(field.path, field.before, field.after) for field in plan[name].fields]
        assert (plan[name].disruptive, fields) == (False, [("env_file.CUDA_VISIBLE_DEVICES", before, after)])


def test_servers_of_an_older_version_are_not_restarted() -> None:
    """They were told no GPUs, or indices; their records tell of no decision."""
    numbers = {"gpu_memory_utilization": 0.45}
    there = there_is(
        wanted("a@h1", args=numbers, gpus=(0,)),
        wanted("b@h1", port=8002, args=numbers, gpus=(0,)),
        wanted("c@h1", port=8003, args=PAIR, gpus=(2, 3)),
        wanted("d@h1", port=8004, gpus=(1,)),
    )
    apply(there)
    roots = {name: root for name in "abcd" if (root := there.hosts["h1"].root(name))}
    for name in "abd":
        del roots[name].env["CUDA_VISIBLE_DEVICES"]
    roots["c"].env["CUDA_VISIBLE_DEVICES"] = "2,3"
    assert nobody_restarts(there.plan())
    there.change(lambda server: replace(server, gpus="auto"))
    assert nobody_restarts(there.plan())
    apply(there)
    assert left_alone(there.plan())


def test_a_cordon_of_a_gpu_that_is_listed_disturbs_nobody() -> None:
    """Its server goes on, in sync, with the number that was chosen for it; words that mean no GPU harm nobody."""
    there = crowd()
    there.change(lambda server: replace(server, gpus=(0,)))
    assert left_alone(there.plan())
    there.change(lambda server: replace(server, cordoned_gpus=("0", "99", "GPU-none", "")))
    assert left_alone(there.plan())


@pytest.mark.parametrize("barred", ["cordon", "gated"])
def test_no_gpu_is_kept_for_a_server_that_must_not_start(barred: str) -> None:
    """It is blocked, and does not block others with memory that it has not."""
    full = {"gpu_memory_utilization": 0.9}
    first, second = wanted("a@h1", args=full, priority=1), wanted("b@h1", port=8002, args=full)
    there = there_is(replace(first, cordon="later") if barred == "cordon" else first, second, gpus=1)
    refused = {} if barred == "cordon" else {first.id: Block(reason=Reason.GATED, note="not granted", remedy="ask")}
    plan = by_name(there.plan(refused=refused))
    assert (plan["a"].action, plan["b"].action) == (Action.BLOCKED, Action.START)


def test_a_plan_file_is_stale_once_a_gpu_is_gone() -> None:
    """A server would be stopped for a start that cannot be."""
    there = there_is(wanted("a@h1"))
    apply(there)
    plan = there.change(changed).plan()
    digests = {server.id: wanted_digest(server) for server in there.desired.servers}
    saved = SavedPlan(changes=plan.changes, wanted=digests, inventory="")
    assert only(confirm(saved, there.plan(), there.desired)).action is Action.RESTART
    there.hosts["h1"].gpus["devices"] = rows(there)[1:]
    change = only(confirm(saved, there.plan(), there.desired))
    assert (change.reason, change.note) == (
        Reason.PLAN_STALE,
        "changed since the plan was made: the GPUs that it would get",
    )


def test_nobody_is_stopped_for_a_gpu_that_is_gone() -> None:
    """It fell out between the plan and the stop."""
    there = there_is(wanted("a@h1"))
    apply(there)
    before = there.pids()
    plan = there.change(changed).plan()
    there.hosts["h1"].gpus["devices"] = rows(there)[1:]
    (result,) = apply(there, plan).results
    assert result.failure is not None
    assert result.failure.kind == Reason.GPU_MISSING
    assert result.failure.summary.endswith("what runs was left as it is")
    assert there.pids() == before


def test_a_model_of_many_hosts_is_reckoned_with_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand hosts with the same GPUs and models take no longer to predict than one."""
    asked: list[str] = []

    def counted(server: DesiredServer, *rest: object) -> object:
        asked.append(str(server.id))
        return demand_of(server, *rest)  # type: ignore[arg-type]  # handed on as they are

    monkeypatch.setattr(knowledge, "demand_of", counted)
    names = [f"h{number}" for number in range(1, 6)]
    many = [wanted(f"a@{name}", args=SMALL, needs=Needs(kv_tokens=50_000)) for name in names]
    there = world(*many, hosts=[FakeHost(name, gpus=2) for name in names])
    known = Checkpoint(config=CONFIGS["qwen2.5-7b"], tensors=None, source="")
    plan = there.plan(models={server.id: known for server in many})
    shares = {change.placed.settings["gpu_memory_utilization"] for change in plan.changes if change.placed}
    assert (len(plan.pending), len(shares)) == (5, 1)
    assert asked == ["a@h1"]

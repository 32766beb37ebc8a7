"""Plans for hosts with GPUs: who is started where, who is retuned for whom, and that a second plan is empty."""

from __future__ import annotations

from dataclasses import replace

from tests.lab.applying import apply, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.gpu_views import CONFIGS
from tests.lab.worlds import World, known, only, wanted, world
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.gpus import Needs
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Action, Change, Plan, Reason
from vmreconcile.vllm.memory.stored import Checkpoint

SMALL = {"max_model_len": 8192, "enforce_eager": True}


def there_is(*servers: DesiredServer, gpus: int = 8, **options: object) -> World:
    """A world of one host with GPUs."""
    return world(*servers, hosts=[FakeHost("h1", gpus=gpus, **options)])  # type: ignore[arg-type]  # its own


def files(there: World, config: str = "qwen2.5-7b") -> dict[ServerId, Checkpoint]:
    """What is known of every model."""
    return {each.id: Checkpoint(config=CONFIGS[config], tensors=None, source="") for each in there.desired.servers}


def by_name(plan: Plan) -> dict[str, Change]:
    """Changes by the server's name on its host."""
    return {change.server.local: change for change in plan.changes}


def devices(there: World, server: str) -> str:
    """What a running server was told."""
    root = there.hosts["h1"].root(server)
    assert root is not None
    return root.env.get("CUDA_VISIBLE_DEVICES", "")


def uuid(there: World, index: int) -> str:
    """The UUID of a GPU of h1."""
    return there.observe().hosts[0].gpus[index].uuid


def test_servers_are_started_on_gpus_of_their_own() -> None:
    """Told by UUID; a second plan has nothing to do, and the same plan is made twice."""
    there = there_is(wanted("a@h1", port=8001), wanted("b@h1", port=8002, args={"tensor_parallel_size": 2}))
    assert there.plan() == there.plan()
    assert set(statuses(apply(there)).values()) == {"changed"}
    assert devices(there, "b") == f"{uuid(there, 0)},{uuid(there, 1)}"
    assert devices(there, "a") == uuid(there, 2)
    assert not there.plan().pending


def test_an_old_vllm_is_told_indices() -> None:
    """In the order of the bus, which is the driver's."""
    host = FakeHost("h1", gpus=4, installed={"": ("/usr/local/bin/vllm", "0.22.1")})
    there = world(wanted("a@h1", gpus=(3,)), hosts=[host])
    apply(there)
    root = host.root("a")
    assert root is not None
    assert (root.env["CUDA_VISIBLE_DEVICES"], root.env["CUDA_DEVICE_ORDER"]) == ("3", "PCI_BUS_ID")
    assert not there.plan().pending
    host.kernel.installed[""] = ("/usr/local/bin/vllm", "0.32.0")
    change = only(there.plan())
    assert (change.action, change.reason) == (Action.RESTART, Reason.VERSION_CHANGED)


def test_other_gpus_are_a_reason_to_restart() -> None:
    """They are named by number, before and after."""
    there = there_is(wanted("a@h1", gpus=(0,)))
    apply(there)
    there.want(wanted("a@h1", gpus=(2,)))
    change = only(there.plan())
    assert (change.action, change.reason, change.disruptive) == (Action.RESTART, Reason.GPUS_CHANGED, True)
    assert [(field.path, field.before, field.after) for field in change.fields] == [("gpus", "0", "2")]
    apply(there)
    assert devices(there, "a") == uuid(there, 2)


def test_a_newcomer_makes_one_give_way() -> None:
    """The running one is retuned first, then the other starts; both numbers fit, and stay."""
    there = there_is(wanted("a@h1", port=8001, args=SMALL), gpus=1)
    there.hosts["h1"].kernel.behaviours |= dict.fromkeys("ab", Behaviour(beside_gib=17.0, needs_gib=1.75))
    apply(there)
    there.want(wanted("a@h1", port=8001, args=SMALL), wanted("b@h1", port=8002, args=SMALL))
    plan = there.plan(models=files(there))
    a, b = by_name(plan)["a"], by_name(plan)["b"]
    assert (a.action, a.frees, b.action, b.frees) == (Action.RETUNE, True, Action.START, False)
    (field,) = a.fields
    assert (field.path, field.before) == ("args.gpu_memory_utilization", 0.92)
    assert field.after == a.placed.settings["gpu_memory_utilization"]  # type: ignore[union-attr]  # it is placed
    assert "shared" in field.origin
    assert statuses(apply(there, plan)) == {"a@h1": "changed", "b@h1": "changed"}
    assert not there.plan().pending
    assert not there.plan().asks


def test_a_newcomer_that_fits_beside_one_disturbs_nobody() -> None:
    """It gets what is left, as long as that is enough for it; who wants more for it says so."""
    there = there_is(wanted("a@h1", port=8001, args=SMALL), gpus=1)
    apply(there)
    small = wanted("b@h1", port=8002, args=SMALL)
    there.want(wanted("a@h1", port=8001, args=SMALL), small)
    changes = by_name(there.plan())
    assert (changes["a"].action, changes["b"].action) == (Action.NOOP, Action.START)
    assert changes["b"].placed.settings["gpu_memory_utilization"] < 0.08  # type: ignore[union-attr,operator]  # a float
    there.want(wanted("a@h1", port=8001, args=SMALL), replace(small, needs=Needs(kv_tokens=500_000)))
    assert by_name(there.plan())["a"].action is Action.RETUNE


def test_without_the_files_of_the_models_nobody_is_disturbed() -> None:
    """The newcomer is blocked; who runs goes on as it is."""
    there = there_is(wanted("a@h1", port=8001, args=SMALL), gpus=1)
    apply(there)
    there.want(wanted("a@h1", port=8001, args=SMALL), wanted("b@h1", port=8002, args={"max_num_seqs": 8}))
    plan = there.plan()
    assert plan.asks == {ServerId.parse("b@h1")}
    assert by_name(plan)["a"].action is Action.NOOP
    assert (by_name(plan)["b"].action, by_name(plan)["b"].reason) == (Action.BLOCKED, Reason.MEMORY_UNKNOWN)


def test_two_that_change_places_are_both_taken_down_first() -> None:
    """Each needs what the other one has."""
    there = there_is(wanted("a@h1", port=8001, gpus=(0,)), wanted("b@h1", port=8002, gpus=(1,)), gpus=2)
    apply(there)
    there.want(wanted("a@h1", port=8001, gpus=(1,)), wanted("b@h1", port=8002, gpus=(0,)))
    plan = there.plan()
    assert [(change.early, change.frees) for change in plan.changes] == [(True, False), (True, False)]
    assert statuses(apply(there, plan)) == {"a@h1": "changed", "b@h1": "changed"}
    assert (devices(there, "a"), devices(there, "b")) == (uuid(there, 1), uuid(there, 0))


def test_a_stated_need_is_met_and_kept() -> None:
    """What it was given stays when less is asked for, and grows when more is."""
    asks = wanted("a@h1", args=SMALL, needs=Needs(kv_tokens=100_000))
    there = there_is(asks, gpus=1)
    apply(there, there.plan(models=files(there)))
    assert "--gpu-memory-utilization" in there.argv(asks.id)
    there.want(replace(asks, needs=Needs(kv_tokens=50_000)))
    assert not there.plan(models=files(there)).pending
    there.want(replace(asks, needs=Needs(kv_tokens=500_000)))
    assert only(there.plan(models=files(there))).action is Action.RETUNE


def test_cordons_keep_what_runs() -> None:
    """Nothing is started of a cordoned model, or on a cordoned host; what would have to restart waits."""
    there = there_is(wanted("a@h1", port=8001, runtime="process"), wanted("b@h1", port=8002))
    apply(there)
    there.hosts["h1"].kill_root("a")
    for model, host in (("being retired", ""), ("", "being retired")):
        there.change(lambda server, model=model, host=host: replace(server, cordon=model, host_cordon=host))  # type: ignore[misc]
        a, b = by_name(there.plan())["a"], by_name(there.plan())["b"]
        assert (a.action, a.reason, b.action) == (Action.BLOCKED, Reason.CORDONED, Action.NOOP)
        assert "is cordoned: being retired" in a.note


def test_one_goes_and_another_takes_its_gpu() -> None:
    """What this very plan takes down holds nothing; what it leaves alone does."""
    number = {"gpu_memory_utilization": 0.9}
    there = there_is(wanted("a@h1", port=8001, args=number), gpus=1)
    apply(there)
    b = wanted("b@h1", port=8002, args=number)
    there.want(b)
    kept = by_name(there.plan())["b"]
    assert (kept.action, kept.reason) == (Action.BLOCKED, Reason.TOO_FEW_GPUS)
    assert "our server a" in kept.note
    assert by_name(there.plan(prune=True))["b"].action is Action.START
    there.want(wanted("a@h1", port=8001, args=number, state=DesiredState.STOPPED), b)
    assert by_name(there.plan())["b"].action is Action.START
    assert by_name(there.plan(only=frozenset({b.id})))["b"].action is Action.BLOCKED
    assert statuses(apply(there)) == {"a@h1": "changed", "b@h1": "changed"}


def test_processes_that_the_driver_does_not_show() -> None:
    """In a container none is listed: a server that runs there is not taken for somebody else's memory."""
    there = there_is(wanted("a@h1", args={"gpu_memory_utilization": 0.9}, gpus=(0,)), gpus=1)
    apply(there)
    there.want(wanted("a@h1", args={"gpu_memory_utilization": 0.8}, gpus=(0,)))
    view = there.observe()
    hidden = replace(view.hosts[0], gpus=tuple(replace(gpu, processes=()) for gpu in view.hosts[0].gpus))
    plan = make_plan(there.desired, replace(view, hosts=(hidden,)), Options(known=known()))
    assert only(plan).action is Action.RETUNE


def test_a_stranger_on_the_gpu_that_was_asked_for() -> None:
    """Named with what it holds, and nothing is started."""
    there = there_is(wanted("a@h1", gpus=(0,), args={"gpu_memory_utilization": 0.9}), gpus=1)
    there.hosts["h1"].hold(0, 4711, 41.2, what="python train.py")
    change = only(there.plan())
    assert (change.action, change.reason) == (Action.BLOCKED, Reason.GPU_MEMORY_HELD)
    assert "41.2 of 79.2 GiB held" in change.note
    assert "pid 4711" in change.note

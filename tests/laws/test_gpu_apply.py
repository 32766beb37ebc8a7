"""Laws of applying over GPUs: what was planned starts, nothing is left to do, and who comes later breaks nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.applying import apply
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.gpu_views import CONFIGS
from tests.lab.worlds import World, fleet, wanted
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.gpus import Needs
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Action, Change
from vmreconcile.vllm.memory.stored import Checkpoint

pytestmark = pytest.mark.slow
LAWS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("a", "b", "c", "d", "e")
SIZES = {"qwen2.5-0.5b": (2.0, 0.046), "granite-3.1-2b": (5.5, 0.312), "llama-3.1-8b": (16.0, 0.5)}
"""What a start of each takes in GiB, a little less than predicted: beside the KV cache, and for 4096 tokens of it."""


@st.composite
def servers(draw: st.DrawFn) -> list[DesiredServer]:
    """Some servers of one host, each with a model of known size."""
    found = []
    for number, name in enumerate(draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=5))):
        args: dict[str, object] = {"max_model_len": 4096, "max_num_seqs": 32, "enforce_eager": True}
        args |= draw(st.sampled_from(({}, {}, {"gpu_memory_utilization": 0.45}, {"tensor_parallel_size": 2})))
        found.append(
            wanted(
                f"{name}@h1",
                port=8001 + number,
                model=draw(st.sampled_from(tuple(SIZES))),
                args=args,  # type: ignore[arg-type]  # JSON
                gpus=draw(st.sampled_from(("auto", "auto", (0,)))) if "tensor_parallel_size" not in args else "auto",
                needs=draw(st.sampled_from((Needs(), Needs(), Needs(kv_tokens=30_000)))),
                priority=draw(st.integers(1, 5)),
            )
        )
    return found


def there(host: FakeHost, wishes: list[DesiredServer]) -> World:
    """A world in which the models behave as their sizes say."""
    for server in wishes:
        ways = server.settings.get("tensor_parallel_size")
        beside, needs = (size / (ways.value if ways else 1) for size in SIZES[server.model])  # type: ignore[operator]
        host.kernel.behaviours[server.id.slug] = Behaviour(beside_gib=beside, needs_gib=needs, context=4096)
    return World(fleet(*wishes), {"h1": host})


def files(world: World) -> dict[ServerId, Checkpoint]:
    """What is known of each model."""
    return {each.id: Checkpoint(config=CONFIGS[each.model], tensors=None, source="") for each in world.desired.servers}


def told(change: Change) -> str:
    """A change in one line."""
    fields = ", ".join(f"{field.path} {field.before} → {field.after}" for field in change.fields)
    order = f"early={change.early} frees={change.frees}"
    return f"{change.server} {change.action} {order} {fields} {change.placed and change.placed.reasons}"


def settled(world: World) -> None:
    """Apply until nothing is left to do: what was measured may make room that was not predicted, once or twice."""
    for _ in range(3):
        plan = world.plan(models=files(world))
        outcome = apply(world, plan)
        failed = [str(each.failure) for each in outcome.results if each.status == "failed"]
        assert not failed, "\n".join([*failed, *map(told, plan.changes)])
        again = world.plan(models=files(world))
        blocked = {change.server for change in plan.changes if change.action is Action.BLOCKED}
        still = {change.server for change in again.changes if change.action is Action.BLOCKED}
        assert still <= blocked, "\n".join([*map(told, plan.changes), "then", *map(told, again.changes)])
        if still == blocked:
            break
    assert not again.pending, [(str(change.server), change.action, change.fields) for change in again.pending]


@LAWS
@given(wishes=servers(), gpus=st.integers(1, 3))
def test_what_is_placed_starts_and_stays(wishes: list[DesiredServer], gpus: int) -> None:
    """A start that found less memory than was promised would fail."""
    settled(there(FakeHost("h1", gpus=gpus), wishes))


@LAWS
@given(first=servers(), then=servers(), gpus=st.integers(1, 3))
def test_one_fleet_becomes_another(first: list[DesiredServer], then: list[DesiredServer], gpus: int) -> None:
    """Whoever goes, comes, moves, shrinks or grows: each start finds its memory; what goes frees it first."""
    host = FakeHost("h1", gpus=gpus)
    settled(there(host, first))
    named = {server.id for server in then}
    gone = [replace(server, state=DesiredState.ABSENT, port=9000 + at) for at, server in enumerate(first)]
    settled(there(host, [*then, *(server for server in gone if server.id not in named)]))

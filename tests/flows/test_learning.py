"""What vLLM measured, kept after an apply: on hosts in memory that have GPUs, and where something is in the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.lab.applying import Witness, run_of
from tests.lab.fake_gpus import GIB
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour, Refusal
from tests.lab.gpu_views import CONFIGS, H100, card, machine, seen
from tests.lab.worlds import World, only, wanted, world
from vmreconcile.core.gpus.keys import memory_key
from vmreconcile.core.gpus.knowledge import lore_of
from vmreconcile.core.tuning import tuned
from vmreconcile.flows.execute import execute
from vmreconcile.flows.learning import learn, started_on
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.gpus import Figures, Measured
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Endpoint
from vmreconcile.model.outcome import Outcome
from vmreconcile.model.plan import Action
from vmreconcile.model.tuning import Manner, Match, Rule
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.memory.arguments import planned
from vmreconcile.vllm.memory.gpus import gpu_of
from vmreconcile.vllm.memory.predict import predict
from vmreconcile.vllm.memory.reading import read_shape
from vmreconcile.vllm.memory.stored import Checkpoint

CUDA = gpu_of("H100").total
ROUNDED = GIB // 100
"""A log has two decimals of a GiB."""

BEHAVIOUR = Behaviour(beside_gib=17.0, needs_gib=1.75, context=32768)
SHARE: dict[str, JsonValue] = {"gpu_memory_utilization": 0.8}


def there(args: dict[str, JsonValue] | None = None, *, systemd: int | None = 252, gpus: int = 1) -> World:
    """One server on a host with H100s."""
    found = world(wanted(args=SHARE if args is None else args), hosts=[FakeHost("h1", gpus=gpus, systemd=systemd)])
    found.hosts["h1"].kernel.behaviours["m"] = BEHAVIOUR
    return found


def applied(
    there: World, model_files: Callable[[ServerId], Checkpoint | None] | None = None
) -> tuple[Outcome, list[str]]:
    """Apply; how it went, and what was said of servers beside that they were waited for."""
    witness = Witness()
    run = run_of(there, witness)
    if model_files is not None:
        run = replace(run, model_files=model_files)
    outcome = execute(there.plan(), run)
    return outcome, [line for _, line in witness.waited if "measured" in line]


def measured(there: World) -> Measured | None:
    """What the host's record holds of it."""
    record = there.observe().hosts[0].server("m").record
    assert record is not None
    return record.measured


@pytest.mark.parametrize("systemd", [252, None])
def test_what_vllm_measured_is_in_the_record(systemd: int | None) -> None:
    """Everything that its log and its metrics tell, and for what it holds."""
    world = there(systemd=systemd)
    outcome, said = applied(world)
    assert ([result.status for result in outcome.results], said) == (["changed"], [])
    found = measured(world)
    assert found is not None
    assert (found.gpu, found.gpu_memory, found.vllm_version) == (H100, CUDA, "0.32.0")
    assert (found.utilization, found.max_model_len, found.predicted) == (0.8, 32768, None)
    assert found.key == memory_key(world.desired.servers[0])
    figures = found.figures
    assert figures.weights == round(15.3 * GIB)
    assert figures.beside == pytest.approx(17 * GIB, abs=ROUNDED)
    assert figures.kv_bytes == pytest.approx(0.8 * CUDA - 17 * GIB, abs=ROUNDED)
    assert figures.kv_tokens == pytest.approx((0.8 * CUDA - 17 * GIB) / 57344, rel=0.001)
    assert figures.graphs == round(0.34 * GIB)


def test_placing_finds_it() -> None:
    """By the same key, kind of GPU and version, on any host of the fleet."""
    world = there()
    applied(world)
    (key,) = lore_of(world.observe(), {}).measured
    assert key == (memory_key(world.desired.servers[0]), H100, "0.32.0")


@pytest.mark.parametrize("systemd", [252, None])
def test_it_is_no_drift_and_outlives_what_comes_next(systemd: int | None) -> None:
    """In sync right after; a restart with other settings takes the new one, a stop keeps the last."""
    world = there(systemd=systemd)
    applied(world)
    first = measured(world)
    assert only(world.plan()).action is Action.NOOP
    world.want(wanted(args={"gpu_memory_utilization": 0.9, "max_num_seqs": 64}))
    applied(world)
    second = measured(world)
    assert first is not None
    assert second is not None
    assert second.key != first.key
    assert second.figures.beside == pytest.approx(first.figures.beside, abs=2 * ROUNDED)
    assert (second.figures.kv_tokens or 0) > (first.figures.kv_tokens or 0)
    world.change(lambda server: replace(server, state=DesiredState.STOPPED))
    applied(world)
    assert not world.pids()
    assert measured(world) == second


def test_the_prediction_stands_beside_it() -> None:
    """For the settings that were started, on that GPU, with that version."""
    checkpoint = Checkpoint(config=CONFIGS["qwen2.5-7b"], tensors=None, source="tests")
    world = there({"gpu_memory_utilization": 0.8, "enforce_eager": True})
    applied(world, lambda server: checkpoint if server.model == "m" else None)
    found = measured(world)
    assert found is not None
    assert found.figures.graphs is None
    arguments: dict[str, JsonValue] = {"gpu_memory_utilization": 0.8, "enforce_eager": True}
    expected = predict(planned(read_shape(checkpoint.config), arguments, gpu_of("H100"), "0.32.0"))
    assert found.predicted == Figures(
        weights=expected.terms.weights,
        beside=expected.terms.total,
        graphs=0,
        kv_bytes=expected.kv_bytes,
        kv_tokens=expected.tokens,
    )


@pytest.mark.parametrize(
    "config", [{}, {"architectures": ["Mystery"]}, {**CONFIGS["qwen2.5-7b"], "num_attention_heads": 7}]
)
def test_a_model_that_nobody_can_predict(config: dict[str, JsonValue]) -> None:
    """What was measured is kept all the same."""
    world = there({"tensor_parallel_size": 2}, gpus=2)
    _, said = applied(world, lambda _: Checkpoint(config=config, tensors=None, source="tests"))
    found = measured(world)
    assert found is not None
    assert (found.predicted, said) == (None, [])


def test_the_least_of_its_gpus_counts() -> None:
    """A group over two kinds is as large as its smallest."""
    cards = (card(0, held={100: 41}), card(1, name="NVIDIA L40S", total=46068 << 20, held={100: 41}), card(2))
    started = started_on(machine(cards, seen("m", 100, "--tensor-parallel-size 2")), wanted("m@h1"))
    assert started is not None
    assert (started.gpu, started.settings["tensor_parallel_size"]) == (gpu_of("L40S"), 2)


@pytest.mark.parametrize(
    ("args", "said", "share"),
    [
        ("--gpu-memory-utilization 0.5", {"gpu_memory_utilization": "0.7"}, 0.7),
        ("--gpu-memory-utilization 0.5", {}, 0.5),
        ("--gpu-memory-utilization 0.5", {"gpu_memory_utilization": "much"}, 0.5),
        ("", {"gpu_memory_utilization": "nan"}, 0.92),
        ("", {}, 0.92),
    ],
)
def test_the_share_is_what_runs(args: str, said: dict[str, str], share: float) -> None:
    """As the metrics say; without them as it was told; else by its version's default."""
    server = replace(seen("m", 100, args), endpoint=Endpoint(port=8001, health=200, cache_config=said))
    started = started_on(machine(1, server), wanted("m@h1"))
    assert started is not None
    assert started.utilization == share


def test_what_does_not_run_or_is_on_no_gpu_has_not_started() -> None:
    """Nor one of which the version is not known."""
    assert started_on(machine(1), wanted("m@h1")) is None
    assert started_on(machine(0, seen("m", 100)), wanted("m@h1")) is None
    assert started_on(replace(machine(1, seen("m", 100)), vllm=()), wanted("m@h1")) is None


def test_a_key_counts_what_tuning_rules_set() -> None:
    """As placing does."""
    rule = Rule(name="r", match=Match(model="*"), sets={"max_num_seqs": (Manner.VALUE, 64)}, reason="so")
    world = there()
    world.change(lambda server: replace(server, rules=(rule,)))
    applied(world)
    found, plain = measured(world), world.desired.servers[0]
    assert found is not None
    host = world.observe().hosts[0]
    assert found.key == memory_key(tuned(plain, host, catalogue_for("0.32.0"))[0]) != memory_key(plain)


def test_a_log_that_is_gone() -> None:
    """The metrics tell the tokens; what nobody tells is not known."""
    world = there()
    host = world.hosts["h1"]
    ask = host.request

    def without_log(payload: dict[str, JsonValue], **options: object) -> object:
        if payload["do"] == "log":
            host.kernel.logs.clear()
        return ask(payload, **options)  # type: ignore[arg-type]

    host.request = without_log  # type: ignore[method-assign,assignment]
    applied(world)
    found = measured(world)
    assert found is not None
    assert found.figures.kv_tokens
    assert found.figures == Figures(kv_tokens=found.figures.kv_tokens)


def test_a_look_at_what_is_left_of_a_log_loses_nothing() -> None:
    """A new token goes into the env file while the server goes on; its log has become long, and its head is gone."""
    world = there()
    applied(world)
    first = measured(world)
    assert first is not None
    world.hosts["h1"].kernel.logs["m"] = ['INFO:     127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK']
    asked = len(world.hosts["h1"].requests)
    learn(world.desired.servers[0], run_of(world))
    assert [request["do"] for request in world.hosts["h1"].requests[asked:]] == ["observe", "log", "steps"]
    assert measured(world) == first


def test_without_a_gpu_nothing_is_asked_and_nothing_said() -> None:
    """A vLLM on a CPU, or a host whose driver does not answer."""
    world = there(gpus=0)
    outcome, said = applied(world)
    assert ([result.status for result in outcome.results], said, measured(world)) == (["changed"], [], None)
    asked = [request["do"] for request in world.hosts["h1"].requests]
    assert "log" not in asked
    assert all(step["step"] != "note-measured" for step in world.hosts["h1"].done)


def test_what_cannot_be_kept_fails_nothing() -> None:
    """One line says so; the server is ready."""
    world = there()
    world.hosts["h1"].failing["note-measured"] = Refusal("disk-full", "No space left on device")
    outcome, said = applied(world)
    assert [result.status for result in outcome.results] == ["changed"]
    assert said == ["what it measured could not be kept: No space left on device"]
    assert only(world.plan()).action is Action.NOOP


def test_a_server_that_moved_meanwhile_is_somebody_elses() -> None:
    """Another run restarted it: that one learns."""
    world = there()
    world.hosts["h1"].failing["note-measured"] = Refusal("moved", "m was planned for another process")
    assert applied(world)[1] == []


def test_a_bug_fails_nothing() -> None:
    """Whatever is raised by reading and predicting."""

    def broken(server: ServerId) -> Checkpoint | None:
        raise KeyError(server)

    world = there()
    outcome, said = applied(world, broken)
    assert [result.status for result in outcome.results] == ["changed"]
    assert said == ["what it measured could not be read (KeyError)"]


def test_nothing_is_learned_once_the_person_asked_to_stop() -> None:
    """Ctrl-C while the server was waited for: it is ready, and that is all."""
    world = there()
    witness = Witness()
    run = run_of(world, witness)
    ready = world.hosts["h1"].gate

    def last(request: dict[str, JsonValue]) -> object:
        run.stopping.set()
        return ready(request)

    world.hosts["h1"].gate = last  # type: ignore[method-assign,assignment]
    assert [result.status for result in execute(world.plan(), run).results] == ["changed"]
    assert measured(world) is None

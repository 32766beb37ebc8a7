"""Tensors told shortly by the agent and made whole here are the tensors of the files; the fake host answers alike."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.agent.driver import Agent
from tests.lab.fake_host import FakeHost
from tests.lab.tiny_model import write_model
from tests.vllm.memory.recorded import MODELS
from tests.vllm.memory.test_weights import plan, stored
from vmreconcile.agent import checkpoint
from vmreconcile.effects.checkpoint import read_folder
from vmreconcile.effects.host_checkpoints import expanded, host_checkpoints
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.stored import Tensor, total_bytes, weigh_stored


def sent(tensors: list[Tensor]) -> list[JsonValue]:
    """Tensors as rows of the wire, through JSON."""
    rows = checkpoint.grouped({each.name: (each.dtype, each.shape) for each in tensors})
    made: list[JsonValue] = json.loads(json.dumps(rows))
    return made


PARTS = st.sampled_from(["model", "layers", "0", "1", "2", "3", "10", "007", "*", "", "9999999", "\u0663", "w1", "-1"])
NAMES = st.lists(PARTS, min_size=1, max_size=6).map(".".join)
KINDS = st.tuples(st.sampled_from(["BF16", "F32"]), st.sampled_from([(), (4,), (4, 8)]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, KINDS, min_size=1, max_size=40))
@example({"a.*": ("F32", ()), "a.0": ("F32", ()), "a.1": ("F32", ()), "a.*.0": ("F32", ())})
def test_every_name_comes_back(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Whatever numbers, stars and dots are in it, with its own dtype and shape."""
    made = [Tensor(name=name, dtype=dtype, shape=shape) for name, (dtype, shape) in sorted(tensors.items())]
    assert expanded(sent(made)) == tuple(made)


def experts(config: Mapping[str, JsonValue]) -> list[Tensor]:
    """A mixture of experts in fp8 with scales, its first layer dense, as DeepSeek's checkpoints are."""
    layers, count, hidden = int(str(config["num_hidden_layers"])), 64, int(str(config["hidden_size"]))
    made = [("model.embed_tokens.weight", "BF16", (1000, hidden)), ("lm_head.weight", "BF16", (1000, hidden))]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        made += [
            (f"{at}.self_attn.k_proj.weight", "BF16", (256, hidden)),
            (f"{at}.input_layernorm.weight", "F32", (hidden,)),
        ]
        parts = [f"{at}.mlp.experts.{expert}" for expert in range(count)] if layer else [f"{at}.mlp"]
        for part in parts:
            made += [
                (f"{part}.up_proj.weight", "F8_E4M3", (hidden, 704)),
                (f"{part}.up_proj.weight_scale_inv", "F32", (16, 6)),
            ]
    made.append((f"model.layers.{layers}.mlp.experts.0.up_proj.weight", "BF16", (hidden, 704)))
    return [Tensor(name=name, dtype=dtype, shape=shape) for name, dtype, shape in made]


@pytest.mark.parametrize(
    ("name", "made", "rows"),
    [
        *((name, stored, 13) for name in ("llama-3.1-8b", "qwen2.5-72b", "mistral-7b-v0.1", "codellama-7b")),
        *((name, experts, 9) for name in ("deepseek-v2-lite", "qwen3-30b-a3b", "mixtral-8x7b")),
    ],
)
@pytest.mark.parametrize(("parallel", "stages"), [(1, 1), (2, 1), (4, 2)])
def test_weights_are_the_same_to_the_byte(
    name: str, made: Callable[[dict[str, JsonValue]], list[Tensor]], rows: int, parallel: int, stages: int
) -> None:
    """Weighed as they are, and as they came over the wire in a few rows."""
    tensors = sorted(made(MODELS[name]), key=lambda each: each.name)
    short = sent(tensors)
    assert len(short) == rows
    plans = plan(MODELS[name], tensor_parallel_size=parallel, pipeline_parallel_size=stages)
    whole = expanded(short)
    assert weigh_stored(whole, plans.shape, plans.serving) == weigh_stored(tensors, plans.shape, plans.serving)
    assert (whole, total_bytes(whole)) == (tuple(tensors), total_bytes(tensors))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small model with real files."""
    return write_model(tmp_path / "tiny")


def test_a_folder_is_read_alike_by_both(tiny: Path) -> None:
    """The agent's own reading, made whole here, is what the controller reads of the same folder."""
    direct = read_folder(tiny)
    rows = checkpoint.read_tensors(str(tiny), time.monotonic() + 60)
    assert rows is not None
    assert expanded(json.loads(json.dumps(rows))) == direct.tensors
    assert checkpoint.read_config(str(tiny)) == direct.config


@pytest.fixture(params=["fake", "real"])
def host(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path) -> Iterator[FakeHost | Agent]:
    """Either, with the small model at its path."""
    if request.param == "fake":
        fake = FakeHost("h1")
        rows = sent(list(read_folder(tiny).tensors or ()))
        fake.checkpoints[str(tiny)] = {"config": json.loads((tiny / "config.json").read_text()), "tensors": rows}
        yield fake
        return
    agent = Agent(tmp_path)
    yield agent
    agent.close()


def test_both_hosts_answer_alike(host: FakeHost | Agent, tiny: Path) -> None:
    """One row a server, in the order in which they were asked about; what is not there is null."""
    models = [
        {"slug": slug, "model": model, "revision": "", "env": {}}
        for slug, model in (("z", str(tiny)), ("a", "org/none"))
    ]
    if isinstance(host, FakeHost):
        answer = host.request({"do": "checkpoint", "models": models}, timeout=60.0)
    else:
        answer = host.ask("checkpoint", models=models)[0]
    rows = answer["checkpoints"]
    assert [set(row) for row in rows] == [{"slug", "config", "tensors"}] * 2
    assert [row["slug"] for row in rows] == ["z", "a"]
    assert (rows[1]["config"], rows[1]["tensors"]) == (None, None)
    found = host_checkpoints(answer, {"z": str(tiny), "a": "nowhere"})
    assert found == {"z": read_folder(tiny)}

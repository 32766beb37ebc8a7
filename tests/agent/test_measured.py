"""What vLLM measured, kept by the real agent in the record of a server of ours."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from tests.agent.conftest import SLUG, World
from tests.agent.driver import Refused
from vmreconcile.agent import jsontext
from vmreconcile.agent.measured import FIGURES, LONGEST, NUMBERS, check
from vmreconcile.core.gpus.figures import record_json
from vmreconcile.effects.observe import host_view
from vmreconcile.model.gpus import Figures, Measured

FOUND = Measured(
    key="0123456789abcdef",
    gpu="NVIDIA H100 80GB HBM3",
    gpu_memory=85_017_755_648,
    vllm_version="0.32.0",
    utilization=0.9,
    max_model_len=8192,
    figures=Figures(weights=1 << 34, beside=3 << 33, kv_bytes=1 << 35, kv_tokens=872_992),
    predicted=Figures(weights=1 << 34, beside=3 << 33, graphs=0, kv_bytes=-5, kv_tokens=870_100),
)


def step(answer: dict[str, Any], measured: Measured = FOUND) -> dict[str, Any]:
    """The step that keeps it, for a root that the agent has started."""
    root = {name: answer[name] for name in ("pid", "start_ticks")}
    return {"step": "note-measured", "slug": SLUG, **root, "measured": record_json(measured)}


def test_it_comes_back_as_it_went(world: World) -> None:
    """Into a private file, through the wire, and out of an observation; everything else of the record stays."""
    answer = world.start()
    before = world.record()
    assert world.agent.steps(step(answer))[0]["changed"] is True
    path = Path(world.path(f"state/servers/{SLUG}.json"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {name: value for name, value in world.record().items() if name != "measured"} == before
    record = host_view("h1", "00" * 8, {"observation": world.agent.observe()}).server(SLUG).record
    assert record is not None
    assert record.measured == FOUND


def test_a_later_one_takes_its_place_and_a_removal_takes_it_away(world: World) -> None:
    """One measurement a server; with the record it goes."""
    answer = world.start()
    later = Measured(key="ff", gpu="NVIDIA L4", gpu_memory=1, vllm_version="0.33.0", utilization=0.5)
    world.agent.steps(step(answer), step(answer, later))
    assert world.record()["measured"] == record_json(later)
    world.agent.steps(world.stop_step(), {"step": "remove-server", "slug": SLUG})
    assert not Path(world.path(f"state/servers/{SLUG}.json")).exists()


def test_a_start_that_fails_before_it_is_vllm_loses_nothing(world: World) -> None:
    """The old record comes back."""
    answer = world.start()
    world.agent.steps(step(answer), world.stop_step())
    with pytest.raises(Refused):
        world.agent.steps(world.spawn(cwd=f"{world.root}/nowhere"))
    assert world.record()["measured"] == record_json(FOUND)


def test_a_record_that_others_may_write_is_not_believed(world: World) -> None:
    """The process is then no server of ours, and nothing is kept for it."""
    answer = world.start()
    path = Path(world.path(f"state/servers/{SLUG}.json"))
    path.chmod(0o666)
    with pytest.raises(Refused) as refused:
        world.agent.steps(step(answer))
    assert refused.value.kind == "moved"
    path.chmod(0o600)


def test_a_wrong_one_is_refused_before_the_first_step(world: World) -> None:
    """As any step that is malformed."""
    wrong = {**step({"pid": 1, "start_ticks": 1}), "measured": {"key": "ff"}}
    with pytest.raises(Refused) as refused:
        world.agent.steps(world.write_env(A="1"), wrong)
    assert (refused.value.kind, refused.value.answer["index"]) == ("bad-request", 1)
    assert not Path(world.env_path).exists()


def test_the_largest_is_small() -> None:
    """A record is read on each look at a host."""
    figures = dict.fromkeys(FIGURES, -1.2345678901234568e-300)
    letters = {"gpu": "\U0001f600" * LONGEST, "vllm_version": "\U0001f600" * LONGEST, "key": "f" * LONGEST}
    largest = {**letters, **dict.fromkeys(NUMBERS, -1.2345678901234567e-300), "figures": figures, "predicted": figures}
    check(largest)
    assert 5000 < len(jsontext.dumps(largest)) < 8192

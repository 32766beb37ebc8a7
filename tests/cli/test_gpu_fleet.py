"""Hosts with eight GPUs and twenty models: all placed, twice the same, and each conflict of a bad fleet told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.desk import Desk, make_desk
from tests.lab.fake_host import FakeHost
from tests.lab.gpu_views import CONFIGS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = {"qwen2.5-72b": 4, "gemma-2-27b": 2}
SMALL = (
    *("llama-3.1-8b", "granite-3.1-2b", "phi-2", "gemma-2-2b", "gemma-3-1b", "opt-1.3b", "gpt2-xl", "gemma-3-4b"),
    "pythia-6.9b",
)


def model_file(name: str, config: str, port: int, args: str, rest: str = "") -> str:
    """A model of every host of the fleet."""
    return f"name: {name}\nmodel: org/{config}\nhosts: gpu\nport: {port}\nargs: {{enforce_eager: true{args}}}\n{rest}"


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Two hosts with eight H100s each; the models' configurations are in the Hub's cache of this machine."""
    desk = make_desk(tmp_path, capsys, monkeypatch)
    (tmp_path / "models.d" / "qwen.yaml").unlink()
    desk.hosts = {name: FakeHost(name, gpus=8) for name in ("gpu1", "gpu2")}
    for name in (*LARGE, *SMALL, "qwen2.5-7b"):
        place = f".cache/huggingface/hub/models--org--{name}"
        desk.write(f"{place}/refs/main", COMMIT)
        desk.write(f"{place}/snapshots/{COMMIT}/config.json", json.dumps(CONFIGS[name]))
    return desk


def twenty(desk: Desk) -> None:
    """Twenty models: two large ones on six GPUs, and eighteen on the other two."""
    for port, (name, ways) in enumerate(LARGE.items(), start=8001):
        args = f", tensor_parallel_size: {ways}, max_model_len: 4096"
        desk.write(f"models.d/{name}.yaml", model_file(name, name, port, args))
    small = [(name, twin) for twin in ("a", "b") for name in SMALL]
    for port, (name, twin) in enumerate(small, start=8101):
        args = ", max_model_len: 1024, max_num_batched_tokens: 2048, max_num_seqs: 32"
        desk.write(f"models.d/{name}-{twin}.yaml", model_file(f"{name}-{twin}", name, port, args))


def test_twenty_models_on_eight_gpus(desk: Desk) -> None:
    """All placed on both hosts, the same way; a GPU is never promised more than once; the second plan is the first."""
    twenty(desk)
    said = desk("plan", "--json")
    plan = said.json
    assert said.code == 0, said.err
    assert plan["summary"]["start"] == 40
    assert plan["summary"]["blocked"] == 0
    assert desk("plan", "--json").out == said.out
    assert desk("plan", "--forks", "1", "--json").out == said.out
    taken: dict[str, float] = {}
    for row in plan["placements"]:
        for device in row["devices"]:
            taken[device] = taken.get(device, 0.0) + row["settings"].get("gpu_memory_utilization", 0.92)
    assert len(taken) == 16
    assert all(0.9 <= share < 1.0 for share in taken.values()), taken
    for name, ways in LARGE.items():
        (row,) = [row for row in plan["placements"] if row["server"] == f"{name}@gpu1"]
        assert len(row["devices"]) == ways
    text = desk("plan").out
    assert "GPU 0, GPU 1, GPU 2, GPU 3, alone: free" in text
    assert "no GPU is free, it has the most room" in text
    assert "40 to start" in text


def test_what_is_placed_runs_and_stays(desk: Desk) -> None:
    """Apply starts all of them, and then there is nothing to do."""
    twenty(desk)
    said = desk("apply", "-y", "--json")
    assert (said.code, said.json["changed"]) == (0, 40), said.err
    again = desk("plan", "--json").json
    assert again["summary"] | {"noop": 0} == dict.fromkeys(again["summary"], 0)
    assert again["summary"]["noop"] == 40


def test_a_rule_that_asks_for_most_of_a_gpu(desk: Desk) -> None:
    """Qwen2.5 gets 0.8, so two of them share no GPU, unless somebody writes a number."""
    desk.hosts = {name: FakeHost(name, gpus=1) for name in desk.hosts}
    length = ", max_model_len: 1024"
    desk.write("models.d/a.yaml", model_file("a", "qwen2.5-7b", 8001, length))
    desk.write("models.d/b.yaml", model_file("b", "qwen2.5-7b", 8002, length))
    said = desk("plan")
    assert "GPU 0: 79.2 GiB, 63.3 needed (a tuning rule asks for 0.8); a takes 63.3 GiB" in said.out
    desk.write("models.d/b.yaml", model_file("b", "qwen2.5-7b", 8002, f"{length}, gpu_memory_utilization: 0.18"))
    plan = desk("plan", "--json").json
    assert (plan["summary"]["start"], plan["summary"]["blocked"]) == (4, 0)


def test_each_conflict_of_a_bad_fleet_is_told(desk: Desk) -> None:
    """GPUs that are not there, sums above one, a stranger's memory, too many GPUs, and a model that cannot fit."""
    written = ", gpu_memory_utilization: 0.6, max_model_len: 1024"
    desk.write("models.d/a.yaml", model_file("a", "qwen2.5-7b", 8001, written, "gpus: [0]\n"))
    desk.write("models.d/b.yaml", model_file("b", "qwen2.5-7b", 8002, written, "gpus: [0]\n"))
    desk.write("models.d/c.yaml", model_file("c", "qwen2.5-7b", 8003, written, "gpus: [8]\n"))
    desk.write("models.d/d.yaml", model_file("d", "qwen2.5-7b", 8004, written, "gpus: [1]\n"))
    desk.write("models.d/e.yaml", model_file("e", "qwen2.5-72b", 8005, "", "needs: {kv_tokens: 4096}\n"))
    large = model_file("f", "qwen2.5-72b", 8006, ", tensor_parallel_size: 8, gpu_memory_utilization: 0.9")
    desk.write("models.d/f.yaml", large)
    for host in desk.hosts.values():
        host.hold(1, 4711, 41.2, what="python train.py")
    said = desk("plan", "--json")
    reasons = {row["server"]: row["reason"] for row in said.json["changes"] if row["action"] == "blocked"}
    expected = {
        "b": "gpu_overcommitted",
        "c": "gpu_missing",
        "d": "gpu_memory_held",
        "e": "does_not_fit",
        "f": "too_few_gpus",
    }
    assert reasons == {f"{name}@{host}": reason for name, reason in expected.items() for host in ("gpu1", "gpu2")}
    text = desk("plan").out
    assert "GPU 0 has 79.2 GiB; a asks for 0.6 of it, 47.5 GiB (models.d/a.yaml:5:29), b asks for 0.6 of it" in text
    assert "there is no GPU 8 here, only 0, 1, 2, 3, 4, 5, 6, 7" in text
    assert "GPU 1: 41.2 of 79.2 GiB held, 41.2 by pid 4711 (not ours: python train.py)" in text
    assert "it needs" in text
    assert "no room for 8 GPUs. GPU 0: 79.2 GiB, 71.3 asked for; a takes 47.5 GiB" in text
    assert "Traceback" not in text


def test_a_plan_file_that_prunes_may_use_what_it_frees(desk: Desk) -> None:
    """The GPU of a server that no file wants any more goes to another one, also when the plan is carried out later."""
    desk.hosts = {name: FakeHost(name, gpus=1) for name in desk.hosts}
    desk.write("models.d/a.yaml", model_file("a", "qwen2.5-7b", 8001, ", gpu_memory_utilization: 0.9"))
    assert desk("apply", "-y").code == 0
    (desk.folder / "models.d" / "a.yaml").unlink()
    desk.write("models.d/b.yaml", model_file("b", "qwen2.5-7b", 8002, ", gpu_memory_utilization: 0.9"))
    assert desk("plan", "--prune", "-o", "p.json").code == 0
    said = desk("apply", "p.json", "-y", "--json")
    assert (said.code, said.json["changed"]) == (0, 4), said.err

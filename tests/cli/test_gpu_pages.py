"""What docs/gpus.md shows is what the tool prints: each example is run on hosts in memory and looked for in the page.

Also how the same reads on a terminal of 80 columns.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.lab.desk import Desk, Said, make_desk
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.gpu_views import CONFIGS
from vmreconcile.cli.render_errors import failure_text
from vmreconcile.cli.terminal import Style
from vmreconcile.model.names import ServerId
from vmreconcile.model.outcome import Failure, Result, Status
from vmreconcile.model.plan import Action

PAGE = (Path(__file__).parents[2] / "docs/gpus.md").read_text(encoding="utf-8")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODELS = {"llama-3.1-8b": "meta-llama/Llama-3.1-8B", "gemma-2-2b": "google/gemma-2-2b"}


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """No host yet; the configurations of two models are in the Hub's cache of this machine."""
    desk = make_desk(tmp_path, capsys, monkeypatch)
    (tmp_path / "models.d" / "qwen.yaml").unlink()
    desk.hosts = {}
    for name, model in MODELS.items():
        place = f".cache/huggingface/hub/models--{model.replace('/', '--')}"
        desk.write(f"{place}/refs/main", COMMIT)
        desk.write(f"{place}/snapshots/{COMMIT}/config.json", json.dumps(CONFIGS[name]))
    return desk


def there_is(desk: Desk, host: str, variables: str = "", **options: object) -> FakeHost:
    """Make the desk's inventory one host."""
    desk.write("inventory/hosts.yml", f"gpu:\n  hosts:\n    {host}:\n{variables}")
    desk.hosts[host] = FakeHost(host, **options)  # type: ignore[arg-type]  # its own
    return desk.hosts[host]


def served(desk: Desk, name: str, port: int, rest: str = "", model: str = "") -> None:
    """Write a model's file."""
    text = f"name: {name}\nmodel: {model or MODELS.get(name, f'org/{name}')}\nhosts: gpu\nport: {port}\n{rest}"
    desk.write(f"models.d/{name}.yaml", text)


def shared(desk: Desk) -> None:
    """Two models on one GPU, of which one says what it needs."""
    there_is(desk, "gpu2", gpus=1)
    eager = "args: {enforce_eager: true, max_model_len: 8192}\n"
    served(desk, "llama-3.1-8b", 8001, f"{eager}needs: {{kv_tokens: 200k}}\n")
    served(desk, "gemma-2-2b", 8002, eager)


def body(said: Said) -> str:
    """A plan without its summary."""
    return said.out.rpartition("\n\n")[0]


def test_free_gpus(desk: Desk) -> None:
    """The first example: one model on two GPUs side by side, another one on the next."""
    there_is(desk, "gpu1", gpus=4)
    served(desk, "mixtral", 8001, "args: {tensor_parallel_size: 2}\n")
    served(desk, "llama-3.1-8b", 8002)
    assert f"$ vmreconcile plan\n{body(desk('plan'))}\n```" in PAGE


def test_a_shared_gpu(desk: Desk) -> None:
    """How much each gets, and why."""
    shared(desk)
    assert f"```\n{body(desk('plan'))}\n```" in PAGE


def test_more_than_a_gpu_has(desk: Desk) -> None:
    """Two fit, the third is blocked."""
    there_is(desk, "gpu3", gpus=1)
    for port, name in enumerate("abc", start=8001):
        served(desk, name, port, "gpus: [0]\nargs: {gpu_memory_utilization: 0.45}\n")
    assert f"```\n{body(desk('plan'))}\n```" in PAGE


def test_two_halves_are_more_than_one(desk: Desk) -> None:
    """CUDA's own memory is named, for the numbers alone would come to just what there is."""
    there_is(desk, "gpu3", gpus=1)
    for port, name in enumerate("ab", start=8001):
        served(desk, name, port, "gpus: [0]\nargs: {gpu_memory_utilization: 0.5}\n")
    assert re.search(
        r"blocked +b .*39\.6 GiB .*39\.6 GiB .*; CUDA takes 0\.5 more for each$", desk("plan").out, re.MULTILINE
    )


def test_a_host_under_repair(desk: Desk) -> None:
    """A cordon with its reason."""
    there_is(desk, "gpu1", "      vllm_cordon: its memory is exchanged\n", gpus=1)
    served(desk, "llama-3.1-8b", 8001)
    assert f"```\n{body(desk('plan'))}\n```" in PAGE


def test_a_start_that_a_person_must_mend(desk: Desk) -> None:
    """The number that would do, and the line to change."""
    host = there_is(desk, "gpu1", gpus=1)
    served(desk, "m", 8001, "args:\n  max_model_len: 8192\n  gpu_memory_utilization: 0.2\n")
    host.kernel.behaviours["m"] = Behaviour(beside_gib=16.72, needs_gib=1.0, context=8192)
    said = desk("apply", "-y")
    failure = said.out[said.out.index("m@gpu1: ") : said.out.index("\nchanged: ")]
    assert said.code == 1
    assert f"```\n{failure}\n```" in PAGE


def test_a_start_that_is_mended(desk: Desk) -> None:
    """Told once, with the server's name once, and the end is a server that runs."""
    host = there_is(desk, "gpu1", gpus=1)
    served(desk, "llama-3.1-8b", 8001, "needs: {kv_tokens: 20k}\nargs: {enforce_eager: true, max_model_len: 8192}\n")
    host.kernel.behaviours["llama-3.1-8b"] = Behaviour(beside_gib=22.0, needs_gib=1.0, context=8192)
    said = desk("apply", "-y")
    (line,) = [line for line in said.err.splitlines() if "second try" in line]
    assert line in PAGE
    assert said.code == 0


def test_one_value_from_the_file_to_the_server(desk: Desk) -> None:
    """`auto` with a need: plan, its JSON, the plan file, argv, record, status and show say the same number."""
    shared(desk)
    row = next(row for row in desk("plan", "--json").json["placements"] if row["server"] == "llama-3.1-8b@gpu2")
    number = row["settings"]["gpu_memory_utilization"]
    said = f"gpu_memory_utilization {number}: "
    assert row["reasons"][1].startswith(said)
    assert row["reasons"][1].endswith(" for 200,000 tokens")
    assert row["reasons"][1] in desk("plan", "-o", "fleet.plan").out
    (change,) = [each for each in json.loads(desk.read("fleet.plan"))["changes"] if each["model"] == "llama-3.1-8b"]
    assert change["placed"]["settings"] == row["settings"]
    assert change["placed"]["devices"] == row["devices"]
    assert desk("apply", "fleet.plan", "-y").code == 0
    root = desk.hosts["gpu2"].root("llama-3.1-8b")
    assert root is not None
    assert root.argv[root.argv.index("--gpu-memory-utilization") + 1] == str(number)
    assert root.env["CUDA_VISIBLE_DEVICES"] == row["devices"][0]
    shown = desk("show", "llama-3.1-8b@gpu2", "--json").json
    assert shown["desired"]["args"]["gpu_memory_utilization"] == {"value": number, "origin": "tool (as it runs)"}
    assert shown["placement"]["settings"] == row["settings"]
    assert shown["placement"]["devices"] == row["devices"]
    assert shown["memory"]["utilization"] == number
    text = desk("show", "llama-3.1-8b@gpu2").out
    assert f"placed\n  GPU 0, beside gemma-2-2b: it runs there\n  {said}as it runs\n" in text
    (status,) = [each for each in desk("status", "--json").json["servers"] if each["server"] == "llama-3.1-8b@gpu2"]
    assert (status["gpus"], status["memory"]) == ([0], shown["memory"])
    assert desk("plan").out == "gpu2\n  = in sync     gemma-2-2b\n  = in sync     llama-3.1-8b\n\n2 in sync.\n"


def test_the_prediction_is_kept_where_only_this_machine_has_the_files(desk: Desk) -> None:
    """What was planned with stands beside what was measured, though the host's cache is empty."""
    shared(desk)
    assert desk("apply", "-y").code == 0
    memory = desk("show", "llama-3.1-8b@gpu2", "--json").json["memory"]
    assert memory["predicted"]["weights_bytes"] == pytest.approx(15 * (1 << 30), rel=0.01)
    assert re.search(r"[\d,]+ \([-+][\d.]+ %\)", desk("status").out)


def test_a_status_says_what_is_blocked(desk: Desk) -> None:
    """By its reason, beside what differs of a server that runs."""
    there_is(desk, "gpu1", gpus=1)
    served(desk, "llama-3.1-8b", 8001)
    assert desk("apply", "-y").code == 0
    served(desk, "llama-3.1-8b", 8001, "args: {max_num_seqs: 8}\ncordon: true\n")
    served(desk, "m", 8002, "gpus: [4]\n")
    out = desk("status").out
    assert re.search(r"^llama-3\.1-8b@gpu1 .* args\.max_num_seqs; blocked: cordoned$", out, re.MULTILINE)
    assert re.search(r"^m@gpu1 +absent +blocked: gpu_missing$", out, re.MULTILINE)


def test_long_evidence_on_a_narrow_terminal() -> None:
    """Each GPU begins a line of its own, nothing is lost, and words stay whole; a pipe gets whole lines."""
    gpus = "; ".join(f"GPU {n}: 79.2 GiB, 71.3 asked for; 41.2 GiB held by pid 4711 (python train.py)" for n in (0, 1))
    text = f"no room for 8 GPUs. {gpus}"
    lines = Style(fold=80).folded(text, 20)
    assert [line for line in lines if not line.startswith("  ")] == [
        "no room for 8 GPUs.",
        *(f"GPU {n}: 79.2 GiB, 71.3 asked for; 41.2 GiB held by pid 4711" for n in (0, 1)),
    ]
    assert max(map(len, lines)) <= 60
    assert " ".join(line.strip() for line in lines) == text
    assert Style().folded(text, 20) == [text]
    failed = Result(
        server=ServerId.parse("f@gpu1"),
        action=Action.BLOCKED,
        status=Status.SKIPPED,
        failure=Failure(kind="too_few_gpus", summary=text, remedy="stop something there, or " * 5),
    )
    assert max(map(len, failure_text(failed, Style(fold=80)).splitlines())) <= 80


def test_what_was_measured_is_what_the_next_plan_reckons_with(desk: Desk) -> None:
    """From the host's record, also for another server of the same model; no file of the model is needed any more."""
    shared(desk)
    assert desk("apply", "-y").code == 0
    for model in MODELS.values():
        (desk.folder / f".cache/huggingface/hub/models--{model.replace('/', '--')}/refs/main").unlink()
    eager = "args: {enforce_eager: true, max_model_len: 8192}\n"
    served(desk, "llama-3.1-8b", 8001, f"{eager}needs: {{kv_tokens: 700k}}\n")
    (row,) = [each for each in desk("plan", "--json").json["placements"] if each["server"] == "llama-3.1-8b@gpu2"]
    assert row["reasons"][1].endswith("3.2 GiB measured beside the KV cache, 42.7 for 700,000 tokens")

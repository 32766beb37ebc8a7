"""import: the old manager's files of all three generations, good and bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.desk import Desk
from tests.lab.hub import Hub
from tests.lab.worlds import TOKEN

QWEN = {
    "name": "qwen2.5-7b",
    "huggingface_id": "Qwen/Qwen2.5-7B-Instruct",
    "port": 9001,
    "priority": 3,
    "gpu_memory_utilization": 0.3,
    "max_model_len": 2048,
    "tensor_parallel_size": 1,
}
LLAMA = {
    "name": "llama",
    "huggingface_id": "meta-llama/Llama-3.1-8B",
    "port": 9002,
    "priority": 1,
    "gpu_memory_utilization": 0.45,
    "max_model_len": 8192,
    "tensor_parallel_size": 2,
}
RUNNING = {
    "status": "running",
    "pid": 4711,
    "gpu_memory_mb": 8000,
    "cpu_percent": 3.5,
    "uptime_seconds": 17,
    "start_time": "2025-01-01T00:00:00",
    "last_error": None,
}
GENERATIONS = {
    "models_config.json": ([QWEN, LLAMA], {"indent": 2}),
    ".vllm-manager/models.json": ([QWEN, LLAMA], {"indent": 4}),
    "node/models.json": ([{**QWEN, **RUNNING}, {**LLAMA, **RUNNING}], {"indent": "\t"}),
}


def write(desk: Desk, path: str, models: object, **options: object) -> str:
    """An old file on the desk; its path."""
    desk.write(path, json.dumps({"models": models}, **options))  # type: ignore[arg-type] # json's own options
    return path


@pytest.mark.parametrize("path", sorted(GENERATIONS))
def test_each_generation_comes_back_as_it_was(desk: Desk, path: str) -> None:
    """`list` gives the values of the file again, but for 0.3 on Qwen2.5, which is auto and is told."""
    models, options = GENERATIONS[path]
    said = desk("import", write(desk, path, models, **options), "--hosts", "gpu1")
    assert (said.code, said.out.splitlines()[:3]) == (
        0,
        ["wrote models.d/qwen2.5-7b.yaml", "wrote models.d/llama.yaml", "imported: 2, refused: 0"],
    )
    assert "Qwen2.5: auto here" in said.err
    for choice in ("trust_remote_code", "enforce_eager", "GPU 0", "--disable-log-requests"):
        assert choice in said.err
    found = {each["name"]: each for each in desk("list", "--json").json["models"]}
    for old in (QWEN, LLAMA):
        new = found[old["name"]]
        assert {**new, "huggingface_id": new["model"]}.items() >= {
            **old,
            "gpu_memory_utilization": "auto" if old is QWEN else 0.45,
        }.items()
        assert new["state"] == "stopped"
    assert desk.opened == []
    assert desk("validate").code == 0
    assert not any(word in desk.read("models.d/llama.yaml") for word in ("eager", "remote", "gpus", "pid", "status"))


def test_numbers_are_kept_and_defaults_are_the_old_ones(desk: Desk) -> None:
    """Another number on Qwen2.5 stays; where the file says nothing, what the old manager took is written."""
    other = {**QWEN, "gpu_memory_utilization": 0.6}
    bare = {"name": "bare", "huggingface_id": "org/bare", "port": 9003}
    assert desk("import", write(desk, "m.json", [other, bare]), "--hosts", "gpu1").code == 0
    assert "  gpu_memory_utilization: 0.6\n" in desk.read("models.d/qwen2.5-7b.yaml")
    assert desk.read("models.d/bare.yaml") == (
        "name: bare\nmodel: org/bare\nhosts: gpu1\nport: 9003\nstate: stopped\n"
        "args:\n  gpu_memory_utilization: 0.3\n  max_model_len: 2048\n"
    )


def test_bad_entries_and_unknown_keys_are_reported_and_the_rest_is_imported(desk: Desk) -> None:
    """Each with line and column, the entry's number and what to do; exit 5."""
    models = [
        "nonsense",
        {"name": "a", "port": 9001},
        {"name": "b", "huggingface_id": "org/b", "port": "9001"},
        {"name": "!!", "huggingface_id": "org/b", "port": 9001},
        {"name": "qwen", "huggingface_id": "org/b", "port": 9001},
        {"name": "c", "huggingface_id": "org/c", "port": 8001},
        {"name": "My_Model", "huggingface_id": "org/d", "port": 9005, "dtype": "half", "gpu_memory_utilization": 7},
        {"name": "my-model", "huggingface_id": "org/d", "port": 9006},
    ]
    said = desk("import", write(desk, "m.json", models, indent=1), "--hosts", "gpu1")
    assert said.code == 5
    assert said.out.splitlines() == [
        "wrote models.d/my-model.yaml",
        "imported: 1, refused: 7",
        "Next: vmreconcile list, then vmreconcile start NAME",
    ]
    for expected in (
        "m.json:3:3: Entry 1 is no mapping.",
        "Entry 2 has no huggingface_id.",
        "Entry 3 has the port '9001'.",
        "Entry 4 has the name '!!', of which nothing can be kept.",
        "Entry 5 (qwen): ",
        "Entry 6 (c): Port 8001 on gpu1 is wanted by both",
        "Entry 7 was called 'My_Model' and is my-model here.",
        "Entry 7 has the unknown key 'dtype', left out.",
        "Entry 7 has gpu_memory_utilization 7: the old default 0.3 is taken.",
        "Entry 8 (my-model): ",
    ):
        assert expected in said.err, (expected, said.err)
    assert sorted(path.name for path in Path("models.d").iterdir()) == ["my-model.yaml", "qwen.yaml"]


def test_the_same_import_again_changes_nothing(desk: Desk) -> None:
    """Whatever was started meanwhile; an entry that says something else by now is refused, with the file named."""
    path = write(desk, "m.json", [QWEN, LLAMA])
    assert desk("import", path, "--hosts", "gpu1").code == 0
    desk.change("state: stopped", "state: running", "models.d/llama.yaml")
    before = {path: path.read_text() for path in Path("models.d").iterdir()}
    again = desk("import", path, "--hosts", "gpu1")
    assert again.code == 0, again.err
    assert again.out.splitlines()[:3] == [
        "kept  models.d/qwen2.5-7b.yaml (it was there already)",
        "kept  models.d/llama.yaml (it was there already)",
        "imported: 0, refused: 0, kept: 2",
    ]
    assert "forced" not in again.err
    found = desk("import", path, "--hosts", "gpu1", "--json").json
    assert (found["imported"], [each["name"] for each in found["kept"]]) == ([], ["qwen2.5-7b", "llama"])
    other = desk("import", write(desk, "m.json", [{**QWEN, "port": 9009}]), "--hosts", "gpu1")
    assert (other.code, "Two models" in other.err) == (5, False)
    assert "m.json:1:13: Entry 1 (qwen2.5-7b): 'qwen2.5-7b' is there already: models.d/qwen2.5-7b.yaml." in other.err
    assert {path: path.read_text() for path in Path("models.d").iterdir()} == before


def test_a_key_that_is_given_twice_is_told(desk: Desk) -> None:
    """The last one counts, as for the old manager, and neither is taken in silence."""
    entry = '"name": "a", "huggingface_id": "org/a", "port": 9001'
    for text, place in (
        (f'{{"models": [{{{entry}, "port": 9002}}]}}', "m.json:1:68: "),
        (f'{{\n\t"models": [\n\t{{{entry}, "port": 9002}}]}}', "m.json"),
    ):
        desk.write("m.json", text)
        said = desk("import", "m.json", "--hosts", "gpu1", "--dry-run")
        assert (said.code, f"{place}" in said.err, "The key 'port' is given twice." in said.err) == (0, True, True), (
            said
        )
        assert desk("import", "m.json", "--hosts", "gpu1", "--dry-run", "--json").json["diagnostics"][0]["code"] == (
            "duplicate-key"
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "m.json:1:2: The file is not JSON"),
        ("[]", "holds no mapping"),
        ('{"models": {}}', 'no list "models"'),
        ("[" * 100_000, "m.json"),
        ("\x00", "m.json"),
    ],
)
def test_a_file_that_is_none_is_refused(desk: Desk, text: str, expected: str) -> None:
    """As a whole, with exit 5 and no traceback."""
    desk.write("m.json", text)
    said = desk("import", "m.json", "--hosts", "gpu1")
    assert (said.code, expected in said.err, "Traceback" in said.err) == (5, True, False), said.err
    for path, why in (("nothing.json", "no such file"), ("models.d", "is a directory")):
        said = desk("import", path, "--hosts", "gpu1")
        assert (said.code, why in said.err, "mend  Give the manager's models_config.json" in said.err) == (
            5,
            True,
            True,
        )


def test_a_dry_run_writes_nothing(desk: Desk) -> None:
    """And says what it would write; as JSON too."""
    path = write(desk, "m.json", [QWEN, {**LLAMA, "name": "qwen"}])
    said = desk("import", path, "--hosts", "gpu1", "--dry-run")
    assert "would write models.d/qwen2.5-7b.yaml" in said.out
    found = desk("import", path, "--hosts", "gpu1", "--dry-run", "--json")
    assert found.json["imported"] == [{"entry": 1, "name": "qwen2.5-7b", "file": "models.d/qwen2.5-7b.yaml"}]
    assert (found.code, found.json["refused"], found.json["dry_run"]) == (5, [{"entry": 2}], True)
    assert [path.name for path in Path("models.d").iterdir()] == ["qwen.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "HF_TOKEN={}",
        'export HF_TOKEN="{}"',
        "A=1\nHF_TOKEN = '{}'\n",
        "\ufeffHF_TOKEN={} # mine",
        'HF_TOKEN="{}" # note',
    ],
)
def test_the_token_is_taken_over_only_when_asked_for(desk: Desk, line: str) -> None:
    """Then it is what `hf auth login` would have stored; it shows nowhere."""
    desk.write("old/.env", line.format(TOKEN))
    write(desk, "old/models_config.json", [QWEN])
    stored = desk.folder / "home/.cache/huggingface/token"
    with Hub() as hub:
        hub.tokens[TOKEN] = "ada"
        looked = run(desk, hub, "--dry-run")
        assert "left there: --with-token" in looked.stderr
        assert not stored.exists()
        taken = run(desk, hub, "--with-token")
        assert taken.returncode == 0, taken.stderr
        assert stored.read_text() == TOKEN
        again = run(desk, hub, "--with-token", "--dry-run")
        assert "already" in again.stderr
        stored.write_text(TOKEN.replace("0", "1"))
        refused = run(desk, hub, "--with-token")
        assert (refused.returncode, "holds another token" in refused.stderr) == (1, True)
    said = "".join(each.stdout + each.stderr for each in (looked, taken, again, refused))
    assert TOKEN not in said + "".join(file.read_text() for file in Path("models.d").iterdir())


@pytest.mark.slow
def test_a_token_that_cannot_be_stored_hides_nothing_that_was_written(desk: Desk) -> None:
    """The files are named, then the failure; the next run keeps them and stores it."""
    desk.write("old/.env", f"HF_TOKEN={TOKEN}")
    write(desk, "old/models_config.json", [LLAMA])
    with Hub() as hub:
        refused = run(desk, hub, "--with-token")
        assert (refused.returncode, "wrote models.d/llama.yaml" in refused.stdout) == (1, True), refused
        assert "does not accept this token" in refused.stderr
        assert "is stored in" not in refused.stderr
        hub.tokens[TOKEN] = "ada"
        again = run(desk, hub, "--with-token", "--json")
        assert (again.returncode, [each["name"] for each in json.loads(again.stdout)["kept"]]) == (0, ["llama"]), again


@pytest.mark.parametrize("line", ["HF_TOKEN=two words and odd", "HF_TOKEN=…", "\0"])
def test_a_token_that_nobody_asked_for_is_not_judged(desk: Desk, line: str) -> None:
    """Without --with-token, whatever the .env holds refuses nothing."""
    desk.write("old/.env", line)
    path = write(desk, "old/models_config.json", [LLAMA])
    assert desk("import", path, "--hosts", "gpu1", "--with-token").code in {1, 5}
    said = desk("import", path, "--hosts", "gpu1")
    assert (said.code, line[9:] in said.err if line[9:] else False) == (0, False), said.err


def run(desk: Desk, hub: Hub, *words: str) -> subprocess.CompletedProcess[str]:
    """`import` in a process of its own, for the Hub's client reads its environment once."""
    env = {"HOME": str(desk.folder / "home"), "PATH": os.environ["PATH"], **hub.environ()}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    argv = [sys.executable, "-m", "vmreconcile", "import", "old/models_config.json", "--hosts", "gpu1", *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False, cwd=desk.folder)

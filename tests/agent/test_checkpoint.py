"""checkpoint on this machine: config and tensors of folders and caches, told shortly and whole, or not at all."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.driver import Agent, Refused
from tests.lab.tiny_model import write_model
from vmreconcile.agent import checkpoint

Rows = list[list[Any]]
TENSOR = {"dtype": "BF16", "shape": [4, 8], "data_offsets": [0, 64]}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with folders of its own."""
    running = Agent(tmp_path_factory.mktemp("agent"))
    yield running
    running.close()


def asked(agent: Agent, model: str | Path, revision: str = "", **env: str) -> dict[str, Any]:
    """What the agent says of one model."""
    row = {"slug": "m", "model": str(model), "revision": revision, "env": env}
    (found,) = agent.ask("checkpoint", models=[row])[0]["checkpoints"]
    assert found.pop("slug") == "m"
    assert set(found) == {"config", "tensors"}
    return dict(found)


def safetensors(header: object, weights: bytes = b"") -> bytes:
    """A file of that format."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + weights


def fill(folder: Path, **files: bytes) -> Path:
    """A folder with files, whose names have their dots as `__`; a config.json is there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config__json": b"{}", **files}.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def test_a_folder(agent: Agent, tmp_path: Path) -> None:
    """A real model: the whole config.json, and every tensor in rows that name its layers once."""
    folder = write_model(tmp_path / "tiny")
    found = asked(agent, folder)
    assert found["config"] == json.loads((folder / "config.json").read_text())
    assert ["lm_head.weight", "F32", [512, 64]] in found["tensors"]
    assert ["model.layers.*.mlp.up_proj.weight", "F32", [128, 64], [[[[0, 1]]]]] in found["tensors"]
    assert [row[0] for row in found["tensors"]].count("model.layers.*.mlp.up_proj.weight") == 1


def test_a_cache_with_links(agent: Agent, tmp_path: Path) -> None:
    """As huggingface_hub lays it out: a ref, a snapshot of links, blobs; by name of a revision and by commit."""
    home = tmp_path / "hub/models--org--m"
    source, snapshot = write_model(tmp_path / "tiny"), home / "snapshots/c0ffee"
    for folder in (home / "blobs", home / "refs", snapshot):
        folder.mkdir(parents=True)
    (home / "refs/main").write_text("c0ffee")
    for name in ("config.json", "model.safetensors"):
        (source / name).rename(home / f"blobs/{name[:3]}")
        (snapshot / name).symlink_to(f"../../blobs/{name[:3]}")
    write_model(tmp_path / "tiny")
    whole = asked(agent, source)
    assert whole["tensors"]
    assert asked(agent, "org/m", HF_HOME=str(tmp_path)) == whole
    assert asked(agent, "org/m", "c0ffee", HF_HUB_CACHE=f"{tmp_path}/hub") == whole
    nothing = {"config": None, "tensors": None}
    assert asked(agent, "org/m", "other", HF_HOME=str(tmp_path)) == nothing
    assert asked(agent, "org/other", HF_HOME=str(tmp_path)) == nothing
    (home / "blobs/mod").unlink()
    assert asked(agent, "org/m", HF_HOME=str(tmp_path)) == {**whole, "tensors": None}, "a link that leads nowhere"


def test_the_cache_is_the_servers_own(tmp_path: Path) -> None:
    """By the variables of its env file, and those of the request before them."""
    agent = Agent(tmp_path)
    try:
        for name in ("one", "two"):
            home = tmp_path / name / "hub/models--org--m"
            fill(home / "snapshots/c0ffee", config__json=json.dumps({"in": name}).encode())
            (home / "refs").mkdir()
            (home / "refs/main").write_text("c0ffee")
        path = f"{tmp_path}/config/env/m.env"
        entries = [["HF_HOME", f"{tmp_path}/one"]]
        agent.steps({"step": "write-env", "path": path, "entries": entries}, slug="m")
        assert asked(agent, "org/m")["config"] == {"in": "one"}
        assert asked(agent, "org/m", HF_HOME=f"{tmp_path}/two")["config"] == {"in": "two"}
    finally:
        agent.close()


@pytest.mark.parametrize("revision", ["../../..", "..", "a/../../b", "/etc"])
def test_no_revision_leads_out_of_the_cache(agent: Agent, tmp_path: Path, revision: str) -> None:
    """Nor does what is in a ref."""
    home = tmp_path / "hub/models--org--m"
    fill(tmp_path)
    fill(home / "snapshots")
    (home / "refs").mkdir()
    (home / "refs/main").write_text("../../..")
    assert asked(agent, "org/m", revision, HF_HOME=str(tmp_path))["config"] is None
    assert asked(agent, "org/m", HF_HOME=str(tmp_path))["config"] is None


def test_a_missing_shard(agent: Agent, tmp_path: Path) -> None:
    """All files of the index, or no tensors at all; what the index does not name is not counted."""
    index = json.dumps({"weight_map": {"a.0.w": "model-1.safetensors", "a.1.w": "model-2.safetensors"}}).encode()
    first, second = (safetensors({"__metadata__": {}, f"a.{number}.w": TENSOR}) for number in (0, 1))
    folder = fill(tmp_path, model__safetensors__index__json=index)
    (folder / "model-1.safetensors").write_bytes(first)
    (folder / "other.safetensors").write_bytes(safetensors({"z": TENSOR}))
    assert asked(agent, folder) == {"config": {}, "tensors": None}
    (folder / "model-2.safetensors").write_bytes(second)
    assert asked(agent, folder)["tensors"] == [["a.*.w", "BF16", [4, 8], [[[[0, 1]]]]]]


def test_a_set_without_its_index(agent: Agent, tmp_path: Path) -> None:
    """A fetch that was cut off has some shards and no index yet: not all of it is there. Mistral's copy is another."""
    folder = fill(tmp_path, consolidated__safetensors=safetensors({"z": TENSOR}))
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors({"a": TENSOR}))
    assert asked(agent, folder)["tensors"] is None
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors({"b": TENSOR}))
    assert asked(agent, folder)["tensors"] == [["a", "BF16", [4, 8]], ["b", "BF16", [4, 8]]]


@pytest.mark.slow
def test_no_pipe_is_waited_for(agent: Agent, tmp_path: Path) -> None:
    """Where a file should be, or behind a link; a folder is no file either."""
    for name in ("config.json", "model.safetensors", "model.safetensors.index.json"):
        for at, make in enumerate((os.mkfifo, lambda path: path.symlink_to(tmp_path / "pipe"), Path.mkdir)):
            folder = write_model(tmp_path / f"{name}{at}")
            (folder / name).unlink(missing_ok=True)
            make(folder / name)
    os.mkfifo(tmp_path / "pipe")
    begun = time.monotonic()
    for folder in tmp_path.iterdir():
        found = asked(agent, folder)
        assert found["tensors"] is None
        assert (found["config"] is None) == (folder.name[:-1] in {"config.json", "pip"})
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        (1 << 62).to_bytes(8, "little") + b"{}",
        (99_999_999).to_bytes(8, "little") + b"{" + b" " * 99,
        (2).to_bytes(8, "little") + b"[]",
        (100).to_bytes(8, "little") + b"{}",
        (90_000).to_bytes(8, "little") + b'{"a":' + b"[" * 89_995,
        (4).to_bytes(8, "little") + b"{\xff\xff}",
        safetensors({"a": {}}),
        safetensors({"a": 5}),
        safetensors({"a": {**TENSOR, "dtype": 5}}),
        safetensors({"a": {**TENSOR, "dtype": "HF_TOKEN=x"}}),
        safetensors({"a": {**TENSOR, "shape": "4"}}),
        safetensors({"a": {**TENSOR, "shape": [4, -1]}}),
        safetensors({"a": {**TENSOR, "shape": [4, True]}}),
        safetensors({"a": {**TENSOR, "shape": [1 << 60]}}),
        safetensors({"a": {**TENSOR, "shape": [1] * 17}}),
        safetensors({"a" * 513: TENSOR}),
        safetensors({"__metadata__": {}}),
    ],
    ids=lambda content: repr(content[:24]),
)
def test_damaged_headers(agent: Agent, tmp_path: Path, content: bytes) -> None:
    """Of whatever length they claim to be: config.json is told all the same, and the agent goes on."""
    assert asked(agent, fill(tmp_path, model__safetensors=content)) == {"config": {}, "tensors": None}


@pytest.mark.parametrize("index", [b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": {"a": 5}}'])
def test_damaged_indexes(agent: Agent, tmp_path: Path, index: bytes) -> None:
    """Whatever else is there, it is not known whether that is all."""
    folder = fill(tmp_path, model__safetensors=safetensors({"a": TENSOR}), model__safetensors__index__json=index)
    assert asked(agent, folder) == {"config": {}, "tensors": None}


def test_an_index_leads_into_no_other_folder(agent: Agent, tmp_path: Path) -> None:
    """Nor to files of another kind."""
    fill(tmp_path, x__safetensors=safetensors({"a": TENSOR}), y=safetensors({"a": TENSOR}))
    for number, name in enumerate(["../x.safetensors", f"{tmp_path}/x.safetensors", "../y", ".."]):
        index = json.dumps({"weight_map": {"a": name}}).encode()
        assert asked(agent, fill(tmp_path / f"{number}", model__safetensors__index__json=index))["tensors"] is None


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"5", b"{", b"\xff", b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", b'{"a": "' + b"x" * (1 << 20) + b'"}'],
    ids=lambda text: repr(text[:12]),
)
def test_a_config_that_is_none(agent: Agent, tmp_path: Path, text: bytes) -> None:
    """Not JSON, no object, too deep, too long: as if it were not there."""
    folder = fill(tmp_path, config__json=text, model__safetensors=safetensors({"a": TENSOR}))
    assert asked(agent, folder) == {"config": None, "tensors": None}


def test_a_config_in_words_that_json_lacks(agent: Agent, tmp_path: Path) -> None:
    """Transformers writes Infinity; a number without end is null, the rest is told as it is."""
    text = '\ufeff{"a": Infinity, "b": [0.0, -Infinity, NaN], "c": 1e999, "d": "\\ud800 \u00e9", "e": 1.5}'
    found = asked(agent, fill(tmp_path, config__json=text.encode()))["config"]
    assert found == {"a": None, "b": [0.0, None, None], "c": None, "d": "\ud800 \u00e9", "e": 1.5}


@pytest.mark.slow
def test_a_very_large_model_is_a_short_answer(agent: Agent, tmp_path: Path) -> None:
    """As DeepSeek-V3 is stored: 91,000 tensors in 163 files, told in less than two kilobytes."""
    rows = {}
    for layer in range(3, 61):
        for expert in range(256):
            for name in ("gate_proj", "up_proj", "down_proj"):
                rows[f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"] = {**TENSOR, "dtype": "F8_E4M3"}
                rows[f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight_scale_inv"] = TENSOR
    files: dict[str, dict[str, object]] = {f"model-{number:05}-of-00163.safetensors": {} for number in range(1, 164)}
    for at, (name, row) in enumerate(rows.items()):
        files[f"model-{at % 163 + 1:05}-of-00163.safetensors"][name] = row
    held = {name: file for file, header in files.items() for name in header}
    fill(tmp_path, model__safetensors__index__json=json.dumps({"weight_map": held}).encode())
    for file, header in files.items():
        (tmp_path / file).write_bytes(safetensors(header, b"\0" * 1000))
    found = asked(agent, tmp_path)["tensors"]
    assert len(found) == 6
    assert {json.dumps(row[3]) for row in found} == {"[[[[3, 60]], [[0, 255]]]]"}
    assert len(json.dumps(found)) < 2000


def test_what_cannot_be_told_shortly_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many tensors, too long an answer, or no time left."""
    soon = time.monotonic() + 60
    good = fill(tmp_path / "good", model__safetensors=safetensors({"a": TENSOR}))
    assert checkpoint.read_tensors(str(good), soon) == [["a", "BF16", [4, 8]]]
    assert checkpoint.read_tensors(str(good), time.monotonic() - 1) is None
    named = {f"{number:x}{'x' * 400}": TENSOR for number in range(11_000)}
    long = fill(tmp_path / "long", model__safetensors=safetensors(named))
    assert checkpoint.read_tensors(str(long), soon) is None
    monkeypatch.setattr(checkpoint, "MOST_TENSORS", 100)
    for name, count, there in (("most", 100, True), ("more", 101, False)):
        many = fill(tmp_path / name, model__safetensors=safetensors({f"a.{at}": TENSOR for at in range(count)}))
        assert (checkpoint.read_tensors(str(many), soon) is not None) is there


def test_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of a file than its header."""
    header = safetensors({"a": TENSOR})
    folder = fill(tmp_path, model__safetensors=header + b"\0" * (1 << 20))
    read: list[int] = []
    real = checkpoint.proc.read

    def counting(path: str, limit: int = 1 << 20) -> bytes | None:
        read.append(len(found := real(path, limit) or b""))
        return found

    monkeypatch.setattr(checkpoint.proc, "read", counting)
    assert checkpoint.read_tensors(str(folder), time.monotonic() + 60)
    assert max(read) == len(header)


def test_wrong_requests_are_refused(agent: Agent) -> None:
    """By name, and nothing is read for them."""
    good = {"slug": "m", "model": "org/m", "revision": "", "env": {}}
    assert agent.ask("checkpoint", models=[])[0]["checkpoints"] == []
    for wrong in (
        *(None, 5, "m", [5], [{}]),
        *([{**good, "slug": "../x"}], [{**good, "env": None}], [{**good, "env": {"A": 1}}]),
        *([{**good, "model": "a\0b"}], [{**good, "revision": None}]),
    ):
        with pytest.raises(Refused, match="bad-request"):
            agent.ask("checkpoint", models=wrong)


@pytest.mark.slow
def test_names_full_of_numbers_are_told_one_by_one(agent: Agent, tmp_path: Path) -> None:
    """A file whose names are nothing but numbers kept the agent busy for minutes, long after it was to give up."""
    draw = random.Random(1)
    names = sorted({".".join(str(draw.randrange(10)) for _ in range(100)) for _ in range(6_000)})
    folder = fill(tmp_path / "m", x__safetensors=safetensors(dict.fromkeys(names, TENSOR)))
    begun = time.monotonic()
    assert [row[0] for row in asked(agent, folder)["tensors"]] == names
    assert time.monotonic() - begun < 8

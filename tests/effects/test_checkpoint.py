"""A model's files: from a folder, from the Hub's cache, from a Hub of the laboratory; damaged ones are told."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.hub import Gate, Hub, Repository
from vmreconcile.effects.checkpoint import HubError, read_cached, read_folder, read_hub
from vmreconcile.errors import InputError
from vmreconcile.model.access import Access, Question
from vmreconcile.model.secret import Secret
from vmreconcile.vllm.memory.stored import Tensor

TOKEN = Secret("hf_insideInsideINSIDE0")
CONFIG = {"model_type": "llama", "hidden_size": 8}


def safetensors(**tensors: tuple[str, list[int]]) -> bytes:
    """A file of that format, its data left out."""
    rows = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **rows}).encode()
    return len(header).to_bytes(8, "little") + header


FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors": safetensors(b=("BF16", [4, 8]), a=("F32", [2])),
}
TENSORS = (Tensor(name="a", dtype="F32", shape=(2,)), Tensor(name="b", dtype="BF16", shape=(4, 8)))


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An open model, one without safetensors, one that is gated."""
    with Hub() as running:
        running.tokens[TOKEN.reveal()] = "ada"
        running.repositories |= {
            "acme/open": Repository(files=FILES),
            "acme/bare": Repository(files={"config.json": FILES["config.json"], "pytorch_model.bin": b"x"}),
            "acme/gated": Repository(files=FILES, gate=Gate.GATED, granted=frozenset({TOKEN.reveal()})),
        }
        yield running


def test_a_folder_gives_config_and_headers(tmp_path: Path) -> None:
    """Sorted by name; nothing else is read."""
    found = read_folder(fill(tmp_path, FILES))
    assert (found.config, found.tensors, found.source) == (CONFIG, TENSORS, str(tmp_path))


def test_config_json_alone_is_enough(tmp_path: Path) -> None:
    """Then there are no tensors."""
    assert read_folder(fill(tmp_path, {"config.json": FILES["config.json"]})).tensors is None


def test_the_index_says_which_files_count(tmp_path: Path) -> None:
    """A second copy in another layout is not counted; where a file is missing, nothing is known of tensors."""
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "config.json": FILES["config.json"],
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": safetensors(a=("F32", [2])),
        "consolidated.safetensors": safetensors(z=("F32", [2])),
    }
    assert read_folder(fill(tmp_path, files)).tensors is None
    assert read_folder(fill(tmp_path, {"model-2.safetensors": safetensors(b=("BF16", [4, 8]))})).tensors == TENSORS


def test_a_set_without_its_index_is_whole_or_nothing(tmp_path: Path) -> None:
    """A fetch that was cut off has some of the files and no index: these are not the model's weights."""
    part = {"config.json": FILES["config.json"], "model-00001-of-00002.safetensors": safetensors(a=("F32", [2]))}
    assert read_folder(fill(tmp_path, part)).tensors is None
    rest = {"model-00002-of-00002.safetensors": safetensors(b=("BF16", [4, 8]))}
    assert read_folder(fill(tmp_path, rest)).tensors == TENSORS


@pytest.mark.parametrize("name", ["../x.safetensors", "sub/x.safetensors", ".."])
def test_an_index_leads_into_no_other_folder(tmp_path: Path, name: str) -> None:
    """What it names there is not read, and the rest is not taken for all."""
    fill(tmp_path, {"x.safetensors": FILES["model.safetensors"]})
    index = json.dumps({"weight_map": {"a": name, "b": "model.safetensors"}}).encode()
    assert read_folder(fill(tmp_path / "m", {**FILES, "model.safetensors.index.json": index})).tensors is None


def test_a_tensor_in_two_files_counts_once(tmp_path: Path) -> None:
    """It is loaded into one place."""
    files = {f"model-0000{number}-of-00002.safetensors": safetensors(a=("F32", [2])) for number in (1, 2)}
    assert read_folder(fill(tmp_path, {"config.json": FILES["config.json"], **files})).tensors == TENSORS[:1]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("config.json", b"{", "fit-bad-config"),
        ("config.json", b"[]", "fit-bad-config"),
        ("config.json", b"[" * 100000, "fit-bad-config"),
        ("config.json", b"\xff\xfe", "fit-bad-config"),
        ("model.safetensors", b"", "fit-bad-safetensors"),
        ("model.safetensors", b"\xff" * 8 + b"{}", "fit-bad-safetensors"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "fit-bad-safetensors"),
        ("model.safetensors", (9).to_bytes(8, "little") + b'{"a": {}}', "fit-bad-safetensors"),
        ("model.safetensors", safetensors(a=("F32", ["x"])), "fit-bad-safetensors"),  # type: ignore[list-item]
        ("model.safetensors", safetensors(a=("F32", [-1])), "fit-bad-safetensors"),
        ("model.safetensors", safetensors(a=("F32", [10**9] * 17)), "fit-bad-safetensors"),
        ("model.safetensors", safetensors(a=("F32", [10**400])), "fit-bad-safetensors"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    """With what to do."""
    with pytest.raises(InputError) as error:
        read_folder(fill(tmp_path, {**FILES, name: content}))
    (problem,) = error.value.diagnostics
    assert (problem.code, problem.place.file) == (code, str(tmp_path / name))
    assert problem.remedy


@pytest.mark.parametrize("name", ["nothing", "."])
def test_a_folder_without_config_is_told(tmp_path: Path, name: str) -> None:
    """Whether it is there or not."""
    with pytest.raises(InputError) as error:
        read_folder(tmp_path / name)
    assert error.value.diagnostics[0].code == "fit-no-config"


def test_the_hub_gives_config_and_headers(hub: Hub, tmp_path: Path) -> None:
    """No weights are fetched; config.json stays in the cache, which alone does for the next time."""
    question = Question(model="acme/open", endpoint=hub.url)
    found = read_hub(question, None, tmp_path)
    assert (found.config, found.tensors, found.source) == (CONFIG, TENSORS, f"{hub.url}/acme/open")
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == []
    cached = read_cached("acme/open", "", tmp_path)
    assert cached is not None
    assert (cached.config, cached.tensors) == (CONFIG, None)


def test_the_hub_gives_the_headers_of_all_files(hub: Hub, tmp_path: Path) -> None:
    """Of those that the index names."""
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    hub.repositories["acme/large"] = Repository(
        files={
            "config.json": FILES["config.json"],
            "model.safetensors.index.json": json.dumps({"weight_map": names}).encode(),
            names["a"]: safetensors(a=("F32", [2])),
            names["b"]: safetensors(b=("BF16", [4, 8])),
        }
    )
    assert read_hub(Question(model="acme/large", endpoint=hub.url), None, tmp_path).tensors == TENSORS


def test_a_model_in_another_format_has_its_config(hub: Hub, tmp_path: Path) -> None:
    """Without tensors."""
    found = read_hub(Question(model="acme/bare", endpoint=hub.url), None, tmp_path)
    assert (found.config, found.tensors) == (CONFIG, None)


def test_a_gate_opens_for_the_token_and_says_nothing_of_it(hub: Hub, tmp_path: Path) -> None:
    """Refused without one, and for a model that is not there."""
    question = Question(model="acme/gated", endpoint=hub.url, source="default")
    assert read_hub(question, TOKEN, tmp_path / "one").tensors == TENSORS
    for name, token in (("acme/gated", None), ("acme/none", TOKEN)):
        with pytest.raises(HubError) as error:
            read_hub(Question(model=name, endpoint=hub.url), token, tmp_path / "two")
        assert TOKEN.reveal() not in str(error.value)


def test_a_damaged_header_at_the_hub_leaves_the_config(hub: Hub, tmp_path: Path) -> None:
    """That alone tells much."""
    hub.repositories["acme/bad"] = Repository(files={**FILES, "model.safetensors": b"\xff" * 40})
    found = read_hub(Question(model="acme/bad", endpoint=hub.url), None, tmp_path)
    assert (found.config, found.tensors) == (CONFIG, None)


def test_a_hub_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    """The client's own download would try for 20 s."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(HubError) as error:
        read_hub(Question(model="a/b", endpoint=f"http://127.0.0.1:{port}"), None, tmp_path)
    assert error.value.verdict.access is Access.HUB_UNREACHABLE
    assert time.monotonic() - begun < 10


def test_a_hub_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client's own timeouts make of it."""
    monkeypatch.setattr("vmreconcile.effects.checkpoint.OVERALL_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(HubError, match=r"within 0\.5 s") as error:
        read_hub(Question(model="a/b", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}"), None, tmp_path)
    assert error.value.verdict.access is Access.HUB_UNREACHABLE


@pytest.mark.parametrize("model", ["acme/none", "no such/../id", "", "acme/" + "x" * 300])
def test_what_is_not_cached_is_none(tmp_path: Path, model: str) -> None:
    """Names that the Hub cannot have, too."""
    assert read_cached(model, "", tmp_path) is None


@pytest.mark.parametrize("odd", ["_etag", "COMMIT"])
@pytest.mark.parametrize("word", ["../../../../evil", "..", "a/../../../../evil"])
def test_no_hub_writes_outside_its_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str, word: str
) -> None:
    """The client makes a path of the ETag as it comes: a hostile Hub could lay down any new file of this user."""
    monkeypatch.setattr(f"tests.lab.hub.{odd}", word if odd == "COMMIT" else lambda _: word)
    with pytest.raises(HubError, match="odd") as refused:
        read_hub(Question(model="acme/open", endpoint=hub.url), TOKEN, tmp_path / "a" / "b" / "cache")
    assert refused.value.verdict.access is Access.HUB_UNREACHABLE
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_config_of_too_many_levels_is_refused(tmp_path: Path) -> None:
    """It could be read, and not be looked at."""
    text = b'{"rope_scaling": {"rope_type": ' + b"[" * 60 + b"]" * 60 + b"}}"
    with pytest.raises(InputError, match="levels"):
        read_folder(fill(tmp_path / "m", {"config.json": text}))

"""Model files for planning: from this machine, a host or the Hub, whichever is nearest and whole; never an error."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Refusal
from tests.lab.hub import Gate, Hub, Repository
from tests.lab.tiny_model import write_model
from tests.lab.worlds import SALT, TOKEN, wanted
from vmreconcile.effects.checkpoint import read_folder, read_hub
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.access import Hub as AskedHub
from vmreconcile.flows.model_files import ModelFiles, read_model_files
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.secret import Secret
from vmreconcile.vllm.memory.stored import Tensor

OTHER = "hf_AnotherTokenThatMustShowNowhere000"  # made up
CONFIG = {"model_type": "llama"}
ROWS = [["layers.*.w", "BF16", [4], [[[[0, 1]]]]]]
TENSORS = tuple(Tensor(name=f"layers.{layer}.w", dtype="BF16", shape=(4,)) for layer in (0, 1))
WHOLE = {"config": CONFIG, "tensors": ROWS}
PART = {"config": CONFIG, "tensors": None}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """A small model, as a repository of the Hub has it."""
    folder = write_model(tmp_path_factory.mktemp("tiny"))
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@pytest.fixture
def hub(files: Mapping[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An open model and a gated one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read when it was imported
    with Hub() as running:
        running.tokens |= {TOKEN: "ada", OTHER: "bob"}
        running.repositories |= {
            "org/model": Repository(files=files),
            "org/gated": Repository(files=files, gate=Gate.GATED, granted=frozenset({OTHER})),
        }
        yield running


@dataclass(slots=True)
class Desk:
    """This machine with its cache of the Hub, fake hosts, and which of them were reached."""

    home: Path
    hosts: dict[str, FakeHost]
    opened: list[str] = field(default_factory=list)

    def fleet(self) -> Fleet:
        """The hosts."""

        def open_host(name: str) -> FakeHost:
            self.opened.append(name)
            if self.hosts[name].unreachable:
                raise UnreachableError(self.hosts[name].unreachable, remedy="look at the host")
            return self.hosts[name]

        return Fleet(open_host=open_host, looks={}, salt=SALT, forks=4)

    def hub(self, **environ: str) -> AskedHub:
        """The Hub as it is asked from here, with two tokens."""
        tokens = {"default": Secret(TOKEN), "other": Secret(OTHER)}
        return AskedHub(options=TransportOptions(home=self.home, environ=environ), secrets=tokens)

    def read(self, *servers: DesiredServer, **environ: str) -> ModelFiles:
        """Read for servers, the Hub as in `environ`."""
        return read_model_files(servers, self.fleet(), self.hub(**environ))

    def asked(self) -> dict[str, list[list[str]]]:
        """The servers that each host was asked about, request by request."""
        return {
            name: [[row["slug"] for row in request["models"]] for request in host.requests]
            for name, host in self.hosts.items()
            if host.requests
        }

    def cache(self, model: str, **files: bytes) -> Path:
        """Put files of a model into this machine's cache; a name has its dots as `__`."""
        place = self.home / f".cache/huggingface/hub/models--{model.replace('/', '--')}"
        snapshot = place / "snapshots/c0ffee"
        for folder in (place / "refs", snapshot):
            folder.mkdir(parents=True, exist_ok=True)
        (place / "refs/main").write_text("c0ffee")
        for name, content in files.items():
            (snapshot / name.replace("__", ".")).write_bytes(content)
        return snapshot


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Three hosts with no model, and an empty cache here."""
    return Desk(tmp_path, {name: FakeHost(name) for name in ("h1", "h2", "h3")})


def server(name: str, model: str = "org/model", **fields: Any) -> DesiredServer:  # noqa: ANN401 - fields of a server
    """A wanted server."""
    return wanted(name, model=model, **fields)


OFFLINE = {"HF_HUB_OFFLINE": "1"}


def test_where_nothing_is_asked_nothing_is_done(desk: Desk) -> None:
    """No host is reached, and no Hub."""
    assert desk.read() == ModelFiles()
    assert desk.opened == []


def test_a_path_is_its_hosts(desk: Desk, tmp_path: Path) -> None:
    """Whatever lies at that path on this machine; each host has its own there."""
    folder = str(write_model(tmp_path / "tiny"))
    desk.hosts["h1"].checkpoints[folder] = WHOLE
    desk.hosts["h2"].checkpoints[folder] = {"config": {"other": 1}, "tensors": None}
    found = desk.read(*(server(f"{name}@{host}", folder) for host in ("h1", "h2", "h3") for name in ("a", "b")))
    one, two = (found.checkpoints[ServerId.parse(name)] for name in ("a@h1", "b@h2"))
    assert (one.config, one.tensors, one.source) == (CONFIG, TENSORS, f"h1:{folder}")
    assert (two.config, two.tensors) == ({"other": 1}, None)
    assert found.reasons == dict.fromkeys(
        (ServerId.parse("a@h3"), ServerId.parse("b@h3")), f"h3 has no config.json in {folder} that can be read"
    )
    assert desk.asked() == {"h1": [["a"]], "h2": [["a"]], "h3": [["a"]]}, "each place once"


def test_this_machines_cache_comes_first(desk: Desk, files: Mapping[str, bytes]) -> None:
    """If all of it is there, nobody is asked."""
    snapshot = desk.cache("org/model", config__json=files["config.json"], model__safetensors=files["model.safetensors"])
    found = desk.read(server("m@h1"), server("m@h2"), server("n@h2", revision="c0ffee"))
    assert [each.source for each in found.checkpoints.values()] == [str(snapshot)] * 3
    assert found.checkpoints[ServerId.parse("m@h1")] == read_folder(snapshot)
    assert (desk.opened, found.problems) == ([], {})


def test_then_the_hosts_cache(desk: Desk, hub: Hub) -> None:
    """One host is asked for a model that several have; the Hub is not. What decides where its cache is goes along."""
    for host in desk.hosts.values():
        host.checkpoints["org/model"] = WHOLE
    env = {"HF_HOME": "/data/hf", "HF_TOKEN_PATH": "/x", "OTHER": "1"}
    found = desk.read(*(server(f"m@{host}", env=env) for host in desk.hosts), **hub.environ())
    assert {each.tensors for each in found.checkpoints.values()} == {TENSORS}
    assert {each.source for each in found.checkpoints.values()} == {"org/model in the cache of h1"}
    assert len(found.checkpoints) == 3
    assert (desk.asked(), hub.requests) == ({"h1": [["m"]]}, [])
    assert desk.hosts["h1"].requests[0]["models"][0]["env"] == {"HF_HOME": "/data/hf"}


def test_any_host_that_has_all_of_it(desk: Desk) -> None:
    """The first has nothing, the second cannot be reached, the third knows it for all; a revision is another model."""
    desk.hosts["h2"].unreachable = "no route to host"
    desk.hosts["h3"].checkpoints["org/model"] = WHOLE
    servers = [server(f"m@{host}") for host in desk.hosts]
    found = desk.read(*servers, server("n@h1", revision="v2"), **OFFLINE)
    assert {name: each.tensors for name, each in found.checkpoints.items()} == {each.id: TENSORS for each in servers}
    assert desk.asked() == {"h1": [["m", "n"]], "h3": [["m"]]}
    assert list(found.reasons.values()) == [
        "org/model is neither in the cache here nor in that of h1, and HF_HUB_OFFLINE is set"
    ]


def test_then_the_hub_once(desk: Desk, hub: Hub, files: Mapping[str, bytes]) -> None:
    """For all servers of a model and for the whole run, with their own token; a host without it was asked before."""
    asked = desk.hub(**hub.environ())
    servers = [server(f"m@{host}") for host in desk.hosts]
    found = read_model_files(servers, desk.fleet(), asked)
    (first, *rest) = found.checkpoints.values()
    assert (first.config, first.source) == (json.loads(files["config.json"]), f"{hub.url}/org/model")
    assert len(first.tensors or ()) == 27
    assert [each is first for each in rest] == [True, True]
    assert desk.asked() == {name: [["m"]] for name in desk.hosts}
    assert {request.token for request in hub.requests} == {TOKEN}
    assert not list(desk.home.rglob("*.safetensors"))
    before = len(hub.requests)
    again = read_model_files(servers, desk.fleet(), asked)
    assert (again, len(hub.requests)) == (found, before)


def test_a_servers_own_token_and_hub(desk: Desk, hub: Hub) -> None:
    """A gate that one token does not open, another does; HF_ENDPOINT of a server counts for it."""
    own = {"HF_ENDPOINT": hub.url}
    shut = desk.read(server("a@h1", "org/gated", env=own), server("b@h1", "org/gated", env=own, token=None))
    assert set(shut.reasons.values()) == {
        "org/gated is gated, and the token of source 'default' was not granted access"
    }
    assert {request.token for request in hub.requests} == {None, TOKEN}
    found = desk.read(server("a@h1", "org/gated", env=own), server("c@h2", "org/gated", env=own, token="other"))
    assert [each.source for each in found.checkpoints.values()] == [f"{hub.url}/org/gated"] * 2
    assert found.problems == {}


@pytest.mark.parametrize("own", [True, False])
def test_offline_is_honoured(desk: Desk, hub: Hub, own: bool) -> None:  # noqa: FBT001 - a case
    """Whether it is set here or for the server; the hosts are asked all the same."""
    environ = {**hub.environ(), **({} if own else OFFLINE)}
    found = desk.read(server("m@h1", env=OFFLINE if own else {}), **environ)
    assert "HF_HUB_OFFLINE" in found.reasons[ServerId.parse("m@h1")]
    assert (hub.requests, desk.asked()) == ([], {"h1": [["m"]]})


def test_a_part_is_better_than_nothing(desk: Desk, hub: Hub) -> None:
    """config.json alone, where nobody has more: of this machine, else of a host; more counts wherever it is."""
    desk.cache("org/here", config__json=b'{"in": "here"}')
    for model in ("org/here", "org/there", "org/model"):
        desk.hosts["h1"].checkpoints[model] = PART
    names = {"a@h1": "org/here", "b@h1": "org/there", "c@h1": "org/model"}
    found = desk.read(*(server(name, model) for name, model in names.items()), **hub.environ())
    here, there, whole = (found.checkpoints[ServerId.parse(name)] for name in names)
    assert (here.config, here.tensors) == ({"in": "here"}, None)
    assert (there.config, there.tensors, there.source) == (CONFIG, None, "org/there in the cache of h1")
    assert len(whole.tensors or ()) == 27
    assert found.problems == {}


def test_an_endpoint_that_says_nothing_is_asked_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And for no other model: every reason is there, without the password in its address."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://ada:secret@127.0.0.1:{closed.getsockname()[1]}"

    def counted(question: Any, *rest: Any) -> Any:  # noqa: ANN401 - passed on
        asked.append(question.model)
        return read_hub(question, *rest)

    monkeypatch.setattr("vmreconcile.flows.model_files.read_hub", counted)
    hub = AskedHub(options=desk.hub(HF_ENDPOINT=endpoint).options, forks=1)
    servers = [server(f"{name}@h1", f"org/{name}") for name in "abc"]
    found = read_model_files(servers, desk.fleet(), hub)
    assert asked == ["org/a"]
    assert set(found.problems) == {each.id for each in servers}
    for reason in found.reasons.values():
        assert "cannot be asked" in reason
        assert "secret" not in reason
        assert "\n" not in reason


def test_hosts_that_fail_are_reasons(desk: Desk) -> None:
    """Lost, refusing, or answering nonsense: each is told in a line, and the others are not in its way."""
    folder = "/models/m"
    desk.hosts["h1"].unreachable = "connection refused"
    desk.hosts["h3"].checkpoints[folder] = WHOLE

    def refuse(*_: object) -> None:
        raise Refusal("agent-bug", "TypeError at checkpoint.py:7")

    desk.hosts["h2"]._answer = refuse  # type: ignore[method-assign,assignment]
    found = desk.read(*(server(f"m@{host}", folder) for host in desk.hosts))
    assert {str(name): reason for name, reason in found.reasons.items()} == {
        "m@h1": "h1: connection refused",
        "m@h2": "h2: TypeError at checkpoint.py:7",
    }
    assert list(found.checkpoints) == [ServerId.parse("m@h3")]
    problem = found.problems[ServerId.parse("m@h1")]
    assert (type(problem), problem.remedy) == (UnreachableError, "look at the host")
    desk.hosts["h3"]._answer = lambda *_: {"checkpoints": [{"slug": "m", "config": 5}]}  # type: ignore[method-assign]
    assert "h3 has no config.json" in desk.read(server("m@h3", folder)).reasons[ServerId.parse("m@h3")]
    del desk.hosts["h3"]
    assert "KeyError" in desk.read(server("m@h3", folder)).reasons[ServerId.parse("m@h3")]


def test_damaged_files_here_are_no_obstacle(desk: Desk) -> None:
    """A host may have good ones; where none has, the reason names the file."""
    desk.cache("org/model", config__json=b"{")
    assert "it is no JSON" in desk.read(server("m@h1"), **OFFLINE).reasons[ServerId.parse("m@h1")]
    desk.hosts["h1"].checkpoints["org/model"] = WHOLE
    assert desk.read(server("m@h1"), **OFFLINE).checkpoints[ServerId.parse("m@h1")].tensors == TENSORS


@pytest.mark.parametrize("model", ["./m", "~/m", "../m"])
def test_a_path_that_is_no_whole_one(desk: Desk, model: str) -> None:
    """Nobody is asked what it might be."""
    assert "no absolute path" in desk.read(server("m@h1", model)).reasons[ServerId.parse("m@h1")]
    assert desk.opened == []


def test_odd_names_are_nothing(desk: Desk) -> None:
    """Too long for any file, or none that the Hub has."""
    for cache in ({}, {"HF_HUB_CACHE": "~nobody-here/x"}):
        found = desk.read(server("a@h1", "org/" + "x" * 300), server("b@h1", "a/b/c/d"), **OFFLINE, **cache)
        assert len(found.reasons) == 2


def test_after_a_start_its_host_alone_is_asked(desk: Desk, files: Mapping[str, bytes]) -> None:
    """Without the Hub, which an execution has not: what a server has loaded is on its host. `once` ends the session."""
    desk.cache("org/model", config__json=files["config.json"], model__safetensors=files["model.safetensors"])
    desk.hosts["h1"].checkpoints["org/model"] = WHOLE
    fleet = desk.fleet()
    found = read_model_files([server("m@h1"), server("n@h2", "org/n")], fleet)
    assert found.checkpoints[ServerId.parse("m@h1")].tensors == TENSORS
    assert found.reasons == {ServerId.parse("n@h2"): "org/n is not in the cache of h2"}
    read_model_files([server("m@h1")], fleet, once=True)
    assert desk.opened == ["h1", "h2"]
    read_model_files([server("m@h1")], fleet)
    assert desk.opened == ["h1", "h2", "h1"]

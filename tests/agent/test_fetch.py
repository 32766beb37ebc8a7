"""fetch with the real huggingface_hub in a process of its own, from a Hub of the laboratory."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import pytest

from tests.agent.conftest import wait_until
from tests.agent.driver import ROOM, Agent, Refused, build_archive
from tests.lab.hub import COMMIT, Gate, Hub, Repository

TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001.safetensors": b"\1" * 300_000,
    "model-00002.safetensors": b"\2" * 200_000,
    "pytorch_model.bin": b"\3" * 500_000,
    "original/params.pt": b"\4" * 10,
}
WANTED = {"config.json", "model-00001.safetensors", "model-00002.safetensors"}
pytestmark = pytest.mark.slow


@pytest.fixture
def hub() -> Iterator[Hub]:
    """One model open, one gated and granted, one shut."""
    with Hub() as running:
        running.tokens[TOKEN] = "ada"
        running.repositories = {
            "org/open": Repository(files=FILES),
            "org/granted": Repository(files=FILES, gate=Gate.GATED, granted=frozenset({TOKEN})),
            "org/gated": Repository(files=FILES, gate=Gate.GATED),
        }
        yield running


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """A `vllm` whose interpreter has the Hub's client."""
    path = tmp_path / "bin/vllm"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent with folders of its own."""
    running = Agent(tmp_path)
    yield running
    running.close()


def asking(hub: Hub, vllm: Path, model: str = "org/open", **more: object) -> dict[str, Any]:
    """A request."""
    env = {**hub.environ(), "HF_HOME": str(vllm.parents[1] / "hf")}
    return {
        "slug": "m",
        "model": model,
        "executable": str(vllm),
        "env": env,
        "token": "default",
        "secrets": {"default": TOKEN},
        **more,
    }


def kept(vllm: Path, model: str = "org/open") -> dict[str, bytes]:
    """The files in the cache."""
    folder = vllm.parents[1] / f"hf/hub/models--{model.replace('/', '--')}/snapshots/{COMMIT}"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model", ["org/open", "org/granted"])
def test_what_vllm_would_load_is_fetched_once(agent: Agent, hub: Hub, vllm: Path, model: str) -> None:
    """Safetensors and no other weights; the second time nothing is fetched; the revision's name is kept."""
    answer, said = agent.ask("fetch", **asking(hub, vllm, model))
    assert set(kept(vllm, model)) == WANTED
    assert answer["fetched"] == answer["total"] == sum(len(FILES[name]) for name in WANTED)
    assert answer["path"] == str(vllm.parents[1] / "hf/hub")
    assert next(one for one in said if one["event"] == "size")["need"] == answer["total"]
    ref = vllm.parents[1] / f"hf/hub/models--{model.replace('/', '--')}/refs/main"
    assert ref.read_text() == COMMIT
    again, _ = agent.ask("fetch", **asking(hub, vllm, model))
    assert (again["fetched"], again["total"]) == (0, answer["total"])
    other, _ = agent.ask("fetch", **asking(hub, vllm, model, load_format="pt"))
    assert other["fetched"] > 0, "everything, where another format is asked for"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"model": "org/gated"}, "fetch-gated"),
        ({"model": "org/gated", "token": None}, "fetch-gated"),
        ({"model": "org/nothing"}, "fetch-no-such-repo"),
        ({"model": "no such name"}, "fetch-no-such-repo"),
        ({"revision": "v9"}, "fetch-revision-not-found"),
        ({"secrets": {"default": TOKEN.replace("0000", "9999")}}, "fetch-bad-token"),
    ],
)
def test_refusals_have_their_class(agent: Agent, hub: Hub, vllm: Path, change: dict[str, Any], kind: str) -> None:
    """And hold no token."""
    with pytest.raises(Refused) as caught:
        agent.ask("fetch", **asking(hub, vllm, **change))
    assert caught.value.kind == kind
    assert TOKEN not in str(caught.value)
    assert TOKEN.replace("0000", "9999") not in str(caught.value)


def test_a_hub_that_is_ill_or_gone(agent: Agent, hub: Hub, vllm: Path) -> None:
    """Unreachable, whatever the reason; offline where that is wanted."""
    hub.failure = HTTPStatus.BAD_GATEWAY
    for env, kind in (
        ({}, "fetch-hub-unreachable"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "fetch-hub-unreachable"),
        ({"HF_HUB_OFFLINE": "1"}, "fetch-offline"),
    ):
        request = asking(hub, vllm)
        with pytest.raises(Refused) as caught:
            agent.ask("fetch", **{**request, "env": {**request["env"], **env}})
        assert caught.value.kind == kind


def test_a_download_that_was_cut_off_goes_on(agent: Agent, hub: Hub, vllm: Path) -> None:
    """Files that came are not fetched again."""
    hub.drops_after = 250_000
    with pytest.raises(Refused) as caught:
        agent.ask("fetch", **asking(hub, vllm))
    assert caught.value.kind == "fetch-hub-unreachable"
    assert "model-00001.safetensors" not in kept(vllm)
    hub.drops_after = None
    hub.requests.clear()
    answer, said = agent.ask("fetch", **asking(hub, vllm))
    assert kept(vllm)["model-00001.safetensors"] == FILES["model-00001.safetensors"]
    (size,) = [one for one in said if one["event"] == "size"]
    assert size["need"] == answer["fetched"] == 300_000


def test_progress_is_told_and_a_cut_connection_goes_on_at_its_byte(agent: Agent, hub: Hub, vllm: Path) -> None:
    """What came of a large file is counted, and asked for no more by the same run."""
    mib = 1 << 20
    data = bytes(range(256)) * (12 * mib // 256)
    hub.repositories["org/large"] = Repository(files={"config.json": b"{}", "model.safetensors": data})
    hub.stalls_after = 11 * mib  # the client writes by 10 MiB
    agent.send("fetch", **asking(hub, vllm, "org/large"))
    said = [agent.next_answer()]
    assert (said[0]["event"], said[0]["need"]) == ("size", len(data) + 2)
    while said[-1].get("done", 0) < 10 * mib:
        said.append(agent.next_answer())
        assert (said[-1]["event"], said[-1]["more"]) == ("at", True)
        assert said[-1]["done"] < len(data)
    assert said[-1]["total"] == len(data) + 2
    hub.stalls_after = None
    hub.goes_on.set()
    while said[-1].get("more"):
        said.append(agent.next_answer())
    assert said[-1]["ok"], said[-1]
    assert said[-1]["fetched"] == said[-1]["total"] == len(data) + 2
    assert kept(vllm, "org/large") == {"config.json": b"{}", "model.safetensors": data}
    asked = [one.range for one in hub.requests if one.method == "GET" and one.path.endswith("model.safetensors")]
    assert asked == ["", f"bytes={10 * mib}-"]


def test_no_space_is_told_before_anything_is_fetched(agent: Agent, hub: Hub, vllm: Path) -> None:
    """With the bytes needed and free, and the place."""
    size = 1 << 62
    hub.repositories["org/huge"] = Repository(files={"config.json": b"{}", "model.safetensors": Huge(size)})
    with pytest.raises(Refused) as caught:
        agent.ask("fetch", **asking(hub, vllm, "org/huge"))
    assert caught.value.kind == "fetch-disk-full"
    assert str(size + 2) in str(caught.value)
    assert str(vllm.parents[1] / "hf/hub") in str(caught.value)


class Huge(bytes):
    """A file that says it is larger than it is."""

    size: int

    def __new__(cls, size: int) -> Self:
        """Say `size`."""
        made = super().__new__(cls, b"x")
        made.size = size
        return made

    def __len__(self) -> int:
        """As said."""
        return self.size


def test_a_vllm_without_the_client_is_told(agent: Agent, hub: Hub, vllm: Path) -> None:
    """Nothing was fetched; the interpreter is named."""
    vllm.write_text("#!/usr/bin/python3 -IS\n")
    with pytest.raises(Refused) as caught:
        agent.ask("fetch", **asking(hub, vllm))
    assert caught.value.kind == "fetch-no-hub"
    vllm.write_text("\x7fELF")
    with pytest.raises(Refused) as caught:
        agent.ask("fetch", **asking(hub, vllm))
    assert caught.value.kind == "not-found"


def test_the_token_is_in_no_process(agent: Agent, hub: Hub, vllm: Path) -> None:
    """Neither in arguments nor in an environment, all the while; and the fetching ends with the controller."""
    hold = threading.Event()
    answer = hub.answer

    def slow(request: Any) -> Any:  # noqa: ANN401 - the Hub's own types
        if "resolve" in request.path and request.method == "GET":
            hold.wait(20)
        return answer(request)

    hub.answer = slow  # type: ignore[method-assign] # a Hub that takes its time
    agent.ask("checkup")  # the agent is there now
    agent.send("fetch", **asking(hub, vllm))
    wait_until(lambda: any("resolve" in request.path for request in hub.requests) or fetchers(agent), 20)
    (pid,) = fetchers(agent)
    wait_until(lambda: any("/api/models" in request.path for request in hub.requests), 20)
    assert TOKEN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert TOKEN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    agent.process.stdin.close()  # type: ignore[union-attr] # the controller goes away
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists(), "it outlived the agent"
    hold.set()


def fetchers(agent: Agent) -> list[int]:
    """Processes that fetch for this agent."""
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    with contextlib.suppress(OSError):
        return [int(pid) for pid in children.read_text().split()]
    return []


def test_a_hub_that_tells_no_sizes(agent: Agent, hub: Hub, vllm: Path) -> None:
    """What was fetched is measured, so that a fetch does not look like none."""
    hub.tells_sizes = False
    first = agent.ask("fetch", **asking(hub, vllm))[0]
    size = sum(len(FILES[name]) for name in WANTED)
    assert (first["fetched"], first["total"]) == (size, size)
    again = agent.ask("fetch", **asking(hub, vllm))[0]
    assert (again["fetched"], again["total"]) == (0, size)


def test_nothing_of_the_logins_folder_runs(
    hub: Hub, vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write there would otherwise be given the token, and root's rights."""
    (tmp_path / "login").mkdir()
    (tmp_path / "login/json.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path / "login")
    running = Agent(tmp_path)
    try:
        assert running.ask("fetch", **asking(hub, vllm))[0]["fetched"] > 0
    finally:
        running.close()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("where", ["etag", "commit", "sha"])
def test_no_answer_leads_out_of_the_cache(agent: Agent, hub: Hub, vllm: Path, tmp_path: Path, where: str) -> None:
    """The client makes paths of what the Hub calls commits and files."""
    answer, evil = hub.answer, f"../../../../../../../..{tmp_path}/pwned"

    def hostile(request: Any) -> Any:  # noqa: ANN401 - the Hub's own types
        good = answer(request)
        if where == "sha" and "/api/models" in request.path:
            return replace(good, body=good.body.replace(COMMIT.encode(), evil.encode()))
        name = {"etag": "ETag", "commit": "X-Repo-Commit"}.get(where, "")
        return replace(good, headers={**good.headers, name: evil}) if name in good.headers else good

    hub.answer = hostile  # type: ignore[method-assign] # a Hub that is none
    before = {path for path in tmp_path.iterdir() if path.name != "hf"}
    with pytest.raises(Refused) as caught:
        agent.ask("fetch", **asking(hub, vllm))
    assert caught.value.kind == "fetch-untrusted"
    assert {path for path in tmp_path.iterdir() if path.name not in {"hf", "state", "config"}} <= before
    assert not list((tmp_path / "hf").rglob("*.safetensors*"))


def test_an_error_that_holds_the_token_is_cut_after_it_is_taken_out(agent: Agent, hub: Hub, vllm: Path) -> None:
    """No part of it remains at the end of a long message."""
    answer = hub.answer

    def echo(request: Any) -> Any:  # noqa: ANN401 - the Hub's own types
        good = answer(request)
        told = "x" * 260 + (request.token or "") * 3
        return replace(good, status=HTTPStatus.INTERNAL_SERVER_ERROR, headers={"X-Error-Message": told}, body=b"{}")

    hub.answer = echo  # type: ignore[method-assign] # a Hub that repeats what it hears
    with pytest.raises(Refused) as caught:
        agent.ask("fetch", **asking(hub, vllm))
    assert "x" * 200 in str(caught.value)
    assert TOKEN[:6] not in str(caught.value)


def test_a_model_that_is_whole_needs_no_hub(agent: Agent, hub: Hub, vllm: Path) -> None:
    """Nor does one that is offline; one of which a part is missing is not called there."""
    sharded = {
        "config.json": b"{}",
        "model.safetensors.index.json": b'{"weight_map": {"b": "w-00002-of-00002.safetensors"}}',
        "w-00001-of-00002.safetensors": b"1" * 100,
        "w-00002-of-00002.safetensors": b"2" * 100,
    }
    hub.repositories["org/sharded"] = Repository(files=sharded)
    for model in ("org/open", "org/sharded"):
        agent.ask("fetch", **asking(hub, vllm, model))
    hub.failure = HTTPStatus.SERVICE_UNAVAILABLE
    for model in ("org/open", "org/sharded"):
        answer = agent.ask("fetch", **asking(hub, vllm, model))[0]
        assert (answer["fetched"], answer["total"] > 200) == (0, True)
    folder = vllm.parents[1] / f"hf/hub/models--org--sharded/snapshots/{COMMIT}"
    for name in ("w-00002-of-00002.safetensors", "config.json"):
        kept_aside = (folder / name).readlink()
        (folder / name).unlink()
        with pytest.raises(Refused) as caught:
            agent.ask("fetch", **asking(hub, vllm, "org/sharded"))
        assert caught.value.kind == "fetch-hub-unreachable"
        (folder / name).symlink_to(kept_aside)


def test_a_hub_that_says_nothing_is_given_up(
    hub: Hub, vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own patience ends, and what it says is told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        request = asking(hub, vllm)
        request["env"] |= {"HF_ENDPOINT": url}
        source = (ROOM / "fetch.py").read_text(encoding="utf-8")
        assert "PATIENCE_S = 60.0" in source
        hasty = source.replace("PATIENCE_S = 60.0", "PATIENCE_S = 2.0")
        running = Agent(tmp_path, archive=build_archive(replacing={"fetch.py": hasty}))
        try:
            with pytest.raises(Refused, match="no whole answer within 2 s") as caught:
                running.ask("fetch", **request)
        finally:
            running.close()
        assert caught.value.kind == "fetch-hub-unreachable"

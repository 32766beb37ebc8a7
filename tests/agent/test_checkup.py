"""checkup on this machine: what is there is found, what is used is not called a leftover, nothing is changed."""

from __future__ import annotations

import mmap
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.driver import Agent, Refused
from tests.lab.hub import Hub
from vmreconcile.agent import limits


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent with folders of its own."""
    running = Agent(tmp_path)
    yield running
    running.close()


def checkup(agent: Agent, **fields: object) -> dict[str, Any]:
    """What the agent found."""
    found: dict[str, Any] = agent.ask(do="checkup", **fields)[0]["checkup"]
    return found


def test_space_and_limits(agent: Agent, tmp_path: Path) -> None:
    """As the system itself says; a folder that is not there yet counts where it would be made."""
    found = checkup(agent)
    disks = {disk["path"]: disk for disk in found["disks"]}
    there = os.statvfs(tmp_path)
    state = disks[f"{tmp_path}/state"]
    assert state["total"] == there.f_blocks * there.f_frsize
    assert abs(state["free"] - there.f_bavail * there.f_frsize) < 1 << 30
    assert disks["/dev/shm"]["total"] == os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize
    assert found["limits"]["login"]["nofile"] == [*resource.getrlimit(resource.RLIMIT_NOFILE)]
    assert set(found["limits"]["login"]) == {"nofile", "nproc"}


def test_limits_of_a_process() -> None:
    """As the kernel writes them; without a limit it is -1; what is no such text is nothing."""
    own = limits.parse(Path("/proc/self/limits").read_text())
    assert own == {
        "nofile": [*resource.getrlimit(resource.RLIMIT_NOFILE)],
        "nproc": [*resource.getrlimit(resource.RLIMIT_NPROC)],
    }
    row = "Max open files            1024                 unlimited            files     \n"
    assert limits.parse("Limit   Soft Limit   Hard Limit   Units\n" + row) == {"nofile": [1024, -1]}
    for text in ("", "Max open files\n", "Max open files x y files\n"):
        assert limits.parse(text) is None


def test_clock(agent: Agent) -> None:
    """When the question came and when the answer went, by the host's own clock."""
    sent = time.time()
    times = checkup(agent)["clock"]
    assert sent <= times["received"] <= times["answered"] <= time.time()


def test_caches(agent: Agent, tmp_path: Path) -> None:
    """By the server's own variables; what is there, what was cut off; a path is a path."""
    hub = tmp_path / "hf/hub/models--org--m"
    (hub / "blobs").mkdir(parents=True)
    (hub / "snapshots").mkdir()
    (hub / "blobs/a").write_bytes(b"x" * 1000)
    (hub / "blobs/b.incomplete").write_bytes(b"x" * 10)
    (tmp_path / "model").mkdir()
    models = [
        {"slug": "m", "model": "org/m", "env": {"HF_HOME": f"{tmp_path}/hf"}},
        {"slug": "n", "model": "org/n", "env": {"HF_HUB_CACHE": f"{tmp_path}/hf/hub"}},
        {"slug": "p", "model": f"{tmp_path}/model", "env": {}},
    ]
    caches = {cache["slug"]: cache for cache in checkup(agent, models=models)["caches"]}
    assert (caches["m"]["path"], caches["m"]["bytes"], caches["m"]["partial"]) == (f"{tmp_path}/hf/hub", 1010, 1)
    assert (caches["n"]["path"], caches["n"]["bytes"]) == (f"{tmp_path}/hf/hub", None)
    assert caches["p"]["bytes"] is None
    (tmp_path / "model/config.json").write_text("{}")
    assert checkup(agent, models=models)["caches"][2]["bytes"] == 2


def test_architectures(agent: Agent, tmp_path: Path) -> None:
    """Of a path, and of the snapshot that a revision stands for; a file that is none, or not there, tells nothing."""
    home = tmp_path / "hf/hub/models--org--m"
    for path, text in {
        "refs/main": "c0ffee",
        "snapshots/c0ffee/config.json": '{"architectures": ["NewForCausalLM", 5]}',
        "snapshots/0ld/config.json": '{"architectures": ["OldForCausalLM"]}',
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text)
    texts = {"good": '{"architectures": ["GoodForCausalLM"]}', "bad": "[" * 100_000, "odd": '{"architectures": "x"}'}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    asked = {
        "a": ("org/m", ""),
        "b": ("org/m", "0ld"),
        "c": ("org/m", "other"),
        "d": ("org/n", ""),
        **{name: (f"{tmp_path}/{name}", "") for name in (*texts, "none")},
    }
    models = [
        {"slug": slug, "model": model, "revision": revision, "env": {"HF_HOME": f"{tmp_path}/hf"}}
        for slug, (model, revision) in asked.items()
    ]
    answer = agent.ask(do="observe", salt="00" * 16, models=models)[0]["observation"]["architectures"]
    assert {row["slug"]: row["names"] for row in answer} == {
        "a": ["NewForCausalLM"],
        "b": ["OldForCausalLM"],
        "good": ["GoodForCausalLM"],
    }
    for wrong in ([5], [{"slug": "../x", "model": "m", "revision": "", "env": {}}], [{"slug": "m", "env": {}}], "m"):
        with pytest.raises(Refused, match="bad-request"):
            agent.ask(do="observe", salt="00" * 16, models=wrong)


def test_leftovers(agent: Agent) -> None:
    """Old files of ours with such a name that no process uses: open or mapped ones are not among them."""
    name = f"psm_vmreconcile_test_{os.getpid()}"
    left, opened, mapped, young = (Path(f"/dev/shm/{name}_{what}") for what in ("left", "opened", "mapped", "young"))
    try:
        for path in (left, opened, mapped, young):
            path.write_bytes(b"x" * 4096)
            if path != young:
                os.utime(path, (time.time() - 900, time.time() - 900))
        with opened.open("rb"), mapped.open("r+b") as file:
            region = mmap.mmap(file.fileno(), 4096)
            os.utime(mapped, (time.time() - 900, time.time() - 900))
            found = [row for row in checkup(agent)["leftovers"] if name in row["path"]]
            region.close()
        assert [row["path"] for row in found] == [str(left)]
        assert (found[0]["bytes"], found[0]["age_seconds"] >= 900) == (4096, True)
        assert left.exists()
    finally:
        for path in (left, opened, mapped, young):
            path.unlink(missing_ok=True)


def test_endpoints(agent: Agent) -> None:
    """Any answer will do; no answer is told."""
    with Hub() as hub:
        found = checkup(agent, endpoints=[hub.url, "http://127.0.0.1:9"])["hubs"]
    problems = {row["endpoint"]: row["problem"] for row in found}
    assert problems[hub.url] is None
    assert "refused" in problems["http://127.0.0.1:9"].lower()


@pytest.mark.parametrize("wrong", [{"models": [1]}, {"models": [{"slug": "../x"}]}, {"endpoints": ["file:///etc"]}])
def test_a_malformed_request_is_refused(agent: Agent, wrong: dict[str, Any]) -> None:
    """By name."""
    with pytest.raises(Refused) as caught:
        agent.ask(do="checkup", **wrong)
    assert caught.value.kind == "bad-request"

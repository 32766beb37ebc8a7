"""The agent beside the real vLLM: what it sees, proves, ends and leaves is what the simulator made us believe."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.agent.conftest import SLUG, World, session_of, wait_until
from tests.lab.tiny_model import ARGUMENTS, ENVIRONMENT, write_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_started_seen_killed_and_cleaned_up(tmp_path: Path, vllm: Path) -> None:
    """Started, ready, one token; its root killed, its engine is an orphan of ours and is ended; then started anew."""
    model = write_model(tmp_path / "model")
    world = World(tmp_path, vllm)
    try:
        argv = [str(vllm), "serve", str(model), "--host", "127.0.0.1", "--port", str(world.port), *ARGUMENTS]
        env = world.write_env(VLLM_API_KEY="sk-of-this-server-alone", **ENVIRONMENT)
        pid = world.agent.steps(env, world.spawn(argv=argv))[-1]["pid"]
        world.pids.add(pid)

        def ready() -> dict[str, object] | bool:
            seen = world.agent.server(SLUG)
            assert seen["process"] is not None, Path(world.spawn()["log_path"]).read_text()[-2000:]
            return seen if (seen["endpoint"] or {}).get("health") == 200 else False

        seen = wait_until(ready, 180)
        assert seen["endpoint"]["version"].startswith("0.32.0")
        assert seen["endpoint"]["models"][0]["root"] == str(model)
        assert seen["process"]["env"]["VLLM_API_KEY"] == seen["env_file"]["env"]["VLLM_API_KEY"]
        assert "VLLM::EngineCore" in [child["title"] for child in seen["process"]["children"]]
        gate = world.agent.ask("gate", slug=SLUG, address="", port=world.port, completion=True, timeout=60)[0]
        assert gate["completion"]["ok"] is True, gate

        os.kill(pid, signal.SIGKILL)
        left = wait_until(lambda: (s := world.agent.server(SLUG))["process"] is None and s)["orphans"]
        assert "VLLM::EngineCore" in [worker["title"] for worker in left]
        processes = [[worker["pid"], worker["start_ticks"]] for worker in left]
        world.agent.steps({"step": "end-orphans", "slug": SLUG, "processes": processes, "grace_s": 20})
        assert session_of(pid) == []

        pid = world.agent.steps(env, world.spawn(argv=argv))[-1]["pid"]
        world.pids.add(pid)
        log = Path(world.spawn()["log_path"])
        wait_until(lambda: log.read_text().rpartition("vmreconcile: starting")[2].count("EngineCore pid="), 120)
        answer = world.agent.steps(world.stop_step(grace=5))[0]
        assert "TERM" in answer["signals"]
        assert session_of(pid) == []
    finally:
        world.close()


def test_a_model_that_embeds_and_one_that_hangs(tmp_path: Path, vllm: Path) -> None:
    """The gate finds the question of each task. An engine that is stopped in mid-work is seen, while /health is 200."""
    model = write_model(tmp_path / "model")
    worlds = {name: World(tmp_path / name, vllm) for name in ("embeds", "writes")}
    more = {"embeds": ("--runner", "pooling", "--convert", "embed"), "writes": ("--served-model-name", "chat")}
    try:
        for name, world in worlds.items():
            world.root.mkdir()
            argv = [str(vllm), "serve", str(model), "--host", "127.0.0.1", "--port", str(world.port)]
            env = world.write_env(**ENVIRONMENT)
            spawn = world.spawn(argv=[*argv, *ARGUMENTS, *more[name]])
            world.pids.add(world.agent.steps(env, spawn)[-1]["pid"])
        for world in worlds.values():
            wait_until(lambda world=world: (world.agent.server(SLUG)["endpoint"] or {}).get("health") == 200, 300)

        embeds, writes = worlds.values()
        for world, names, paths in (
            (embeds, (str(model), None), ("/v1/embeddings", "/v1/embeddings")),
            (writes, ("chat", None), ("/v1/completions", "/v1/completions")),
        ):
            for name, runner, path in zip(names, ("", "pooling"), paths, strict=True):
                asked = {"slug": SLUG, "address": "", "port": world.port, "model": name, "runner": runner}
                gate = world.agent.ask("gate", **asked, completion=True, timeout=60)[0]
                assert (gate["completion"]["ok"], gate["completion"].get("path")) == (True, path), gate
        wrong = writes.agent.ask("gate", **{**asked, "model": "other"}, completion=True, timeout=60)[0]["completion"]
        assert wrong["ok"] is False
        assert "The model `other` does not exist" in wrong["problem"]

        assert _endpoint(writes, stalls=True)["stalled_s"] is None
        asking = [threading.Thread(target=_complete, args=(writes.port,), daemon=True) for _ in range(4)]
        for thread in asking:
            thread.start()
        wait_until(lambda: _endpoint(writes, metrics=True)["metrics"]["requests_running"])
        assert _endpoint(writes, stalls=True)["stalled_s"] is None
        (engine,) = [
            child["pid"]
            for child in writes.agent.server(SLUG)["process"]["children"]
            if child["title"] == "VLLM::EngineCore"
        ]
        os.kill(engine, signal.SIGSTOP)
        seen = _endpoint(writes, stalls=True)
        assert seen["health"] == 200
        assert seen["stalled_s"] > 25
        os.kill(engine, signal.SIGCONT)
        wait_until(lambda: _endpoint(writes, metrics=True)["metrics"]["requests_running"] == 0, 60)
        assert _endpoint(writes, stalls=True)["stalled_s"] is None
    finally:
        for world in worlds.values():
            world.close()


def _endpoint(world: World, **more: object) -> dict[str, Any]:
    """What is seen of the server's HTTP side."""
    (server,) = world.agent.observe(**more)["servers"]
    found: dict[str, Any] = server["endpoint"]
    return found


def _complete(port: int) -> None:
    """Ask for long completions, one after the other, until one does not come."""
    body = json.dumps({"model": "chat", "prompt": "x", "max_tokens": 500, "ignore_eos": True})
    with contextlib.suppress(OSError):
        for _ in range(30):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as asking:
                asking.request("POST", "/v1/completions", body=body, headers={"Content-Type": "application/json"})
                asking.getresponse().read()

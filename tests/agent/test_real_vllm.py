"""The agent beside the real vLLM: what it sees, proves, ends and leaves is what the simulator made us believe."""

from __future__ import annotations

import os
import signal
from pathlib import Path

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

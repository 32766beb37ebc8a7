"""What the agent's tests share: an agent with folders of its own, and servers that it starts there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.driver import Agent

SLUG = "qwen2.5-7b"


def session_of(pid: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == pid and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return sorted(found)


def wait_until(what: Callable[[], Any], seconds: float = 10) -> Any:  # noqa: ANN401 - whatever is waited for
    """Wait for something to be true and return it."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class World:
    """One agent's folders and the servers started there; everything started ends with the test."""

    def __init__(self, root: Path, vllm: Path, python: str = sys.executable) -> None:
        """Take an empty folder, the path of a (simulated) vllm, and the agent's interpreter."""
        self.root = root
        self.vllm = vllm
        self.port = free_port()
        self.agent = Agent(root, python=python)
        self.agents = [self.agent]
        self.pids: set[int] = set()

    def path(self, name: str) -> str:
        """A path in our folders."""
        return f"{self.root}/{name}"

    @property
    def env_path(self) -> str:
        """The env file of the server."""
        return self.path(f"config/env/{SLUG}.env")

    def write_env(self, **values: str) -> dict[str, Any]:
        """The step that writes the env file."""
        return {"step": "write-env", "path": self.env_path, "entries": [[name, text] for name, text in values.items()]}

    def spawn(self, *words: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - fields of a step
        """The step that starts the server."""
        argv = [str(self.vllm), "serve", "a/model", "--host", "127.0.0.1", "--port", str(self.port), *words]
        record = {"server": SLUG, "runtime": "process", "state": "running", "env_names": ["MARK"]}
        log = self.path(f"state/log/{SLUG}.log")
        step = {"step": "spawn", "slug": SLUG, "argv": argv, "cwd": str(self.root), "record": record}
        return {**step, "env_path": self.env_path, "log_path": log, **fields}

    def start(self, *words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
        """Start the server and return what the agent answered."""
        answer = self.agent.steps(self.write_env(MARK="1", **(env or {})), self.spawn(*words))[-1]
        self.pids.add(answer["pid"])
        return answer

    def ready(self) -> dict[str, Any]:
        """Wait until the server is healthy; return it as observed."""
        return wait_until(lambda: (s := self.agent.server(SLUG)) and (s["endpoint"] or {}).get("health") == 200 and s)

    def record(self) -> dict[str, Any]:
        """The record as it lies there."""
        found: dict[str, Any] = json.loads(Path(self.path(f"state/servers/{SLUG}.json")).read_text())
        return found

    def stop_step(self, grace: float = 5) -> dict[str, Any]:
        """The step that stops what the record names."""
        record = self.record()
        names = {name: record[name] for name in ("pid", "start_ticks", "boot_id")}
        return {"step": "stop-process", "slug": SLUG, "grace_s": grace, **names}

    def close(self) -> None:
        """End everything."""
        for agent in self.agents:
            agent.close()
        for pid in self.pids:
            for member in session_of(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)


@pytest.fixture
def world(tmp_path: Path, simulator: Path) -> Iterator[World]:
    """An agent with empty folders, and a simulated vLLM to start."""
    made = World(tmp_path, simulator)
    yield made
    made.close()


def oldest_python() -> str:
    """A Python 3.8, the oldest that the agent is for; "" where this machine has none."""
    return next(map(str, sorted((Path.home() / ".pyenv/versions").glob("3.8.*/bin/python"))), "")


@pytest.fixture
def old_world(tmp_path: Path, simulator: Path) -> Iterator[World]:
    """The same under Python 3.8, which knows no pidfd; where there is none, under the tests' own."""
    made = World(tmp_path, simulator, oldest_python() or sys.executable)
    yield made
    made.close()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent with empty folders."""
    made = Agent(tmp_path)
    yield made
    made.close()

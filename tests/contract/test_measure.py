"""benchmarks/gpu/measure.py on a machine without a GPU: what it refuses, and that it leaves no server behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/measure.py"


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, on a machine with two GPUs whose use is said by the file `used`."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat {tmp_path}/used\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "used").write_text("4\n520\n")
    spec = importlib.util.spec_from_file_location("measure", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        return int(there.getsockname()[1])


def test_a_server_that_is_there_already_is_refused_by_its_pid(
    measure: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would answer for ours."""
    monkeypatch.setattr(measure, "PORT", free_port())
    measure.refuse_if_busy()
    with socket.create_server(("127.0.0.1", 0)) as there:
        monkeypatch.setattr(measure, "PORT", there.getsockname()[1])
        with pytest.raises(SystemExit, match=rf"answers on port .* \(pid {os.getpid()}\)"):
            measure.refuse_if_busy()


def test_memory_in_use_is_refused(measure: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the GPU; by no pid where its process cannot be seen."""
    monkeypatch.setattr(measure, "PORT", free_port())
    (tmp_path / "used").write_text("4\n75366\n")
    with pytest.raises(SystemExit, match=r"in use already, GPU 1: 73\.6 GiB \(by no process that can be seen"):
        measure.refuse_if_busy()


PROGRAM = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("measure", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.PORT = int(sys.argv[3])
module.start_and_stop(["sh", "-c", "sleep 60 & echo $! $$; wait"], Path(sys.argv[2]), {"timeout": 60})
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_the_measurement_that_started_it(tmp_path: Path, sign: signal.Signals) -> None:
    """Whatever ends that, and with all that it started itself."""
    log = tmp_path / "log"
    words = [sys.executable, "-c", PROGRAM, str(SCRIPT), str(log), str(free_port())]
    running = subprocess.Popen(words)
    assert until(lambda: log.exists() and len(log.read_text().split()) == 2)
    time.sleep(0.5)  # the watchdog comes right after the server
    running.send_signal(sign)
    running.wait(10)
    pids = [int(word) for word in log.read_text().split()]
    try:
        assert until(lambda: not any(alive(pid) for pid in pids)), pids
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pids[1], signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether it runs: what is dead, and waits for an init that does not come, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool], patience: float = 10.0) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + patience
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()

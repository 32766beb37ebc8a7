"""What a simulated server does beyond what the contract suite asks: many GPUs, groups of signals, switched faults."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.server import Server, running

pytestmark = pytest.mark.slow


def titles(server: Server) -> list[str]:
    """The titled processes' titles, sorted."""
    return sorted(process.title for process in server.processes() if process.title.startswith("VLLM::"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("-tp", "2"), ["VLLM::EngineCore", "VLLM::Worker_TP0", "VLLM::Worker_TP1"]),
        (("-pp", "2"), ["VLLM::EngineCore", "VLLM::Worker_PP0", "VLLM::Worker_PP1"]),
        (
            ("-dp", "2"),
            [
                "VLLM::ApiServer_0",
                "VLLM::ApiServer_1",
                "VLLM::DPCoordinator",
                "VLLM::EngineCore_DP0",
                "VLLM::EngineCore_DP1",
            ],
        ),
    ],
)
def test_several_gpus(simulator: Path, tmp_path: Path, words: tuple[str, ...], expected: list[str]) -> None:
    """Each kind of parallelism has its processes, and all of them end with a clean stop."""
    with running(simulator, "a/model", tmp_path / "log", *words) as server:
        server.wait_ready(10)
        assert titles(server) == expected
        os.kill(server.pid, signal.SIGTERM)
        assert server.end(5) == 0
        server.wait_until(lambda: not server.processes(), 5, "processes left")


def test_a_dead_worker_ends_the_engine(simulator: Path, tmp_path: Path) -> None:
    """An engine does not outlive its worker, nor the root its engine."""
    with running(
        simulator, "a/model", tmp_path / "log", "-tp=2", env={"VLLM_SIMULATOR_WATCHDOG_SECONDS": "0.2"}
    ) as server:
        server.wait_ready(10)
        worker = next(process for process in server.processes() if process.title == "VLLM::Worker_TP1")
        os.kill(worker.pid, signal.SIGKILL)
        assert server.end(5) == 0
        assert "Worker proc died unexpectedly" in server.log()
        server.wait_until(lambda: not server.processes(), 5, "processes left")


def test_workers_follow_a_killed_engine(simulator: Path, tmp_path: Path) -> None:
    """Workers of an engine that was killed end by themselves."""
    with running(simulator, "a/model", tmp_path / "log", "-tp=2") as server:
        server.wait_ready(10)
        os.kill(server.engines()[0].pid, signal.SIGKILL)
        server.wait_until(lambda: not titles(server), 5, "workers left")


def test_a_signal_to_the_whole_group_while_starting(simulator: Path, tmp_path: Path) -> None:
    """As systemd sends it: the engine dies, the root hangs until the second SIGTERM (measured on vLLM 0.32.0)."""
    env = {"VLLM_SIMULATOR_START_SECONDS": "20", "VLLM_SIMULATOR_TERM_SECONDS": "0.1"}
    with running(simulator, "a/model", tmp_path / "log", env=env) as server:
        server.wait_for_log("(EngineCore pid=", 10)
        os.killpg(server.pid, signal.SIGTERM)
        server.wait_until(lambda: not server.engines(), 5, "engine left")
        time.sleep(0.3)
        assert server.popen.poll() is None
        os.killpg(server.pid, signal.SIGTERM)
        assert server.end(5) == -signal.SIGINT


def test_a_signal_to_the_whole_group_when_ready(simulator: Path, tmp_path: Path) -> None:
    """As systemd sends it: root and engine end together, at once, exit code 0 (measured on vLLM 0.32.0: 0.35 s)."""
    with running(simulator, "a/model", tmp_path / "log", "-tp=2") as server:
        server.wait_ready(10)
        os.killpg(server.pid, signal.SIGTERM)
        assert server.end(2) == 0
        server.wait_until(lambda: not server.processes(), 2, "processes left")


def test_a_swallowed_signal_and_a_ready_server(simulator: Path, tmp_path: Path) -> None:
    """A start goes on after one SIGTERM; once ready, the next one stops it cleanly."""
    with running(simulator, "a/model", tmp_path / "log", env={"VLLM_SIMULATOR_START_SECONDS": "0.7"}) as server:
        server.wait_for_log("(EngineCore pid=", 10)
        os.kill(server.pid, signal.SIGTERM)
        server.wait_ready(10)
        os.kill(server.pid, signal.SIGTERM)
        assert server.end(5) == 0


def test_a_start_that_hangs_after_a_signal(simulator: Path, tmp_path: Path) -> None:
    """With `hang_on_term` one SIGTERM keeps the start from ever being ready."""
    env = {
        "VLLM_SIMULATOR_HANG_ON_TERM": "1",
        "VLLM_SIMULATOR_START_SECONDS": "0.3",
        "VLLM_SIMULATOR_TERM_SECONDS": "0",
    }
    with running(simulator, "a/model", tmp_path / "log", env=env) as server:
        server.wait_for_log("(EngineCore pid=", 10)
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for_log("init engine", 5)
        time.sleep(0.3)
        assert "Application startup complete" not in server.log()
        os.kill(server.pid, signal.SIGTERM)
        assert server.end(5) == -signal.SIGINT


def test_a_running_server_can_be_wedged(simulator: Path, tmp_path: Path) -> None:
    """A file turns `wedged` on and off under a running server; health stays 200 and the request is counted."""
    faults = tmp_path / "faults"
    question = {"prompt": "x", "max_tokens": 1}
    with running(simulator, "a/model", tmp_path / "log", env={"VLLM_SIMULATOR_FAULTS": str(faults)}) as server:
        server.wait_ready(10)
        assert server.ask("/v1/completions", question).status == 200
        faults.write_text("wedged=1\n")
        given_up = threading.Thread(target=_give_up, args=(server, question))
        given_up.start()
        server.wait_until(lambda: b"num_requests_running{engine" in server.ask("/metrics").body, 5, "no metrics")
        server.wait_until(lambda: _running(server) == 1, 5, "the request is not counted")
        assert server.ask("/health").status == 200
        given_up.join()
        still = server.ask("/metrics").body
        _give_up(server, question)
        assert server.ask("/metrics").body == still, "a hung engine counts nothing, whoever comes and leaves"
        faults.unlink()
        assert server.ask("/v1/completions", question).status == 200
        assert _running(server) == 0


def _give_up(server: Server, question: object) -> None:
    """Ask, and leave after a second without an answer."""
    with pytest.raises(TimeoutError):
        server.ask("/v1/completions", question, timeout=1.0)


def _running(server: Server) -> float:
    """How many requests the server says it is working on."""
    lines = server.ask("/metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith("vllm:num_requests_running{")).rpartition(" ")[2])


def test_a_crash_on_request(simulator: Path, tmp_path: Path) -> None:
    """The engine dies of a completion: 500, then the root is gone, exit code 0."""
    with running(simulator, "a/model", tmp_path / "log", env={"VLLM_SIMULATOR_CRASH_ON_REQUEST": "1"}) as server:
        server.wait_ready(10)
        assert server.ask("/v1/completions", {"prompt": "x"}).status == 500
        server.wait_until(lambda: "EngineDeadError" in server.log(), 5, "no death")
        assert not server.engines()


def test_a_crash_after_a_while(simulator: Path, tmp_path: Path) -> None:
    """The engine dies by itself; a completion then ends the root at once."""
    env = {"VLLM_SIMULATOR_CRASH_AFTER": "0.3", "VLLM_SIMULATOR_WATCHDOG_SECONDS": "20"}
    with running(simulator, "a/model", tmp_path / "log", env=env) as server:
        server.wait_ready(10)
        server.wait_until(lambda: server.ask("/health").status == 503, 5, "no 503")
        assert server.ask("/v1/completions", {"prompt": "x"}).status == 500
        assert server.end(5) == 0


def test_a_slow_stop(simulator: Path, tmp_path: Path) -> None:
    """While it stops, health stays 200, completions get 500, a second SIGTERM hurries nothing."""
    with running(simulator, "a/model", tmp_path / "log", env={"VLLM_SIMULATOR_STOP_SECONDS": "1"}) as server:
        server.wait_ready(10)
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for_log("shutdown triggered", 5)
        assert server.ask("/v1/completions", {"prompt": "x"}).status == 500
        assert server.ask("/health").status == 200
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.2)
        assert server.popen.poll() is None
        assert server.end(5) == 0


def _asked(server: Server, answers: list[dict[str, Any]]) -> threading.Thread:
    """Ask for a completion from the side, and wait until it is counted."""

    def ask() -> None:
        answer = server.ask("/v1/completions", {"prompt": "x", "max_tokens": 100}, timeout=8.0)
        answers.append({"status": answer.status, **answer.json()})

    asked = threading.Thread(target=ask)
    asked.start()
    server.wait_until(lambda: _running(server) == 1, 5, "the request is not counted")
    return asked


def test_a_request_is_finished_where_there_is_time_for_it(simulator: Path, tmp_path: Path) -> None:
    """With --shutdown-timeout a request that is being answered is answered before the server ends."""
    env = {"VLLM_SIMULATOR_REQUEST_SECONDS": "1"}
    with running(simulator, "a/model", tmp_path / "log", "--shutdown-timeout=20", env=env) as server:
        server.wait_ready(10)
        answers: list[dict[str, Any]] = []
        asked = _asked(server, answers)
        os.kill(server.pid, signal.SIGTERM)
        asked.join()
        assert (answers[0]["status"], answers[0]["usage"]["completion_tokens"]) == (200, 100)
        assert server.end(5) == 0


def test_a_request_that_takes_longer_holds_up_the_exit(simulator: Path, tmp_path: Path) -> None:
    """Its engine is gone: no answer comes any more, and the root waits until the client leaves, without listening."""
    env = {"VLLM_SIMULATOR_REQUEST_SECONDS": "60"}
    with running(simulator, "a/model", tmp_path / "log", "--shutdown-timeout=1", env=env) as server:
        server.wait_ready(10)
        left: list[object] = []

        def ask() -> None:
            with pytest.raises(TimeoutError):
                server.ask("/v1/completions", {"prompt": "x"}, timeout=3.0)
            left.append(server.popen.poll())

        asked = threading.Thread(target=ask)
        asked.start()
        server.wait_until(lambda: _running(server) == 1, 5, "the request is not counted")
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for_log("shutting down FastAPI", 5)
        with pytest.raises(OSError, match="refused"):
            server.ask("/health")
        assert server.popen.poll() is None
        asked.join()
        assert left == [None]
        assert server.end(5) == 0


def test_a_signal_to_the_whole_group_loses_the_requests_of_two_workers(simulator: Path, tmp_path: Path) -> None:
    """Workers mind a SIGTERM at once, whatever time the root gives its requests: 500, as the real one answers."""
    env = {"VLLM_SIMULATOR_REQUEST_SECONDS": "3"}
    with running(simulator, "a/model", tmp_path / "log", "--shutdown-timeout=20", "-tp", "2", env=env) as server:
        server.wait_ready(10)
        answers: list[dict[str, Any]] = []
        asked = _asked(server, answers)
        os.killpg(server.pid, signal.SIGTERM)
        asked.join()
        assert answers[0]["status"] == 500
        assert server.end(5) == 0


def test_a_misspelled_switch(simulator: Path, tmp_path: Path) -> None:
    """A switch that does not exist ends the start with one line that names it."""
    with running(simulator, "a/model", tmp_path / "log", env={"VLLM_SIMULATOR_WEGDED": "1"}) as server:
        assert server.end(5) == 1
        assert "VLLM_SIMULATOR_WEGDED" in server.log()
        assert "Traceback" not in server.log()


@pytest.mark.slow
def test_a_fleet_is_light(simulator: Path, tmp_path: Path) -> None:
    """Twelve servers are ready within 12 s of two cores, take less than 30 MB a process and sleep when left alone."""
    with ExitStack() as stack:
        begun = time.monotonic()
        fleet = [stack.enter_context(running(simulator, "a/model", tmp_path / f"{n}.log")) for n in range(12)]
        for server in fleet:
            server.wait_ready(30)
        assert time.monotonic() - begun < 12
        pids = [process.pid for server in fleet for process in server.processes()]
        before = _cpu_seconds(pids)
        time.sleep(2.0)
        assert _cpu_seconds(pids) - before <= 0.02 * len(pids)
        assert max(_resident_bytes(pid) for pid in pids) < 30 << 20


def _cpu_seconds(pids: list[int]) -> float:
    """Processor time that the processes have used."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


def _resident_bytes(pid: int) -> int:
    """Memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

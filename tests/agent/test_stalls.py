"""Servers that are healthy and do no work: who is taken for one, and above all who is not."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.agent.conftest import World, wait_until
from tests.lab.server import Server, running
from vmreconcile.agent import endpoint, stalls

pytestmark = pytest.mark.slow  # starts many processes, or waits

ONE = {"prompt": "x", "max_tokens": 1}
PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 10.0
vllm:generation_tokens_total{engine="0",model_name="m"} 20.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 3.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 20.0
http_requests_total{handler="/metrics"} 5.0
process_cpu_seconds_total 12.5
"""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of fractions of a second."""
    monkeypatch.setattr(stalls, "QUICK_S", (0.01, 0.02))
    monkeypatch.setattr(stalls, "PAUSE_S", 0.05)
    monkeypatch.setattr(stalls, "WINDOW_S", 0.3)
    monkeypatch.setattr(stalls, "ANSWER_S", 0.5)


@contextmanager
def server_of(simulator: Path, folder: Path, *words: str, **switches: str) -> Iterator[Server]:
    """A ready server whose faults are in the file `faults` of the folder."""
    env = {f"VLLM_SIMULATOR_{name.upper()}": value for name, value in switches.items()}
    env["VLLM_SIMULATOR_FAULTS"] = str(folder / "faults")
    with running(simulator, "a/model", folder / "log", *words, env=env) as server:
        server.wait_ready(10)
        yield server


def look(server: Server) -> dict[str, object]:
    """What an observation tells of it."""
    where = ("127.0.0.1", server.port, "")
    return endpoint.observed({"m": where}, 2.0, metrics=False, stalls=stalls.stalled)["m"]


@contextmanager
def asked(server: Server, path: str = "/v1/completions", body: object = None, times: int = 1) -> Iterator[None]:
    """Somebody asks it, one request after the other, and is seen in its metrics first."""

    def ask() -> None:
        for _ in range(times):
            try:
                server.ask(path, body or ONE, timeout=30.0)
            except OSError:
                return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    wait_until(lambda: b"} 1.0" in stalls.marks(server.ask("/metrics").body).split(b"\n")[0])
    yield


@pytest.mark.parametrize(
    ("word", "moves"),
    [
        (b"num_requests_running", True),
        (b"num_requests_waiting", True),
        (b"kv_cache_usage_perc", True),
        (b"prompt_tokens_total", True),
        (b"generation_tokens_total", True),
        (b"request_success_total", True),
        (b"iteration_tokens_total_count", True),
        (b"http_requests_total", False),
        (b"process_cpu_seconds_total", False),
    ],
)
def test_what_moves_as_soon_as_any_request_does(word: bytes, moves: bool) -> None:  # noqa: FBT001 - a table's column
    """A part of a long prompt counts; that somebody reads the page does not."""
    lines = PAGE.split(b"\n")
    other = b"\n".join(line.rpartition(b" ")[0] + b" 99" if word in line else line for line in lines)
    assert (stalls.marks(PAGE) != stalls.marks(other)) is moves


def test_an_idle_server_is_asked_nothing(simulator: Path, tmp_path: Path) -> None:
    """It pays for no window, and no completion is made of it, whatever would become of one."""
    (tmp_path / "faults").write_text("wedged=1\n")
    with server_of(simulator, tmp_path) as server:
        begun = time.monotonic()
        assert look(server)["stalled_s"] is None
        assert time.monotonic() - begun < 0.3
        assert "POST" not in server.log()


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        ((), "/v1/completions", ONE),
        (("--runner", "pooling"), "/v1/embeddings", {"input": "x"}),
        (("--convert", "classify", "--runner", "pooling"), "/classify", {"input": "x"}),
    ],
)
def test_a_server_that_hangs_is_seen(
    simulator: Path, tmp_path: Path, words: tuple[str, ...], path: str, body: object
) -> None:
    """Healthy, with a request, and nothing moves: for as long as it was looked at. Well again, it is none any more."""
    (tmp_path / "faults").write_text("wedged=1\n")
    with server_of(simulator, tmp_path, *words) as server, asked(server, path, body):
        found = look(server)
        assert found["health"] == 200
        assert isinstance(found["stalled_s"], float)
        assert found["stalled_s"] >= 0.8
        (tmp_path / "faults").unlink()
        assert server.ask(path, body).status == 200
        assert look(server)["stalled_s"] is None


def test_a_server_at_work_is_left_alone_soon(simulator: Path, tmp_path: Path) -> None:
    """Its numbers move: it is asked for no token, and not looked at for long."""
    with server_of(simulator, tmp_path, request_seconds="0.05") as server, asked(server, times=40):
        begun = time.monotonic()
        assert look(server)["stalled_s"] is None
        assert time.monotonic() - begun < 0.4


def test_a_slow_request_is_no_wedge(simulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves for longer than the window; but the token that is asked for comes."""
    monkeypatch.setattr(stalls, "ANSWER_S", 1.5)
    with server_of(simulator, tmp_path, request_seconds="0.8") as server, asked(server, times=3):
        assert look(server)["stalled_s"] is None


def test_a_full_server_that_moves_is_no_wedge(simulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token does not come in time, for others are before it; the numbers have moved meanwhile."""
    monkeypatch.setattr(stalls, "ANSWER_S", 0.4)
    with server_of(simulator, tmp_path, request_seconds="0.6") as server, asked(server, times=3):
        assert look(server)["stalled_s"] is None
        assert "POST" in server.log()


@pytest.mark.slow
def test_the_agent_itself_sees_it(world: World) -> None:
    """With the real times, half a minute; asked without it, it looks at once."""
    faults = Path(world.path("faults"))
    faults.write_text("wedged=1\n")
    world.start(env={"VLLM_SIMULATOR_FAULTS": str(faults), "VLLM_API_KEY": "sk-local-key-of-this-server"})
    world.ready()
    key = {"Authorization": "Bearer sk-local-key-of-this-server", "Content-Type": "application/json"}
    thread = threading.Thread(target=_post, args=(world.port, key), daemon=True)
    thread.start()

    def endpoint_now(**more: object) -> dict[str, object]:
        (server,) = world.agent.observe(**more)["servers"]
        found: dict[str, object] = server["endpoint"]
        return found

    wait_until(lambda: (endpoint_now(metrics=True)["metrics"] or {})["requests_running"] == 1)  # type: ignore[index]
    assert endpoint_now(metrics=True)["stalled_s"] is None
    seconds = endpoint_now(stalls=True)["stalled_s"]
    assert isinstance(seconds, float)
    assert 25 <= seconds < 40


def _post(port: int, headers: dict[str, str]) -> None:
    """Ask for a completion that never comes."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=90)) as asking:
        asking.request("POST", "/v1/completions", body='{"prompt": "x"}', headers=headers)
        with contextlib.suppress(OSError):
            asking.getresponse()

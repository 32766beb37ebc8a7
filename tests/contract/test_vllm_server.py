"""What the tool believes of a `vllm serve` process, asked of the simulator and of the real vLLM 0.32.0 alike.

The real one starts in 20 to 30 s, so its tests share one server and start six more.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.lab.server import Server, environment_of, running, session_of
from tests.lab.tiny_model import ARGUMENTS, ENVIRONMENT, write_adapter, write_model
from vmreconcile.agent.metrics import parse_metrics
from vmreconcile.agent.stalls import marks
from vmreconcile.vllm.measured import figures_of

pytestmark = pytest.mark.slow

KEY = "sk-contract"
LONG = ("--max-model-len=8192",)
"""Room for answers that take seconds."""
MARKER = "VMRECONCILE_SERVER"
PREFIX = r"\((APIServer|EngineCore) pid=\d+\) INFO \d\d-\d\d \d\d:\d\d:\d\d \[[\w.]+:\d+\] "
METRICS = {
    "vllm:cache_config_info",
    "vllm:generation_tokens_total",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prompt_tokens_total",
    "vllm:request_success_total",
}
CACHE_LABELS = {
    "block_size",
    "cache_dtype",
    "enable_prefix_caching",
    "engine",
    "gpu_memory_utilization",
    "kv_cache_max_concurrency",
    "kv_cache_memory_bytes",
    "kv_cache_size_tokens",
    "num_gpu_blocks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the suite runs against; times in seconds. `switches` are the simulator's, which the real vLLM ignores."""

    vllm: Path
    model: Path
    adapter: Path
    folder: Path
    ready: float
    soon: float
    version: str

    def start(self, name: str, *words: str, port: int = 0, **switches: str) -> AbstractContextManager[Server]:
        """Start a server; leave the `with` and it is gone."""
        env = ENVIRONMENT | {MARKER: "contract", "VLLM_API_KEY": KEY, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        env |= {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
        env |= {f"VLLM_SIMULATOR_{switch.upper()}": value for switch, value in switches.items()}
        arguments = (*ARGUMENTS, "--served-model-name", "tiny", *words)
        return running(self.vllm, str(self.model), self.folder / f"{name}.log", *arguments, env=env, port=port)


@pytest.fixture(scope="module", params=["simulator", pytest.param("vllm", marks=pytest.mark.vllm)])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The simulator, then the real vLLM."""
    folder = tmp_path_factory.mktemp(request.param)
    real = request.param == "vllm"
    return Subject(
        vllm=request.getfixturevalue(request.param),
        model=write_model(folder / "model"),
        adapter=write_adapter(folder / "adapter"),
        folder=folder,
        ready=180.0 if real else 10.0,
        soon=30.0 if real else 5.0,
        version="0.32.0" if real else "0.32.0+simulator",
    )


@pytest.fixture(scope="module")
def server(subject: Subject) -> Iterator[Server]:
    """One ready server for every test that leaves it as it was; its arguments come in many spellings."""
    words = ("-tp=1", "--gpu-mem", "0.5", "--no-enable-prefix-caching", "--enable_lora", "--shutdown_timeout=0")
    with subject.start("shared", *words) as started:
        started.wait_ready(subject.ready)
        yield started


def test_it_says_when_it_is_ready_and_what_it_measured(server: Server) -> None:
    """The log's lines have the known prefix, tell the KV cache's size, and end with the ready line.

    What is read of it is what the metrics tell, too.
    """
    log = server.log()
    assert "Application startup complete." in log
    assert re.search(PREFIX + r"non-default args: \{.*'max_model_len': 512", log)
    found = re.search(
        PREFIX + r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens, "
        r"Maximum concurrency for 512 tokens per request: ([\d.]+)x\n",
        log,
    )
    assert found
    tokens = int(found[2].replace(",", ""))
    assert tokens / 512 == pytest.approx(float(found[3]), abs=0.01)
    metrics = parse_metrics(server.ask("/metrics").body)["cache_config"]
    assert figures_of(log.splitlines(), metrics).kv_tokens == tokens
    assert figures_of([], metrics).kv_tokens == tokens
    assert KEY not in log


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_health_needs_no_key(server: Server, path: str) -> None:
    """`/health` and `/ping` answer 200 with nothing, to anyone."""
    answer = server.ask(path)
    assert (answer.status, answer.body) == (200, b"")


def test_version_and_load(server: Server, subject: Subject) -> None:
    """`/version` tells the version, `/load` counts requests; neither needs the key."""
    assert server.ask("/version").json() == {"version": subject.version}
    assert server.ask("/load").json() == {"server_load": 0}


@pytest.mark.parametrize("key", ["", "wrong"])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/models", None), ("/v1/completions", {"prompt": "x"}), ("/v1/nowhere", None)]
)
def test_v1_wants_the_key(server: Server, path: str, body: object, key: str) -> None:
    """Everything under /v1 is refused without the API key, whether it exists or not."""
    answer = server.ask(path, body, key=key)
    assert (answer.status, answer.json()) == (401, {"error": "Unauthorized"})


def test_models(server: Server, subject: Subject) -> None:
    """A model's card tells the served name, the model's own name and the context length."""
    document = server.ask("/v1/models", key=KEY).json()
    assert document["object"] == "list"
    (card,) = document["data"]
    assert {name: card[name] for name in ("id", "object", "root", "parent", "max_model_len")} == {
        "id": "tiny",
        "object": "model",
        "root": str(subject.model),
        "parent": None,
        "max_model_len": 512,
    }
    assert set(card) == {"created", "id", "max_model_len", "object", "owned_by", "parent", "permission", "root"}


def test_a_completion_of_one_token(server: Server) -> None:
    """The readiness gate's question: one token."""
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 1}
    answer = server.ask("/v1/completions", body, key=KEY)
    assert answer.status == 200
    document = answer.json()
    assert document["object"] == "text_completion"
    assert document["model"] == "tiny"
    assert document["usage"]["completion_tokens"] == 1
    assert document["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"model": "other", "prompt": "x"}, 404, "NotFoundError", "The model `other` does not exist."),
        ({"model": "tiny", "prompt": "x", "max_tokens": 9999}, 400, "BadRequestError", "max_model_len=512"),
        ({"model": "tiny"}, 400, "BadRequestError", "prompt"),
    ],
)
def test_a_refused_completion(server: Server, body: object, status: int, kind: str, words: str) -> None:
    """What cannot be completed is refused with vLLM's envelope."""
    answer = server.ask("/v1/completions", body, key=KEY)
    assert answer.status == status
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == (status, kind)
    assert words in error["message"]


def test_the_openai_client(server: Server) -> None:
    """OpenAI's own client completes and chats, in one piece and streamed."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        whole = client.completions.create(model="tiny", prompt="hello", max_tokens=3)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 3
        parts = list(client.completions.create(model="tiny", prompt="hello", max_tokens=3, stream=True))
        assert parts[-1].choices[0].finish_reason == "length"
        said = [{"role": "user", "content": "hello"}]
        chat = client.chat.completions.create(model="tiny", messages=said, max_tokens=3)
        assert chat.choices[0].message.role == "assistant"
        options = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(
                model="tiny", messages=said, max_tokens=3, stream=True, stream_options=options
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3


def test_metrics_tell_the_settings(server: Server) -> None:
    """`/metrics` is open to all, counts requests, and tells the cache's settings in labels."""
    answer = server.ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = [line for line in answer.body.decode().splitlines() if line and not line.startswith("#")]
    assert {re.split(r"[{ ]", line)[0] for line in lines} >= METRICS
    assert 'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in lines
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0' in lines
    (info,) = [line for line in lines if line.startswith("vllm:cache_config_info{")]
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info))
    assert set(labels) >= CACHE_LABELS
    assert labels["gpu_memory_utilization"] == "0.5"
    assert labels["kv_cache_memory_bytes"] == "67108864"
    assert labels["enable_prefix_caching"] == "False"
    tokens, blocks, block = (int(labels[n]) for n in ("kv_cache_size_tokens", "num_gpu_blocks", "block_size"))
    assert tokens == blocks * block


def test_adapters_come_and_go(server: Server, subject: Subject) -> None:
    """A LoRA adapter is loaded, listed, refused twice, replaced, unloaded, and missing afterwards."""
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    body = {"lora_name": "extra", "lora_path": str(subject.adapter)}
    assert server.ask(load, body, key=KEY).status == 200
    assert server.ask(load, body, key=KEY).status == 400
    assert server.ask(load, body | {"load_inplace": True}, key=KEY).status == 200
    cards = server.ask("/v1/models", key=KEY).json()["data"]
    assert [(card["id"], card["parent"], card["root"]) for card in cards][1:] == [
        ("extra", "tiny", str(subject.adapter))
    ]
    assert server.ask("/v1/completions", {"model": "extra", "prompt": "x", "max_tokens": 1}, key=KEY).status == 200
    assert server.ask(load, {"lora_name": "none", "lora_path": "/nowhere"}, key=KEY).status == 404
    assert server.ask(unload, {"lora_name": "extra"}, key=KEY).status == 200
    assert server.ask(unload, {"lora_name": "extra"}, key=KEY).status == 404
    assert server.ask(load, {}, key=KEY).status == 400


def test_unknown_paths_and_methods(server: Server) -> None:
    """A path that is not there is 404, a method that is not taken 405."""
    assert server.ask("/nowhere").status == 404
    assert server.ask("/health", {}).status == 405


def test_a_pooling_model(subject: Subject) -> None:
    """Its names are shown as any model's; it has the routes of its task, and no others; a path is its own name."""
    arguments = (*ARGUMENTS, "--runner", "pooling", "--convert", "embed")
    log = subject.folder / "pooling.log"
    with running(subject.vllm, str(subject.model), log, *arguments, env=ENVIRONMENT) as server:
        server.wait_ready(subject.ready)
        name = str(subject.model)
        assert [card["id"] for card in server.ask("/v1/models").json()["data"]] == [name]
        embedded = server.ask("/v1/embeddings", {"model": name, "input": "x"})
        assert (embedded.status, embedded.json()["data"][0]["object"]) == (200, "embedding")
        assert server.ask("/pooling", {"model": name, "input": "x"}).json()["data"][0]["object"] == "pooling"
        scored = server.ask("/score", {"model": name, "text_1": "x", "text_2": "y"})
        assert scored.json()["data"][0]["object"] == "score"
        for path in ("/v1/completions", "/v1/chat/completions", "/classify"):
            answer = server.ask(path, {"model": name, "input": "x", "prompt": "x"})
            assert (answer.status, answer.json()) == (404, {"detail": "Not Found"})
        assert server.ask("/v1/embeddings", {}).status in {400, 422}
        refused = server.ask("/v1/embeddings", {"model": "other", "input": "x"})
        assert (refused.status, refused.json()["error"]["type"]) == (404, "NotFoundError")
        counted = parse_metrics(server.ask("/metrics").body)
        assert counted["requests_running"] == 0


def test_a_model_that_writes_has_no_route_to_pool(server: Server) -> None:
    """The gate goes on to the next question where a route is not there; an empty body never reaches the engine."""
    for path in ("/v1/embeddings", "/pooling", "/classify", "/score"):
        assert server.ask(path, {"model": "tiny", "input": "x"}, key=KEY).status == 404
    assert server.ask("/v1/completions", {}, key=KEY).status == 400


def test_an_engine_that_hangs(subject: Subject) -> None:
    """/health stays 200, nothing is answered, and the metrics stand still with what it had, whoever leaves."""
    faults = subject.folder / "hang"
    with subject.start("hangs", faults=str(faults)) as server:
        server.wait_ready(subject.ready)
        body = {"model": "tiny", "prompt": "x", "max_tokens": 500, "ignore_eos": True}
        assert server.ask("/v1/completions", body | {"max_tokens": 1}, key=KEY).status == 200
        if subject.version.endswith("simulator"):
            faults.write_text("wedged=1\n")
        asking = [threading.Thread(target=_give_up, args=(server, body), daemon=True) for _ in range(4)]
        for thread in asking:
            thread.start()
        server.wait_until(lambda: _counted(server, "requests_running"), 5, "no request is counted")
        (engine,) = server.engines()
        if not subject.version.endswith("simulator"):
            os.kill(engine.pid, signal.SIGSTOP)
        time.sleep(0.5)
        still = marks(server.ask("/metrics").body)
        assert _counted(server, "requests_running") > 0
        for thread in asking:
            thread.join()
        _give_up(server, body | {"max_tokens": 1})
        assert marks(server.ask("/metrics").body) == still
        assert server.ask("/health").status == 200


def _give_up(server: Server, body: object) -> None:
    """Ask, and leave after three seconds; what came before that does not matter."""
    with contextlib.suppress(OSError):
        server.ask("/v1/completions", body, key=KEY, timeout=3.0)


def _counted(server: Server, name: str) -> int:
    """A number of its metrics."""
    return int(parse_metrics(server.ask("/metrics").body)[name])


def test_the_process_tree(server: Server, subject: Subject) -> None:
    """Root, engine and workers share session and group; the root keeps its argv, the others have titles."""
    processes = {process.pid: process for process in server.processes()}
    root = processes[server.pid]
    assert root.words[1:4] == (str(subject.vllm), "serve", str(subject.model))
    assert "python" in Path(root.words[0]).name
    assert root.comm == "vllm"
    assert {(process.session, process.group) for process in processes.values()} == {(root.pid, root.pid)}
    (engine,) = server.engines()
    assert (engine.words, engine.comm, engine.parent) == (("VLLM::EngineCore",), "VLLM::EngineCor", root.pid)
    rest = [process for pid, process in processes.items() if pid not in {root.pid, engine.pid}]
    workers = [process for process in rest if process.title.startswith("VLLM::Worker")]
    assert all(worker.parent == engine.pid for worker in workers)
    (tracker,) = [process for process in rest if process not in workers]
    assert "multiprocessing.resource_tracker" in " ".join(tracker.words)


def test_who_keeps_the_environment(server: Server) -> None:
    """The root's environment holds our marker and the key; titled processes have lost both, the tracker has not."""
    for process in server.processes():
        environment = environment_of(process.pid)
        kept = not process.title.startswith("VLLM::")
        assert (environment.get(MARKER) == "contract", environment.get("VLLM_API_KEY") == KEY) == (kept, kept)


def test_a_second_server_on_its_port(server: Server, subject: Subject) -> None:
    """A port that is held ends a start with exit code 1."""
    with subject.start("second", port=server.port) as second:
        assert second.end(subject.ready) == 1
        assert "[Errno 98] Address already in use" in second.log()


def test_it_stops_at_sigterm(server: Server, subject: Subject) -> None:
    """One SIGTERM ends a ready server with exit code 0 and leaves nobody. The last test of the shared server."""
    os.kill(server.pid, signal.SIGTERM)
    assert server.end(subject.soon) == 0
    server.wait_until(lambda: not server.processes(), subject.soon, "processes left")


def test_a_stop_finishes_the_requests_that_it_has(subject: Subject) -> None:
    """With --shutdown-timeout one SIGTERM lets a request end whole; health stays 200, new ones get 500."""
    with subject.start("drain", *LONG, "--shutdown-timeout=60", request_seconds="2") as server:
        server.wait_ready(subject.ready)
        asked, answers = asked_from_the_side(server, 2000)
        os.kill(server.pid, signal.SIGTERM)
        server.wait_for_log("stopping engine client mode=drain timeout=60s", subject.soon)
        refused = server.ask("/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1}, key=KEY)
        assert (refused.status, server.ask("/health").status) == (500, 200)
        assert "cannot schedule new futures after shutdown" in refused.body.decode()
        os.kill(server.pid, signal.SIGTERM)
        asked.join()
        assert answers == [(200, 2000, "length")]
        assert server.end(subject.soon) == 0


def test_a_stop_aborts_the_requests_that_it_has(subject: Subject) -> None:
    """Without it the client gets, at once and with status 200, what there is of its answer."""
    with subject.start("abort", *LONG, request_seconds="60") as server:
        server.wait_ready(subject.ready)
        asked, answers = asked_from_the_side(server, 8000)
        os.kill(server.pid, signal.SIGTERM)
        asked.join()
        ((status, tokens, reason),) = answers
        assert (status, reason) == (200, "abort")
        assert tokens < 8000
        assert server.end(subject.soon) == 0


def asked_from_the_side(server: Server, tokens: int) -> tuple[threading.Thread, list[tuple[int, int, str]]]:
    """Ask for so many tokens from the side; once that is seen to run, the thread and where the answer will be."""
    answers: list[tuple[int, int, str]] = []
    body = {"model": "tiny", "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}

    def ask() -> None:
        answer = server.ask("/v1/completions", body, key=KEY, timeout=120.0)
        said: Any = answer.json()
        answers.append((answer.status, said["usage"]["completion_tokens"], said["choices"][0]["finish_reason"]))

    thread = threading.Thread(target=ask)
    thread.start()
    counted = 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0'
    server.wait_until(lambda: counted in server.ask("/metrics").body.decode(), 30.0, "the request does not run")
    return thread, answers


def test_an_unknown_argument(subject: Subject) -> None:
    """An argument that vLLM does not have: its usage error, exit code 2."""
    with subject.start("unknown", "--frobnicate", "3") as server:
        assert server.end(subject.ready) == 2
        assert re.search(r"^usage: vllm ", server.log(), re.MULTILINE)
        assert "error: unrecognized arguments: --frobnicate 3" in server.log()


def test_a_value_out_of_range(subject: Subject) -> None:
    """A value of the right type that validation refuses: exit code 1."""
    with subject.start("range", "--gpu-memory-utilization", "1.5") as server:
        assert server.end(subject.ready) == 1
        assert "Input should be less than or equal to 1" in server.log()


def test_an_early_sigterm(subject: Subject) -> None:
    """Before the engine is launched SIGTERM ends the process at once."""
    with subject.start("early", early_seconds="30") as server:
        time.sleep(0.5)
        os.kill(server.pid, signal.SIGTERM)
        assert server.end(subject.soon) == -signal.SIGTERM


def test_the_first_sigterm_of_a_start_is_swallowed(subject: Subject) -> None:
    """While the engine loads, one SIGTERM changes nothing; a second one ends the start as if by Ctrl-C."""
    with subject.start("starting", start_seconds="30", term_seconds="0.2") as server:
        server.wait_for_log("(EngineCore pid=", subject.ready)
        time.sleep(0.5)
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(1.5)
        assert server.popen.poll() is None
        os.kill(server.pid, signal.SIGTERM)
        assert server.end(subject.soon) in {-signal.SIGINT, 130}
        server.wait_until(lambda: not server.processes(), subject.soon, "processes left")


def test_a_dead_engine(subject: Subject) -> None:
    """When the engine dies, `/health` turns 503 and the root follows within seconds, with exit code 0."""
    with subject.start("dead", watchdog_seconds="1") as server:
        server.wait_ready(subject.ready)
        (engine,) = server.engines()
        os.kill(engine.pid, signal.SIGKILL)
        server.wait_until(_health_is(server, 503), subject.soon, "no 503")
        assert server.end(subject.soon) == 0


def test_a_killed_root_leaves_orphans(subject: Subject) -> None:
    """SIGKILL of the root: the port is free, engine and workers live on in its session until SIGTERM to the engine."""
    with subject.start("orphans", orphan_seconds="0.5") as server:
        server.wait_ready(subject.ready)
        (engine,) = server.engines()
        os.kill(server.pid, signal.SIGKILL)
        assert server.end(subject.soon) == -signal.SIGKILL
        time.sleep(1.0)
        orphans = [process for process in session_of(server.pid) if process.title.startswith("VLLM::")]
        assert engine.pid in {orphan.pid for orphan in orphans}
        assert {orphan.group for orphan in orphans} == {server.pid}
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", server.port))
        os.kill(engine.pid, signal.SIGTERM)
        server.wait_until(lambda: not server.processes(), subject.soon, "orphans left")


def _health_is(server: Server, status: int) -> Callable[[], bool]:
    """A test of whether `/health` answers with `status` now."""

    def true() -> bool:
        try:
            return server.ask("/health", timeout=5.0).status == status
        except OSError:
            return False

    return true

"""The host in memory answers as the real agent does: the same questions to both, the same answers expected."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.agent.driver import SALT, Agent, Refused
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import BOOTED_AT
from vmreconcile.core.fingerprints import fingerprint
from vmreconcile.effects.observe import host_view
from vmreconcile.effects.session import AgentError
from vmreconcile.model.secret import Secret

Json = dict[str, Any]
SLUG = "m"
TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up


class Asked(Protocol):
    """A host that can be asked, and what a test needs to know of it."""

    vllm: str
    port: int
    config: str
    state: str

    def ask(self, **request: Any) -> tuple[Json, list[Json]]:  # noqa: ANN401 - JSON values
        """The last answer to a request, and those before it."""

    def kill(self, pid: int) -> None:
        """`kill -9`."""

    def stranger(self) -> int:
        """Somebody else's vLLM on the port; its pid."""


class Fake:
    """The host in memory."""

    def __init__(self) -> None:
        """Without systemd: what is compared here is the other runtime."""
        self.host = FakeHost(
            "h1", systemd=None, installed={"": ("/v/vllm", "0.32.0"), "/v/vllm": ("/v/vllm", "0.32.0")}
        )
        self.vllm, self.port = "/v/vllm", 8001
        self.config, self.state = self.host.config, self.host.state

    def ask(self, **request: Any) -> tuple[Json, list[Json]]:  # noqa: ANN401 - JSON values
        """Through the session, secrets as such."""
        progress: list[Json] = []
        if "secrets" in request:
            request["secrets"] = {name: Secret(text) for name, text in request["secrets"].items()}
        return self.host.request(request, timeout=60.0, on_progress=progress.append), progress

    def kill(self, pid: int) -> None:
        """The root alone."""
        self.host.kernel.end(self.host.kernel.processes[pid], family=False)

    def stranger(self) -> int:
        """In memory."""
        return self.host.stranger(self.port).pid


class Real:
    """The real agent on this machine, with folders of its own and the simulated vLLM."""

    def __init__(self, folder: Path, vllm: Path) -> None:
        """Start it."""
        self.agent = Agent(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.vllm = str(vllm)
        self.config, self.state = f"{folder}/config", f"{folder}/state"
        self.started: list[subprocess.Popen[bytes]] = []

    def ask(self, **request: Any) -> tuple[Json, list[Json]]:  # noqa: ANN401 - JSON values
        """Over its pipes; a refusal as the session would raise it."""
        try:
            return self.agent.ask(request.pop("do"), **request)
        except Refused as refused:
            raise AgentError(refused.kind, str(refused), index=refused.answer.get("index")) from refused

    def kill(self, pid: int) -> None:
        """Just this pid."""
        os.kill(pid, signal.SIGKILL)

    def stranger(self) -> int:
        """The simulator, started by hand."""
        argv = [self.vllm, "serve", "a/model", "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = subprocess.DEVNULL
        self.started.append(subprocess.Popen(argv, stdout=quiet, stderr=quiet, start_new_session=True))
        return self.started[-1].pid

    def close(self) -> None:
        """End what was started here."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.agent.close()


@pytest.fixture(params=["fake", "real"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Asked]:
    """Either, empty; whatever of ours runs at the end is stopped."""
    if request.param == "fake":
        yield Fake()
        return
    real = Real(tmp_path, request.getfixturevalue("simulator"))
    try:
        yield real
        clean_up(real)
    finally:
        real.close()


def clean_up(host: Asked) -> None:
    """Stop what the record names, orphans too."""
    found = server(host)
    if found and (found["process"] or found["orphans"]):
        steps(host, stop(host))


def observation(host: Asked, **fields: Any) -> Json:  # noqa: ANN401 - JSON values
    """Everything."""
    request = {
        "salt": SALT,
        "executables": [""],
        "ports": [host.port],
        "servers": None,
        "http_timeout": 2.0,
        "gpus": True,
    }
    found: Json = host.ask(do="observe", **{**request, **fields})[0]["observation"]
    return found


def server(host: Asked) -> Json | None:
    """What is seen of our server."""
    return next((row for row in observation(host)["servers"] if row["slug"] == SLUG), None)


def there(host: Asked) -> Json:
    """Our server, which must be there."""
    found = server(host)
    assert found is not None
    return found


def steps(host: Asked, *wanted: Json, **fields: Any) -> list[bool]:  # noqa: ANN401 - JSON values
    """Carry steps out; what each changed."""
    answer, progress = host.ask(do="steps", slug=SLUG, steps=list(wanted), **fields)
    assert [part["index"] for part in progress] == list(range(len(wanted)))
    changed = [part["changed"] for part in progress]
    assert answer["changed"] == any(changed)
    return changed


def refused(host: Asked, *wanted: Json, **fields: Any) -> AgentError:  # noqa: ANN401 - JSON values
    """The refusal of one of the steps."""
    with pytest.raises(AgentError) as caught:
        steps(host, *wanted, **fields)
    return caught.value


def write_env(host: Asked, *entries: list[Any]) -> Json:
    """The step that writes the env file."""
    return {"step": "write-env", "path": f"{host.config}/env/{SLUG}.env", "entries": list(entries)}


def spawn(host: Asked, **fields: Any) -> Json:  # noqa: ANN401 - JSON values
    """The step that starts the server."""
    argv = [host.vllm, "serve", "a/model", "--host", "127.0.0.1", "--port", str(host.port)]
    record = {"server": SLUG, "runtime": "process", "state": "running", "env_names": ["MARK"]}
    paths = {"cwd": "/", "env_path": f"{host.config}/env/{SLUG}.env", "log_path": f"{host.state}/log/{SLUG}.log"}
    return {"step": "spawn", "slug": SLUG, "argv": argv, "record": record, **paths, **fields}


def stop(host: Asked) -> Json:
    """The step that stops what the record names."""
    record = there(host)["record"]
    names = {name: record[name] for name in ("pid", "start_ticks", "boot_id")}
    return {"step": "stop-process", "slug": SLUG, "grace_s": 5.0, **names}


def until(what: Callable[[], Any], seconds: float = 15.0) -> Any:  # noqa: ANN401 - whatever is waited for
    """Wait for something to be so, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def started(host: Asked) -> Json:
    """A server that was started and is healthy."""
    assert steps(host, write_env(host, ["MARK", "1"]), spawn(host)) == [True, True]
    found: Json = until(lambda: (row := there(host)) and (row["endpoint"] or {}).get("health") == 200 and row)
    return found


def shape(value: Any, path: str = "") -> set[str]:  # noqa: ANN401 - JSON values
    """Every key below a value, lists as their first item."""
    match value:
        case dict():
            keyed = "*" if path.endswith((".env", ".cache_config")) else ""
            return {f"{path}.{keyed or key}" for key in value} | {
                deep for key, each in value.items() for deep in shape(each, f"{path}.{keyed or key}")
            }
        case list() if value:
            return shape(value[0], f"{path}[]")
        case _:
            return set()


def test_an_empty_host(host: Asked) -> None:
    """Nothing of ours, and what is installed."""
    seen = observation(host)
    assert seen["servers"] == []
    assert seen["format"] == 1
    assert (seen["folders"]["config"], seen["folders"]["state"]) == (host.config, host.state)
    assert seen["folders"]["problem"] is None
    assert seen["ports"] == []
    assert [row["asked"] for row in observation(host, executables=[host.vllm, "/nowhere/vllm"])["vllm"]] == [
        "/nowhere/vllm",
        host.vllm,
    ]
    (missing, found) = observation(host, executables=[host.vllm, "/nowhere/vllm"])["vllm"]
    assert (missing["path"], missing["version"], bool(missing["problem"])) == (None, None, True)
    assert (found["path"], found["problem"]) == (host.vllm, None)
    assert found["version"]


def test_an_env_file(host: Asked) -> None:
    """Written once, private, told by fingerprints; secrets come with the request, kept values stay."""
    step = write_env(host, ["HF_TOKEN", {"secret": "default"}], ["PLAIN", "it's $5\n"])
    assert steps(host, step, secrets={"default": TOKEN}) == [True]
    assert steps(host, step, secrets={"default": TOKEN}) == [False]
    seen = there(host)["env_file"]
    assert (seen["mode"], seen["problem"]) == (0o600, None)
    assert seen["env"] == {
        "HF_TOKEN": {"fingerprint": fingerprint(SALT, "HF_TOKEN", TOKEN), "value": None},
        "PLAIN": {"fingerprint": fingerprint(SALT, "PLAIN", "it's $5\n"), "value": "it's $5\n"},
    }
    kept = write_env(host, ["HF_TOKEN", {"keep": True}], ["NOT_THERE", {"keep": True}])
    assert steps(host, kept) == [True]
    assert there(host)["env_file"]["env"] == {"HF_TOKEN": seen["env"]["HF_TOKEN"]}


def test_a_secret_that_was_not_sent(host: Asked) -> None:
    """Refused, and nothing written."""
    error = refused(host, write_env(host, ["HF_TOKEN", {"secret": "default"}]))
    assert (error.kind, error.index) == ("bad-request", 0)
    assert server(host) is None


def test_paths_that_are_not_ours(host: Asked) -> None:
    """Neither written nor removed."""
    for step in (
        {"step": "write-file", "path": "/etc/passwd2", "content": "", "mode": 0o644},
        {"step": "remove-file", "path": "/etc/hostname"},
        {**write_env(host, ["A", "1"]), "path": "/etc/environment2"},
    ):
        assert refused(host, step).kind == "not-ours"


def test_steps_stop_at_the_first_that_fails(host: Asked) -> None:
    """Its number is told; what came before is done, what comes after is not."""
    bad = {"step": "remove-file", "path": "/etc/hostname"}
    error = refused(host, write_env(host, ["A", "1"]), bad, write_env(host, ["B", "1"]))
    assert (error.kind, error.index) == ("not-ours", 1)
    assert set(there(host)["env_file"]["env"]) == {"A"}


@pytest.mark.slow
def test_a_server_from_start_to_removal(host: Asked) -> None:
    """Seen with its marker, record, worker and endpoint; asked for a completion; stopped; removed without a trace."""
    found = started(host)
    process = found["process"]
    assert found["runtime"] == "process"
    assert process["argv"][1:4] == [host.vllm, "serve", "a/model"]
    assert process["env"]["VMRECONCILE_SERVER"]["value"] == SLUG
    assert process["env"]["MARK"]["value"] == "1"
    assert process["ports"] == [host.port]
    assert [child["title"] for child in process["children"]] == ["VLLM::EngineCore"]
    assert {**found["record"], "pid": 0} == {
        "server": SLUG,
        "runtime": "process",
        "state": "running",
        "env_names": ["MARK"],
        "pid": 0,
        "start_ticks": process["start_ticks"],
        "boot_id": observation(host)["host"]["boot_id"],
    }
    assert found["record"]["pid"] == process["pid"]
    assert (found["endpoint"]["port"], found["endpoint"]["problem"]) == (host.port, None)
    assert [model["id"] for model in found["endpoint"]["models"]] == ["a/model"]
    (port,) = observation(host)["ports"]
    assert (port["port"], port["slug"]) == (host.port, SLUG)
    gate = host.ask(do="gate", slug=SLUG, address="127.0.0.1", port=host.port, completion=True, timeout=10.0)[0]
    assert (gate["health"], gate["completion"]["ok"], gate["completion"]["problem"]) == (200, True, None)

    assert refused(host, spawn(host)).kind == "already-running"
    assert refused(host, {"step": "remove-server", "slug": SLUG}).kind == "still-running"
    wrong = {**stop(host), "start_ticks": process["start_ticks"] + 1}
    assert refused(host, wrong).kind == "not-ours"
    right = stop(host)
    assert steps(host, right) == [True]
    assert steps(host, right) == [False]
    after = there(host)
    assert (after["process"], after["orphans"], after["endpoint"]) == (None, [], None)
    assert steps(host, {"step": "remove-server", "slug": SLUG}) == [True]
    assert server(host) is None


@pytest.mark.slow
def test_orphans_of_a_root_that_was_killed(host: Asked) -> None:
    """Told as ours; in the way of a start; ended by pid and start time, and nobody else's."""
    process = started(host)["process"]
    host.kill(process["pid"])
    found = until(lambda: (row := there(host)) and row["process"] is None and row["orphans"] and row)
    assert "VLLM::EngineCore" in [orphan["title"] for orphan in found["orphans"]]
    assert refused(host, spawn(host)).kind == "orphans-left"
    ending = {"step": "end-orphans", "slug": SLUG, "grace_s": 5.0}
    foreign = host.stranger()
    ticks = until(lambda: [row for row in observation(host)["strangers"] if row["pid"] == foreign])[0]["start_ticks"]
    assert refused(host, {**ending, "processes": [[foreign, ticks]]}).kind == "not-ours"
    mine = {**ending, "processes": [[orphan["pid"], orphan["start_ticks"]] for orphan in found["orphans"]]}
    assert steps(host, mine) == [True]
    assert steps(host, mine) == [False]
    assert there(host)["orphans"] == []
    assert foreign in [row["pid"] for row in observation(host)["strangers"]]


def test_a_stranger(host: Asked) -> None:
    """Seen with its port and why it is none of ours; no server by our names."""
    pid = host.stranger()
    rows = until(lambda: [row for row in observation(host)["strangers"] if row["pid"] == pid])
    assert (rows[0]["port"], rows[0]["why"]) == (host.port, "no marker of ours")
    assert "serve" in rows[0]["what"]
    (port,) = until(lambda: observation(host)["ports"])
    assert (port["pid"], port["slug"]) == (pid, None)


def test_a_record_written_while_it_runs(host: Asked) -> None:
    """What the process is known by is kept, so that it stays ours."""
    process = started(host)["process"]
    record = {"server": SLUG, "runtime": "process", "state": "running", "env_names": ["OTHER"]}
    steps(host, {"step": "write-record", "slug": SLUG, "record": record})
    found = there(host)
    assert found["process"]["pid"] == process["pid"]
    assert found["record"]["env_names"] == ["OTHER"]


MEASURED: Json = {
    "key": "0123456789abcdef",
    "gpu": "NVIDIA H100 80GB HBM3",
    "gpu_memory": 85017755648,
    "vllm_version": "0.32.0",
    "utilization": 0.9,
    "max_model_len": 8192,
    "figures": {"weights": 15343, "beside": 26435, "graphs": None, "kv_bytes": 50058, "kv_tokens": 872992},
    "predicted": None,
}


def note(process: Json, **fields: Any) -> Json:  # noqa: ANN401 - JSON values
    """The step that keeps a measurement of a root."""
    root = {name: process[name] for name in ("pid", "start_ticks")}
    return {"step": "note-measured", "slug": SLUG, **root, "measured": MEASURED, **fields}


def test_what_was_measured_is_kept(host: Asked) -> None:
    """In the record, beside all that is there; over a record that is written anew, a stop and a start."""
    found = started(host)
    process = found["process"]
    assert steps(host, note(process)) == [True]
    assert steps(host, note(process)) == [False]
    assert there(host)["record"] == {**found["record"], "measured": MEASURED}
    record = {"server": SLUG, "runtime": "process", "state": "running", "env_names": ["OTHER"]}
    assert steps(host, {"step": "write-record", "slug": SLUG, "record": record}) == [True]
    kept = {**found["record"], **record, "measured": MEASURED}
    assert there(host)["record"] == kept
    assert there(host)["process"]["pid"] == process["pid"]
    steps(host, stop(host), spawn(host))
    again = there(host)
    assert again["process"]["pid"] != process["pid"]
    assert again["record"]["measured"] == MEASURED
    assert again["record"]["pid"] == again["process"]["pid"]


def test_what_another_process_measured_is_not_kept(host: Asked) -> None:
    """One that is gone, one that never was, and none at all."""
    assert refused(host, note({"pid": 1, "start_ticks": 1})).kind == "moved"
    process = started(host)["process"]
    assert refused(host, note(process, start_ticks=process["start_ticks"] + 1)).kind == "moved"
    steps(host, stop(host))
    assert refused(host, note(process)).kind == "moved"
    assert "measured" not in there(host)["record"]


def test_only_numbers_and_short_texts_are_kept(host: Asked) -> None:
    """Each of its own name."""
    for wrong in (
        {"key": ""},
        {"key": "../x"},
        {"gpu": 5},
        {"gpu": "x" * 201},
        {"gpu": "a\nb"},
        {"gpu_memory": "much"},
        {"utilization": True},
        {"max_model_len": 1 << 70},
        {"figures": None},
        {"figures": {"weights": [1]}},
        {"predicted": {"else": 1}},
        {"token": "hf_x"},
    ):
        error = refused(host, note({"pid": 1, "start_ticks": 1}, measured={**MEASURED, **wrong}))
        assert (error.kind, error.index) == ("bad-request", 0), wrong


def revision(number: int, *, good: bool = True, **fields: Any) -> Json:  # noqa: ANN401 - JSON values
    """What was launched with a port of its own."""
    launch = {"argv": ["/v", "serve", "m", "--port", str(number)], "env": [["A", "1"], ["HF_TOKEN", {"keep": True}]]}
    return {"when": 1.0, "who": "op@laptop", "good": good, "kind": "", "launch": launch, **fields}


def keep(*found: Json) -> list[Json]:
    """The steps that keep revisions."""
    return [{"step": "keep-revision", "slug": SLUG, "revision": each} for each in found]


def kept(host: Asked) -> list[tuple[int, bool]]:
    """Number and goodness of what is kept, oldest first."""
    (row,) = host.ask(do="revisions", slugs=[SLUG])[0]["servers"]
    assert (row["slug"], row["problem"]) == (SLUG, None)
    return [(each["number"], each["good"]) for each in row["revisions"]]


def test_revisions_are_numbered_by_the_host(host: Asked) -> None:
    """One that is launched as the newest good one is none; one that fails as the newest did moves its time only."""
    assert kept(host) == []
    assert host.ask(do="revisions", slugs=None)[0]["servers"] == []
    one, two = revision(1), revision(2)
    assert steps(host, *keep(one, one, {**one, "when": 2.0}, two)) == [True, False, False, True]
    bad = revision(3, good=False, kind="died")
    assert steps(host, *keep(bad, {**bad, "when": 5.0}, two, bad, revision(4, good=False))) == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert kept(host) == [(1, True), (2, True), (3, False), (4, False)]
    assert steps(host, *keep(one)) == [True]
    assert kept(host)[-1] == (5, True)
    (row,) = host.ask(do="revisions", slugs=[SLUG])[0]["servers"]
    assert row["revisions"][0] == {**one, "number": 1}
    assert row["revisions"][2]["when"] == 1.0


def test_the_newest_good_revision_is_always_kept(host: Asked) -> None:
    """Ten are, and that one beside them; numbers go on."""
    steps(host, *keep(revision(1), *(revision(port, good=False) for port in range(2, 20))))
    assert kept(host) == [(1, True), *((number, False) for number in range(10, 20))]
    steps(host, *keep(*(revision(port) for port in range(30, 45))))
    assert kept(host) == [(number, True) for number in range(25, 35)]


def test_a_revision_goes_with_its_server(host: Asked) -> None:
    """By `remove-server`; others keep theirs."""
    other = {"step": "keep-revision", "slug": "other", "revision": revision(1)}
    steps(host, write_env(host, ["A", "1"]), *keep(revision(1)), other)
    steps(host, {"step": "remove-server", "slug": SLUG})
    assert kept(host) == []
    assert len(host.ask(do="revisions", slugs=["other"])[0]["servers"][0]["revisions"]) == 1


@pytest.mark.parametrize("wrong", [{"launch": None}, {"good": "yes"}, {"launch": {"argv": ["x" * (1 << 18)]}}])
def test_what_is_no_revision_is_refused(host: Asked, wrong: Json) -> None:
    """Before anything is done."""
    error = refused(host, write_env(host, ["A", "1"]), *keep(revision(1, **wrong)))
    assert error.kind == ("too-large" if wrong.get("launch") else "bad-request")
    assert error.index == 1


def test_a_program_that_is_not_there(host: Asked) -> None:
    """Refused; no record says that it runs."""
    missing = spawn(host, argv=["/nowhere/vllm", "serve", "a/model", "--port", str(host.port)])
    error = refused(host, write_env(host, ["MARK", "1"]), missing)
    assert (error.kind, error.index) == ("not-found", 1)
    assert there(host)["record"] is None


def test_a_plan_for_another_process_is_refused(host: Asked) -> None:
    """`root` says which process the steps were made for; none is none."""
    process = started(host)["process"]
    assert refused(host, write_env(host, ["A", "2"]), root=None).kind == "moved"
    other = [process["pid"], process["start_ticks"] + 1]
    assert refused(host, write_env(host, ["A", "2"]), root=other).kind == "moved"
    assert steps(host, write_env(host, ["A", "2"]), root=[process["pid"], process["start_ticks"]]) == [True]


def test_logs(host: Asked) -> None:
    """None before the first start."""
    with pytest.raises(AgentError) as caught:
        host.ask(do="log", slug=SLUG, lines=5, follow=False)
    assert caught.value.kind == "no-log"
    started(host)
    answer, progress = host.ask(do="log", slug=SLUG, lines=5, follow=False)
    assert not answer.get("lines")
    assert all(isinstance(line, str) for part in progress for line in part["lines"])


def test_a_gate_of_what_does_not_run(host: Asked) -> None:
    """Says why, asks nobody."""
    gate = host.ask(do="gate", slug=SLUG, address="127.0.0.1", port=host.port, completion=True, timeout=5.0)[0]
    assert (gate["health"], gate["models"]) == (None, [])
    assert gate["problem"] == "no process of this server runs"
    assert (gate["completion"]["ok"], gate["completion"]["problem"]) == (False, gate["problem"])


def test_unknown_requests_and_steps(host: Asked) -> None:
    """By name."""
    with pytest.raises(AgentError) as caught:
        host.ask(do="make-coffee")
    assert caught.value.kind == "bad-request"


def test_both_answer_in_the_same_shape(simulator: Path, tmp_path: Path) -> None:
    """Every key that the fake answers with is the real one's too; and both are read without loss."""
    fake, real = Fake(), Real(tmp_path, simulator)
    try:
        shapes = {}
        for host in (fake, real):
            started(host)
            seen = observation(host)
            seen["strangers"], seen["orphans"] = [], []
            shapes[host] = shape(seen)
            view = host_view("h1", SALT, {"observation": seen})
            mine = view.server(SLUG)
            assert mine.process is not None
            assert mine.record is not None
            assert mine.env_file is not None
            assert mine.endpoint is not None
            assert mine.endpoint.health == 200
        assert shapes[fake] - shapes[real] == set()
        assert fake.host.kernel.now > BOOTED_AT
        clean_up(real)
    finally:
        real.close()

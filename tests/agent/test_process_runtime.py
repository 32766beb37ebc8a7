"""Servers of runtime `process`, end to end: started, seen, stopped, killed, cleaned up; by the real agent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.agent.conftest import SLUG, World, session_of, wait_until
from tests.agent.driver import Refused

pytestmark = pytest.mark.slow


def test_started_seen_and_stopped(world: World) -> None:
    """A server is started, seen with all its parts, answers, and leaves nothing behind when stopped."""
    answer = world.start("--max-model-len", "512")
    seen = world.ready()
    process = seen["process"]
    assert (process["pid"], process["start_ticks"]) == (answer["pid"], answer["start_ticks"])
    assert process["argv"][1:4] == [str(world.vllm), "serve", "a/model"]
    assert process["ports"] == [world.port]
    assert abs(process["started_at"] - time.time()) < 30
    assert process["env"]["MARK"]["value"] == "1"
    assert process["env"]["MARK"] == seen["env_file"]["env"]["MARK"]
    assert [child["title"] for child in process["children"]] == ["VLLM::EngineCore"]
    assert seen["endpoint"]["version"] == "0.32.0+simulator"
    assert seen["endpoint"]["models"][0]["max_model_len"] == 512
    assert seen["endpoint"]["metrics"] is None
    asked = world.agent.server(SLUG, metrics=True)["endpoint"]
    assert "gpu_memory_utilization" in asked["metrics"]["cache_config"]
    assert seen["runtime"] == "process"
    assert seen["orphans"] == []
    stopped = world.agent.steps(world.stop_step())[0]
    assert stopped["signals"][0] == "TERM"
    assert session_of(answer["pid"]) == []
    after = world.agent.server(SLUG)
    assert (after["process"], after["orphans"], after["endpoint"]) == (None, [], None)
    assert world.agent.steps(world.stop_step())[0]["changed"] is False


def test_own_session_and_plain_environment(world: World) -> None:
    """It leads its own session, belongs to init, and inherits nothing of the connection."""
    pid = world.start()["pid"]
    world.ready()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[3]) == int(fields[2]) == pid
    assert int(fields[1]) != world.agent.process.pid
    entries = Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
    names = {entry.partition("=")[0] for entry in entries}
    assert names == {"PATH", "HOME", "USER", "LOGNAME", "LANG", "MARK", "VMRECONCILE_SERVER"}
    targets = {number: str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (0, 1, 2)}
    assert targets == {0: "/dev/null", 1: world.spawn()["log_path"], 2: world.spawn()["log_path"]}
    assert (Path(targets[1]).stat().st_mode & 0o777) == 0o600
    assert world.record()["runtime"] == "process"


def test_it_outlives_the_agent(world: World) -> None:
    """The end of the connection does not end the server; another agent knows it again."""
    pid = world.start()["pid"]
    world.ready()
    assert world.agent.close() == 0
    world.agents.clear()
    other = world.agent = type(world.agent)(world.root)
    world.agents.append(other)
    assert other.server(SLUG)["process"]["pid"] == pid


def test_a_second_start_is_refused(world: World) -> None:
    """What runs is not started twice."""
    pid = world.start()["pid"]
    with pytest.raises(Refused) as refused:
        world.agent.steps(world.spawn())
    assert refused.value.kind == "already-running"
    assert refused.value.answer["index"] == 0
    assert world.record()["pid"] == pid


def test_orphans_of_a_killed_root_are_ours_and_ended(world: World) -> None:
    """After kill -9 the engine is left; it is known as ours, blocks a new start, and is ended."""
    pid = world.start()["pid"]
    engine = world.ready()["process"]["children"][0]
    os.kill(pid, signal.SIGKILL)
    seen = wait_until(lambda: (s := world.agent.server(SLUG))["process"] is None and s)
    assert (engine["pid"], "VLLM::EngineCore") in [(one["pid"], one["title"]) for one in seen["orphans"]]
    with pytest.raises(Refused) as refused:
        world.agent.steps(world.spawn())
    assert refused.value.kind == "orphans-left"
    processes = [[one["pid"], one["start_ticks"]] for one in seen["orphans"]]
    step = {"step": "end-orphans", "slug": SLUG, "processes": processes, "grace_s": 8}
    assert world.agent.steps(step)[0]["signals"][0] == "TERM"
    assert session_of(pid) == []
    assert world.agent.server(SLUG)["orphans"] == []
    world.start()
    world.ready()


def test_stopping_after_the_root_was_killed_ends_its_workers(world: World) -> None:
    """A plan made before the root died still ends everything."""
    world.start(env={"VLLM_SIMULATOR_ORPHAN_SECONDS": "0.2"})
    world.ready()
    step = world.stop_step()
    os.kill(step["pid"], signal.SIGKILL)
    assert "TERM workers" in world.agent.steps(step)[0]["signals"]
    assert session_of(step["pid"]) == []


def test_the_oldest_python_stops_and_cleans_up_too(old_world: World) -> None:
    """Without pidfds, each signal follows a fresh look: a stop, and the end of a killed root's workers."""
    world = old_world
    pid = world.start(env={"VLLM_SIMULATOR_ORPHAN_SECONDS": "0.2"})["pid"]
    world.ready()
    world.agent.steps(world.stop_step())
    assert session_of(pid) == []
    pid = world.start(env={"VLLM_SIMULATOR_ORPHAN_SECONDS": "0.2"})["pid"]
    world.ready()
    os.kill(pid, signal.SIGKILL)
    seen = wait_until(lambda: (s := world.agent.server(SLUG))["process"] is None and s)
    processes = [[one["pid"], one["start_ticks"]] for one in seen["orphans"]]
    world.agent.steps({"step": "end-orphans", "slug": SLUG, "processes": processes, "grace_s": 5})
    assert session_of(pid) == []


def test_a_swallowed_term_is_repeated(world: World) -> None:
    """While vLLM starts, one TERM goes unheeded; the second ends it."""
    world.start(env={"VLLM_SIMULATOR_START_SECONDS": "30", "VLLM_SIMULATOR_TERM_SECONDS": "0.1"})
    log = Path(world.spawn()["log_path"])
    wait_until(lambda: "(EngineCore pid=" in log.read_text())
    answer = world.agent.steps(world.stop_step(grace=1))[0]
    assert answer["signals"][:2] == ["TERM", "TERM"]
    assert session_of(world.record()["pid"]) == []


STUBBORN = """#!{python}
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
print("deaf", flush=True)
time.sleep(300)
"""


@pytest.mark.slow
def test_what_ignores_every_term_is_killed_with_its_session(world: World, tmp_path: Path) -> None:
    """A server that heeds no TERM is killed, and what it started with it."""
    deaf = tmp_path / "vllm"
    deaf.write_text(STUBBORN.format(python=sys.executable))
    deaf.chmod(0o755)
    world.vllm = deaf
    pid = world.start()["pid"]
    wait_until(lambda: Path(world.spawn()["log_path"]).read_text().count("deaf") == 2)
    assert len(session_of(pid)) == 2
    assert world.agent.server(SLUG)["process"]["pid"] == pid
    assert world.agent.steps(world.stop_step(grace=0.2))[0]["signals"] == ["TERM", "TERM", "KILL"]
    assert session_of(pid) == []


def test_a_marker_without_a_record_is_never_signalled(world: World) -> None:
    """Somebody's server that carries our marker is a stranger that says so; no step can reach it."""
    environ = {**os.environ, "VMRECONCILE_SERVER": SLUG}
    argv = [str(world.vllm), "serve", "a/model", "--port", str(world.port)]
    with subprocess.Popen(argv, env=environ, start_new_session=True, stdout=subprocess.DEVNULL) as theirs:
        wait_until(lambda: world.agent.observe(ports=[world.port])["ports"])
        seen = world.agent.observe(ports=[world.port])
        stranger = next(row for row in seen["strangers"] if row["pid"] == theirs.pid)
        assert stranger["why"] == f"carries our marker for {SLUG}, but no record of this boot names it"
        assert stranger["port"] == world.port
        assert (seen["ports"][0]["pid"], seen["ports"][0]["slug"]) == (theirs.pid, None)
        names = {"pid": theirs.pid, "start_ticks": stranger["start_ticks"], "boot_id": seen["host"]["boot_id"]}
        step = {"step": "stop-process", "slug": SLUG, "grace_s": 1, **names}
        with pytest.raises(Refused) as refused:
            world.agent.steps(step)
        assert refused.value.kind == "not-ours"
        orphans = [[theirs.pid, stranger["start_ticks"]]]
        with pytest.raises(Refused) as refused:
            world.agent.steps({"step": "end-orphans", "slug": SLUG, "processes": orphans, "grace_s": 1})
        assert refused.value.kind == "not-ours"
        assert theirs.poll() is None
        os.killpg(theirs.pid, signal.SIGTERM)
        theirs.wait(10)


def test_a_record_of_a_process_without_our_marker_signals_nothing(world: World) -> None:
    """A record that names a process is not enough: a bystander without our marker survives it."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as bystander:
        ticks = int(Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        names = {"pid": bystander.pid, "start_ticks": ticks, "boot_id": boot}
        record = {"step": "write-record", "slug": SLUG, "record": {"runtime": "process", **names}}
        world.agent.steps(record)
        assert world.agent.server(SLUG)["process"] is None
        with pytest.raises(Refused) as refused:
            world.agent.steps({"step": "stop-process", "slug": SLUG, "grace_s": 1, **names})
        assert refused.value.kind == "not-ours"
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize("wrong", [{"start_ticks": 7}, {"boot_id": "another-boot"}])
def test_a_reused_pid_is_never_signalled(world: World, wrong: dict[str, object]) -> None:
    """A record from before: the number now means another process, marked or not."""
    environ = {**os.environ, "VMRECONCILE_SERVER": SLUG}
    with subprocess.Popen(["sleep", "60"], start_new_session=True, env=environ) as bystander:
        ticks = int(Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        names = {"pid": bystander.pid, "start_ticks": ticks, "boot_id": boot, **wrong}
        world.agent.steps({"step": "write-record", "slug": SLUG, "record": {"runtime": "process", **names}})
        seen = world.agent.server(SLUG)
        assert (seen["process"], seen["orphans"]) == (None, [])
        answer = world.agent.steps({"step": "stop-process", "slug": SLUG, "grace_s": 1, **names})[0]
        assert answer["changed"] is False
        assert bystander.poll() is None
        bystander.kill()


def test_a_failing_exec_is_told_and_leaves_no_record(world: World, tmp_path: Path) -> None:
    """What cannot be executed is an error of the step, and nothing counts as ours afterwards."""
    bad = tmp_path / "vllm"
    bad.write_text("#!/nowhere/python\n")
    bad.chmod(0o755)
    with pytest.raises(Refused) as refused:
        world.agent.steps(world.write_env(), world.spawn(argv=[str(bad), "serve", "m"]))
    assert (refused.value.kind, refused.value.answer["index"]) == ("not-found", 1)
    assert refused.value.progress[0]["index"] == 0
    assert not Path(world.path(f"state/servers/{SLUG}.json")).exists()
    with pytest.raises(Refused) as refused:
        world.agent.steps(world.spawn(cwd=str(tmp_path / "nowhere")))
    assert (refused.value.kind, refused.value.path) == ("not-found", str(tmp_path / "nowhere"))


def test_a_running_server_keeps_its_identity_when_its_record_is_rewritten(world: World) -> None:
    """`write-record` cannot turn a running server into a stranger."""
    pid = world.start()["pid"]
    world.agent.steps({"step": "write-record", "slug": SLUG, "record": {"runtime": "process", "state": "running"}})
    assert world.agent.server(SLUG)["process"]["pid"] == pid


def test_removing(world: World) -> None:
    """A running server's files are not removed; a stopped one's are, and our folders with the last."""
    world.start()
    with pytest.raises(Refused) as refused:
        world.agent.steps({"step": "remove-server", "slug": SLUG})
    assert refused.value.kind == "still-running"
    world.agent.steps(world.stop_step(), {"step": "remove-server", "slug": SLUG})
    assert world.agent.observe()["servers"] == []
    assert not Path(world.path("state")).exists()
    assert not Path(world.path("config")).exists()


def test_gate(world: World) -> None:
    """The gate answers with one real token; on a port that is not this server's it sends nothing."""
    world.start(env={"VLLM_API_KEY": "sk-local-key-of-this-server"})
    world.ready()
    answer = world.agent.ask("gate", slug=SLUG, address="127.0.0.1", port=world.port, completion=True, timeout=10)[0]
    assert answer["health"] == 200
    assert answer["completion"]["ok"] is True
    assert answer["completion"]["problem"] is None
    answer = world.agent.ask("gate", slug=SLUG, address="127.0.0.1", port=1, completion=True, timeout=10)[0]
    assert answer["completion"]["problem"] == "not listening on port 1"


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ((), "/v1/completions"),
        (("--runner", "pooling"), "/v1/embeddings"),
        (("--runner", "pooling", "--convert", "classify"), "/pooling"),
    ],
)
@pytest.mark.parametrize("runner", ["", "generate", "pooling"])
def test_the_gate_finds_the_question_of_each_task(world: World, words: tuple[str, ...], path: str, runner: str) -> None:
    """Whatever the settings say or leave out; of a model that is not there it says so, and not that a route is."""
    world.start(*words)
    world.ready()
    asked = {"slug": SLUG, "address": "", "port": world.port, "completion": True, "timeout": 10}
    completion = world.agent.ask("gate", **asked, model="a/model", runner=runner)[0]["completion"]
    assert (completion["ok"], completion.get("path")) == (True, path)
    completion = world.agent.ask("gate", **asked, model="b/model", runner=runner)[0]["completion"]
    assert completion["ok"] is False
    assert "The model `b/model` does not exist" in completion["problem"]


def test_log(world: World) -> None:
    """The end of the log, masked; followed until the controller speaks."""
    world.start(env={"HF_TOKEN": "hf_" + "abcdefgh" * 4})
    world.ready()
    with Path(world.spawn()["log_path"]).open("a") as log:
        log.write("token hf_" + "abcdefgh" * 4 + " here\n")
    answer, progress = world.agent.ask("log", slug=SLUG, lines=2)
    lines = [line for part in progress for line in part["lines"]]
    assert len(lines) == 2
    assert lines[1] == "token *** here"
    assert answer["ok"] is True
    number = world.agent.send("log", slug=SLUG, lines=1, follow=True)
    assert world.agent.next_answer()["lines"] == ["token *** here"]
    with Path(world.spawn()["log_path"]).open("a") as log:
        log.write("one more\n")
    assert world.agent.next_answer()["lines"] == ["one more"]
    assert world.agent.close() == 0
    world.agents.clear()
    assert number == world.agent.number


def test_a_strangers_command_line_does_not_hold_up_a_look(world: World) -> None:
    """Who holds a wanted port, or memory of a GPU, is named, and may be called anything of any length."""
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {world.port})); time.sleep(60)"
    argv = [sys.executable, "-c", listen, "x" + "hf_" * 20_000]
    with subprocess.Popen(argv, start_new_session=True) as theirs:
        try:
            wait_until(lambda: _listens(world.port))
            begun = time.monotonic()
            (held,) = world.agent.observe(ports=[world.port])["ports"]
            assert (held["pid"], held["what"].split()[1]) == (theirs.pid, "-c")
            assert time.monotonic() - begun < 10
        finally:
            theirs.kill()


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0

"""Servers as plain processes: the steps around them."""

from __future__ import annotations

from vmreconcile.model.launch import Launch
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer, Process, Record, Worker
from vmreconcile.model.steps import EndOrphans, RemoveFile, RemoveServer, Spawn, StopProcess, WriteEnv, WriteRecord
from vmreconcile.runtimes.process import GRACE_S, ProcessRuntime

PROCESS = ProcessRuntime()
HOST = HostView(host="h1", now=0, boot_id="boot", uid=0, user="root", config_dir="/c", state_dir="/s")
LAUNCH = Launch(
    id=ServerId(host="h1", model="m"),
    argv=("/v/vllm", "serve", "it's $5, 100%\n"),
    entries=(("A", "1"),),
    env_path="/c/env/m.env",
    log_path="/s/log/m.log",
    cwd="/s",
    record={"server": "m", "env_names": ["A"]},
)
ROOT = Process(pid=812, start_ticks=5, started_at=1.0, argv=())
RECORD = Record(
    server="m", runtime="process", pid=812, start_ticks=5, boot_id="boot", state="running", env_names=("A",)
)


def test_a_start_is_the_env_file_and_the_process() -> None:
    """Arguments verbatim; the record is the child's to write."""
    env, apart, spawn = PROCESS.start(LAUNCH)
    assert apart == RemoveFile(path="/c/env/m.token")
    assert env == WriteEnv(path="/c/env/m.env", entries=(("A", "1"),))
    assert spawn == Spawn(
        slug="m",
        argv=LAUNCH.argv,
        cwd="/s",
        env_path="/c/env/m.env",
        log_path="/s/log/m.log",
        record={"server": "m", "env_names": ["A"], "runtime": "process", "state": "running"},
    )
    assert PROCESS.refresh(LAUNCH) == (env, apart)


def test_a_stop_names_pid_start_and_boot() -> None:
    """And notes that it is meant to be stopped, without the pid."""
    stop, note = PROCESS.stop(HOST, ObservedServer(slug="m", process=ROOT, record=RECORD))
    assert stop == StopProcess(slug="m", pid=812, start_ticks=5, boot_id="boot", grace_s=GRACE_S)
    stopped = {"server": "m", "runtime": "process", "state": "stopped", "env_names": ["A"]}
    assert note == WriteRecord(slug="m", record=stopped)


def test_a_stop_of_what_is_left_over_ends_orphans() -> None:
    """Sorted by pid."""
    workers = (Worker(pid=9, start_ticks=2), Worker(pid=7, start_ticks=1))
    ending, _ = PROCESS.stop(HOST, ObservedServer(slug="m", orphans=workers, record=RECORD))
    assert ending == EndOrphans(slug="m", processes=((7, 1), (9, 2)), grace_s=GRACE_S)


def test_nothing_there_needs_no_stop() -> None:
    """No process, no record."""
    assert PROCESS.stop(HOST, ObservedServer(slug="m")) == ()


def test_a_removal_is_one_step() -> None:
    """Record, env file and log go together."""
    assert PROCESS.remove(HOST, ObservedServer(slug="m", record=RECORD)) == (RemoveServer(slug="m"),)


def test_crashed_is_a_record_that_says_running() -> None:
    """Without a process behind it."""
    assert PROCESS.crashed(ObservedServer(slug="m", record=RECORD))
    assert not PROCESS.crashed(ObservedServer(slug="m", record=Record(runtime="process", state="stopped")))
    assert not PROCESS.crashed(ObservedServer(slug="m"))


def test_it_can_be_used_anywhere() -> None:
    """And has no files of its own to drift."""
    assert PROCESS.problem(HOST) == ""
    assert PROCESS.refusal(LAUNCH) == ""
    assert PROCESS.drift(LAUNCH, ObservedServer(slug="m")) == ()

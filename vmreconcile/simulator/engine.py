"""The processes below the root: `VLLM::EngineCore`, its workers, the coordinator, Python's resource tracker.

Owns their titles, signals and deaths. Must not serve HTTP. They share the root's session and group, and outlive a
root that is killed. All of them sleep in the kernel until something happens.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from vmreconcile.simulator.devices import StartError
from vmreconcile.simulator.failures import traceback
from vmreconcile.simulator.faults import Faults
from vmreconcile.simulator.gpu_folder import Claims
from vmreconcile.simulator.log import Log, die
from vmreconcile.simulator.titles import set_title

READY = b"R"
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
_QUICK_EXIT_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the engines are to do: their shape, how the start goes, and what they say of it.

    `failure` is the exception's text with which loading ends, "" for none; `findings` are said once all is well,
    `before` ahead of a failure that comes of them. `faults` reads the switches anew. `claims` is what they take of GPUs
    that they share with others, None where nobody does.
    """

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    load_seconds: float
    failure: str
    hello: str
    findings: tuple[tuple[str, str], ...]
    before: tuple[tuple[str, str], ...]
    faults: Callable[[], Faults]
    claims: Claims | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine as its root sees it: `pipe` yields `READY` when it has loaded and ends when it dies."""

    pid: int
    pipe: int


def launch(plan: Plan, *, close: tuple[int, ...]) -> tuple[Engine, ...]:
    """Start every process of the tree; `close` are the root's file descriptors that no child may hold open.

    Call it with `WATCHED` blocked and before any thread exists: the children inherit both.
    """
    _start_tracker()
    if plan.data_parallel > 1:
        _start_idle("VLLM::DPCoordinator", close)
    root = os.getpid()
    engines: list[Engine] = []
    for rank in range(plan.data_parallel):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            for descriptor in (read, *close, *(engine.pipe for engine in engines)):
                os.close(descriptor)
            _guard(functools.partial(_run_engine, plan, rank=rank, ready=write, root=root))
        os.close(write)
        engines.append(Engine(pid=pid, pipe=read))
    if plan.data_parallel > 1:
        for rank in range(plan.data_parallel):
            _start_idle(f"VLLM::ApiServer_{rank}", (*close, *(engine.pipe for engine in engines)))
    return tuple(engines)


def _guard(body: Callable[[], object]) -> NoReturn:
    """Run a child's body and never return into the code that forked it."""
    try:
        body()
    except BaseException as problem:  # noqa: BLE001 - a forked child must not run its parent's code
        os.write(2, f"simulator of vLLM: {type(problem).__name__}: {problem}\n".encode())
        os._exit(70)
    os._exit(0)


def _start_tracker() -> None:
    """Start what multiprocessing starts: a process that keeps argv and environment and ends with the last of us."""
    read, _write_kept_open_by_the_whole_tree = os.pipe()
    os.set_inheritable(read, True)  # noqa: FBT003 - takes no keyword
    code = f"from multiprocessing.resource_tracker import main;main({read})"
    os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ, setsigmask=())
    os.close(read)


def _start_idle(title: str, close: tuple[int, ...]) -> None:
    """Fork a process that has a title and nothing to do until its parent is gone or it is told to end."""
    read, write = os.pipe()
    if os.fork() == 0:
        for descriptor in (write, *close):
            os.close(descriptor)
        _guard(functools.partial(_run_idle, title, read))
    os.close(read)


def _run_idle(title: str, parent: int) -> None:
    """Sleep until the parent's end of the pipe closes, or SIGTERM."""
    set_title(title)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.read(parent, 1)


def _run_engine(plan: Plan, *, rank: int, ready: int, root: int) -> None:
    """Live an engine's life: load or fail, then wait to be ended."""
    suffix = f"_DP{rank}" if plan.data_parallel > 1 else ""
    set_title(f"VLLM::EngineCore{suffix}")
    log = Log(f"EngineCore{suffix}")
    log("core.py:133", plan.hello)
    workers = _start_workers(plan, ready)
    _claim(plan, log, rank, workers)
    _load(plan, log, workers)
    os.write(ready, READY)
    while True:
        caught = signal.sigwait(WATCHED)
        if caught == signal.SIGCHLD:
            log("multiproc_executor.py:310", "Worker proc died unexpectedly, shutting down executor.", level="ERROR")
            _end(workers, 1)
        log("core.py:1454", f"[shutdown] EngineCore: trigger received signal={signal.Signals(caught).name}")
        time.sleep(_QUICK_EXIT_SECONDS if os.getppid() == root else plan.faults().orphan_seconds)
        _end(workers, 0)


def _load(plan: Plan, log: Log, workers: tuple[int, ...]) -> None:
    """Spend the time of loading; say what was found, or die of the failure, of a signal or of a worker's death."""
    failure, before = plan.failure, plan.before
    if signal.sigtimedwait(WATCHED, plan.load_seconds) is not None:
        failure, before = "Exception: WorkerProc initialization failed due to an exception in a background process.", ()
    for source, text in before if failure else plan.findings:
        log(source, text)
    if failure:
        _fail(log, failure, workers)


def _claim(plan: Plan, log: Log, rank: int, workers: tuple[int, ...]) -> None:
    """Take the memory of this engine's GPUs for its workers, or for itself where it has none; or die of it."""
    if plan.claims is None:
        return
    try:
        plan.claims.take(rank, workers or (os.getpid(),))
    except StartError as error:
        _fail(log, str(error), workers)


def _fail(log: Log, failure: str, workers: tuple[int, ...]) -> NoReturn:
    """Say what ends this engine, and end it."""
    log("core.py:1510", "EngineCore failed to start.\n" + traceback(failure).rstrip("\n"), level="ERROR")
    _end(workers, 1)


def _start_workers(plan: Plan, ready: int) -> tuple[int, ...]:
    """Fork one worker a GPU; a single GPU needs none, as its engine does the work itself."""
    if plan.tensor_parallel * plan.pipeline_parallel == 1:
        return ()
    read, write = os.pipe()
    workers = []
    for stage in range(plan.pipeline_parallel):
        for rank in range(plan.tensor_parallel):
            parts = [f"PP{stage}"] * (plan.pipeline_parallel > 1) + [f"TP{rank}"] * (plan.tensor_parallel > 1)
            pid = os.fork()
            if pid == 0:
                os.close(write)
                os.close(ready)
                _guard(functools.partial(_run_idle, "VLLM::Worker_" + "_".join(parts), read))
            workers.append(pid)
    os.close(read)
    return tuple(workers)


def _end(workers: tuple[int, ...], code: int) -> NoReturn:
    """End the workers, then this engine."""
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    for pid in workers:
        os.waitpid(pid, 0)
    die(code)

"""The root process's life once its engines are launched: starting, serving, stopping, and every way that ends.

Owns signals, exit codes and the one place where the root sleeps. Must not parse arguments or answer requests.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import NoReturn, Protocol

from vmreconcile.simulator.engine import READY, Engine
from vmreconcile.simulator.failures import last_words, traceback
from vmreconcile.simulator.faults import Faults
from vmreconcile.simulator.log import Log, die, write, write_error

_ANSWER_GRACE_SECONDS = 0.1
_ENGINE_GRACE_SECONDS = 2.0


class Flags(Protocol):
    """What the serving side tells the root; see `serving.Serving`."""

    dead: bool
    stopping: bool
    refused_when_dead: bool
    crash_wanted: bool
    running: int

    @property
    def patience(self) -> int:
        """Seconds that requests in flight may take once it is told to stop."""

    @property
    def fragile(self) -> bool:
        """Whether the engine has workers, which a SIGTERM ends at once."""

    def abort(self) -> None:
        """Answer the requests in flight with what there is of them."""

    def give_up(self) -> None:
        """Answer the requests in flight no more."""


class Root:
    """The root process: counts signals and sleeps until one comes, an engine speaks or dies, or a client calls."""

    def __init__(self, log: Log, faults: Callable[[], Faults]) -> None:
        """Prepare the pipe that wakes the root; signals are left alone until `watch_signals`."""
        self.log = log
        self.faults = faults
        self.signals = 0
        self.engines: dict[int, Engine] = {}
        self.awake, self._waker = os.pipe()
        os.set_blocking(self.awake, False)
        os.set_blocking(self._waker, False)

    @property
    def descriptors(self) -> tuple[int, int]:
        """What children must close."""
        return self.awake, self._waker

    def watch_signals(self) -> None:
        """From here on SIGTERM and SIGINT are counted instead of ending the process."""

        def count(_number: int, _frame: object) -> None:
            self.signals += 1

        signal.signal(signal.SIGTERM, count)
        signal.signal(signal.SIGINT, count)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)

    def adopt(self, engines: tuple[Engine, ...]) -> None:
        """Take charge of the launched engines."""
        self.engines = {engine.pipe: engine for engine in engines}

    def wake(self) -> None:
        """End the root's sleep, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._waker, b"w")

    def sleep(self, *more: int, seconds: float | None = None) -> set[int]:
        """Sleep until a signal, a wake, or news on an engine's pipe or on `more`; return what is readable."""
        readable, _, _ = select.select([self.awake, *more], [], [], seconds)
        if self.awake in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self.awake, 4096)
        return set(readable)

    def wait_until_ready(self) -> None:
        """Wait for every engine; does not return if one fails or a second signal comes.

        One signal is swallowed, as vLLM does it: the start goes on, or hangs where the engine died of it too.
        """
        waiting = set(self.engines)
        while waiting:
            for pipe in self.sleep(*waiting) & waiting:
                waiting.discard(pipe)
                if os.read(pipe, 1) != READY:
                    self._engine_failed(self.engines[pipe])
            if self.signals > 1:
                self._interrupted()
        if self.signals and self.faults().hang_on_term:
            self._hang()
        self.signals = 0

    def _engine_failed(self, engine: Engine) -> None:
        """End as vLLM ends when its engine does not come up."""
        if self.signals:
            self._hang()
        ended = os.waitstatus_to_exitcode(os.waitpid(engine.pid, 0)[1])
        self.kill_engines(signal.SIGTERM)
        write_error(traceback(last_words(ended)))
        code = self.faults().die_code
        die(code if code >= 0 else 1)

    def _hang(self) -> None:
        """Wait for the second signal."""
        while self.signals < 2:
            self.sleep()
        self._interrupted()

    def _interrupted(self) -> None:
        """End by SIGINT, as a second signal during the start does it."""
        self.log("utils.py:628", "[shutdown] Process manager: send sigterm to process EngineCore")
        self.kill_engines(signal.SIGTERM)
        time.sleep(self.faults().term_seconds)
        self.kill_engines(signal.SIGKILL)
        write_error("KeyboardInterrupt: terminated\n")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    def kill_engines(self, number: signal.Signals) -> None:
        """Send a signal to every engine that is still there."""
        for engine in self.engines.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine.pid, number)

    def serve(self, listener: socket.socket, flags: Flags, connect: Callable[[socket.socket, str], None]) -> NoReturn:
        """Serve until told to stop or until the engine is dead for long enough; both end with exit code 0."""
        started = time.monotonic()
        ends: float | None = None
        while True:
            crash_after = self.faults().crash_after
            crash_at = started + crash_after if crash_after >= 0 and not flags.dead else None
            moments = [moment - time.monotonic() for moment in (ends, crash_at) if moment is not None]
            pipes = () if flags.dead else tuple(self.engines)
            readable = self.sleep(listener.fileno(), *pipes, seconds=max(0.0, min(moments)) if moments else None)
            now = time.monotonic()
            if self.signals:
                self._stop(listener, flags, connect)
            if listener.fileno() in readable:
                _accept(listener, connect)
            if flags.crash_wanted or (crash_at is not None and now >= crash_at):
                flags.crash_wanted = False
                self.kill_engines(signal.SIGKILL)
            if readable & set(pipes):
                flags.dead = True
                ends = now + self._report_death()
            if flags.refused_when_dead and ends is not None:
                ends = min(ends, now + _ANSWER_GRACE_SECONDS)
            if ends is not None and now >= ends:
                die(0)

    def _report_death(self) -> float:
        """Say that the engine died; return after how many seconds the root follows it."""
        self.log(
            "core_client.py:817",
            "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup",
            level="WARNING",
        )
        text = "AsyncLLM output_handler failed.\n" + traceback(
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
            "See stack trace (above) for the root cause."
        ).rstrip("\n")
        self.log("async_llm.py:906", text, level="ERROR")
        self.kill_engines(signal.SIGTERM)
        return self.faults().watchdog_seconds

    def _stop(self, listener: socket.socket, flags: Flags, connect: Callable[[socket.socket, str], None]) -> NoReturn:
        """Stop: refuse new completions, abort those in flight or let them end (`--shutdown-timeout`), exit 0.

        As vLLM 0.32.0 does it: those that take longer than they may are never answered, and hold up the exit until
        their clients leave.
        """
        flags.stopping = True
        self.log("launcher.py:254", "[shutdown] API server: shutdown triggered")
        mode = "drain" if flags.patience else "abort"
        self.log(
            "launcher.py:270",
            f"[shutdown] API server: stopping engine client mode={mode} timeout={flags.patience}s",
        )
        if not flags.patience:
            flags.abort()
        earliest = time.monotonic() + self.faults().stop_seconds
        latest = max(earliest, time.monotonic() + flags.patience)
        engines = tuple(self.engines) if flags.fragile else ()
        while (left := (latest if flags.running else earliest) - time.monotonic()) > 0:
            readable = self.sleep(listener.fileno(), *engines, seconds=left)
            if listener.fileno() in readable:
                _accept(listener, connect)
            if readable & set(engines):  # a signal to the whole group got at the workers, too
                flags.dead = True
                flags.abort()
                break
        self.log("utils.py:628", "[shutdown] Process manager: send sigterm to process EngineCore")
        self.kill_engines(signal.SIGTERM)
        listener.close()
        ends = time.monotonic() + _ENGINE_GRACE_SECONDS
        waiting = set(self.engines)
        while waiting and (left := ends - time.monotonic()) > 0:
            waiting -= self.sleep(*waiting, seconds=left)
        self.kill_engines(signal.SIGKILL)
        for engine in self.engines.values():
            os.waitpid(engine.pid, 0)
        self.log("launcher.py:304", "[shutdown] API server: shutting down FastAPI HTTP server")
        if flags.patience and not flags.dead:
            flags.give_up()
        while flags.running:
            self.sleep()
        time.sleep(_ANSWER_GRACE_SECONDS)  # for answers that are on their way out
        write("INFO:     Application shutdown complete.\n")
        die(0)


def _accept(listener: socket.socket, connect: Callable[[socket.socket, str], None]) -> None:
    """Take one connection and serve it in a thread of its own."""
    try:
        connection, address = listener.accept()
    except OSError:
        return
    client = f"{address[0]}:{address[1]}"
    threading.Thread(target=connect, args=(connection, client), daemon=True).start()

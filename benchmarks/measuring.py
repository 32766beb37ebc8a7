"""Running one program and measuring it: wall time, and the processor time of it and its children. Knows no contestant.

Before each measurement the corner is made quiet: connections and agents of the one before have ended.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

LONGEST_WAIT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run, in seconds: wall time, processor time of the program, and of everything in the corner, hosts too.

    On hosts of their own only the first two would be the controller's; here all share the same cores.
    """

    wall: float
    cpu: float
    total: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is run, and where. `output` must occur in what it prints, or the measurement is worth nothing."""

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    output: str = ""


def measure(program: Program) -> Sample:
    """Run `program` once.

    Raises:
        SystemExit: where it fails, or does not print what it must.
    """
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        process = subprocess.Popen(
            program.argv,
            cwd=program.folder,
            env=dict(program.environment),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)  # reaped by us, for its resource usage
        said.seek(0)
        text = said.read()
    if process.returncode or program.output not in text:
        raise SystemExit(f"{' '.join(program.argv)[:200]} ended with {process.returncode}:\n{text[-3000:]}")
    return Sample(wall=wall, cpu=used.ru_utime + used.ru_stime)


def measure_all(program: Program) -> Sample:
    """Run `program` once in the quiet corner, and count what the hosts did for it too."""
    settle()
    before = _spent()
    sample = measure(program)
    settle()
    return replace(sample, total=_spent() - before)


def _spent() -> float:
    """Processor seconds of all that ever ran in this corner, of which this is the first process: it reaps orphans."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    alive = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            alive += (
                sum(map(int, entry.read_text().rpartition(")")[2].split()[11:15])) if entry.parent.name != "1" else 0
            )
    return used.ru_utime + used.ru_stime + alive / os.sysconf("SC_CLK_TCK")


def median(samples: list[Sample]) -> Sample:
    """The medians of both times."""
    return Sample(
        wall=statistics.median(sample.wall for sample in samples),
        cpu=statistics.median(sample.cpu for sample in samples),
        total=statistics.median(sample.total for sample in samples),
    )


def settle() -> None:
    """Wait until no connection is left; those that Ansible keeps for a next run are ended first."""
    deadline = time.monotonic() + LONGEST_WAIT
    for pid, title in _titles():
        if title.startswith("ssh: ") and "[mux]" in title:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    while any(_busy(title) for _, title in _titles()):
        if time.monotonic() > deadline:
            raise SystemExit("connections of the last measurement do not end")
        time.sleep(0.05)


def _busy(title: str) -> bool:
    session = title.startswith("sshd: ") and "[listener]" not in title
    return session or title.startswith("ssh: ") or "vmreconcile" in title.split("\0")[:1]


def _titles() -> Iterator[tuple[int, str]]:
    """Every process of the corner but the servers', by its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace")


@contextlib.contextmanager
def load_seen(every: float = 5.0) -> Iterator[list[float]]:
    """The machine's load averages (one minute) from time to time: what else ran beside the measurement shows here."""
    seen = [os.getloadavg()[0]]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            seen.append(os.getloadavg()[0])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()

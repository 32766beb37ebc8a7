"""A machine in memory: a clock, files, ports, processes, and how a vLLM on it behaves. Knows neither systemd nor wire.

A test sets behaviours and breaks things here; tests/lab/fake_host.py answers requests from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.lab.fake_gpus import TAKING, FakeGpus
from tests.lab.fake_starts import begun, start_on_gpus
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import parse_strict

FIRST_PID = 1000
BOOTED_AT = 1_795_000_000.0


class Refusal(Exception):  # noqa: N818 - what the operating system says no to
    """A file operation or a program that this machine refuses."""

    def __init__(self, kind: str, message: str, path: str = "") -> None:
        """`kind` is the wire's class."""
        super().__init__(message)
        self.kind = kind
        self.path = path


@dataclass(slots=True, kw_only=True)
class Behaviour:
    """What a vLLM does from its start on; times in seconds of the machine's clock.

    On a machine with GPUs, on each of them: `beside_gib` is what it takes beside the KV cache, weights included, and
    `needs_gib` the KV cache of one request of `context` tokens, which is how long the model's own context is.
    """

    ready_after: float = 0.0
    exit_code: int | None = None
    log: tuple[str, ...] = ()
    health: int = 200
    completes: bool = True
    swallows_term: bool = False
    beside_gib: float = 3.0
    needs_gib: float = 0.5
    context: int = 8192
    names: tuple[str, ...] = ()
    """What /v1/models shows; (): as its arguments say."""
    stalled_s: float | None = None
    """For how long a request has hung in it, where somebody looks."""


@dataclass(slots=True, kw_only=True)
class FakeFile:
    """A regular file."""

    content: str
    mode: int = 0o600
    uid: int = 0
    mtime: float = 0.0


@dataclass(slots=True, kw_only=True)
class FakeProcess:
    """A root or a worker. `unit` is the unit whose control group it is in, `port` where it listens."""

    pid: int
    start_ticks: int
    started_at: float
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    session: int = 0
    parent: int = 1
    unit: str = ""
    title: str = ""
    user: str = "root"
    port: int | None = None
    version: str | None = None
    behaviour: Behaviour = field(default_factory=Behaviour)
    terms: int = 0
    log_path: str = ""
    length: int | None = None
    """The context that it serves, in tokens; None where it looked at no GPU."""
    cache_config: Mapping[str, str] = field(default_factory=dict)
    slug: str = ""
    """The server that it was started as, whose log is its log."""
    ready_log: list[str] = field(default_factory=list)
    """Lines that it has yet to log, once it is ready."""


class Kernel:
    """The machine."""

    def __init__(self, *, uid: int = 0, installed: Mapping[str, tuple[str, str]] | None = None, name: str = "") -> None:
        """`installed` maps what may be asked for ('' is vllm on PATH) to (path, version)."""
        self.uid = uid
        self.now = BOOTED_AT
        self.boots = 1
        self.files: dict[str, FakeFile] = {}
        self.processes: dict[int, FakeProcess] = {}
        self.logs: dict[str, list[str]] = {}
        self.log_times: dict[str, float] = {}
        """When a log was written, where a test says it."""
        self.installed = dict({"": ("/usr/local/bin/vllm", "0.32.0")} if installed is None else installed)
        self.behaviours: dict[str, Behaviour] = {}
        self.gpus = FakeGpus(name, self.processes)
        self.disk_full = False
        self.read_only: tuple[str, ...] = ()
        self._pids = itertools.count(FIRST_PID)

    @property
    def boot_id(self) -> str:
        """Another one after each boot."""
        return f"00000000-0000-4000-8000-{self.boots:012d}"

    # Files

    def write(self, path: str, content: str, mode: int) -> bool:
        """Write a file whole; False where it was so already."""
        old = self.files.get(path)
        if old is not None and (old.content, old.mode, old.uid) == (content, mode, self.uid):
            return False
        self._writable(path)
        self.files[path] = FakeFile(content=content, mode=mode, uid=self.uid, mtime=self.now)
        return True

    def remove(self, path: str) -> bool:
        """Remove a file; False where there was none."""
        if path not in self.files:
            return False
        self._writable(path, removing=True)
        del self.files[path]
        return True

    def _writable(self, path: str, *, removing: bool = False) -> None:
        if any(path.startswith(folder) for folder in self.read_only):
            raise Refusal("read-only", f"{path}: Read-only file system", path)
        if self.disk_full and not removing:
            raise Refusal("disk-full", f"{path}: No space left on device", path)

    # Processes

    def start(
        self, slug: str, argv: tuple[str, ...], env: Mapping[str, str], *, unit: str = "", log_path: str = ""
    ) -> FakeProcess:
        """Start a vLLM: the root, and its engine once the arguments are accepted. It may have ended when this returns.

        Raises:
            Refusal: there is no such program.
        """
        version = next((version for path, version in self.installed.values() if path == argv[0]), None)
        if version is None:
            raise Refusal("not-found", f"{argv[0]}: no such file", argv[0])
        behaviour = self._behaviour(slug, argv, version)
        folder = argv[0].rpartition("/")[0]
        root = self.add((f"{folder}/python3", *argv), env=env, unit=unit)
        root.session, root.log_path, root.version, root.behaviour = root.pid, log_path, version, behaviour
        log = self.logs.setdefault(slug, [])
        log += [begun(self, root), *behaviour.log] if self.gpus.devices else behaviour.log
        if behaviour.exit_code is None:
            root.port, root.slug = port_of(argv), slug
            self.add_worker(root)
            if self.gpus.devices:
                with TAKING:
                    start_on_gpus(self, slug, root)
        self.catch_up()
        return root

    def catch_up(self) -> None:
        """What came of time passing: memory of GPUs given back, logs of those that are ready by now."""
        self.gpus.settle(self.now)
        for process in list(self.processes.values()):
            if process.ready_log and self.health(process) is not None:
                self.logs.setdefault(process.slug, []).extend(process.ready_log)
                process.ready_log = []

    def _behaviour(self, slug: str, argv: tuple[str, ...], version: str) -> Behaviour:
        """As the test set it, unless vLLM itself refuses the arguments or finds its port taken."""
        try:
            parse_strict(argv[2:], catalogue_for(version))
        except ValueError as error:
            return Behaviour(exit_code=2, log=(f"vllm serve: error: {error}",))
        port = port_of(argv)
        if self.listener(port) is not None:
            return Behaviour(exit_code=1, log=(f"OSError: [Errno 98] Address already in use ('0.0.0.0', {port})",))
        return self.behaviours.get(slug, Behaviour())

    def add(self, argv: tuple[str, ...], *, env: Mapping[str, str] | None = None, unit: str = "") -> FakeProcess:
        """Any process."""
        pid = next(self._pids)
        ticks = round((self.now - BOOTED_AT) * 100) + pid
        process = FakeProcess(
            pid=pid, start_ticks=ticks, started_at=self.now, argv=argv, env=dict(env or {}), session=pid, unit=unit
        )
        self.processes[pid] = process
        return process

    def add_worker(self, root: FakeProcess, title: str = "VLLM::EngineCore") -> FakeProcess:
        """An engine or a worker of one below `root`: no arguments and no environment are left of it, only a title."""
        worker = self.add((), unit=root.unit)
        worker.session, worker.parent, worker.title = root.session, root.pid, title
        worker.log_path = root.log_path
        return worker

    def listener(self, port: int) -> FakeProcess | None:
        """Who listens on a port."""
        return next((process for process in list(self.processes.values()) if process.port == port), None)

    def workers(self, root: FakeProcess) -> list[FakeProcess]:
        """What a root has started."""
        return [process for process in list(self.processes.values()) if process.parent == root.pid]

    def end(self, process: FakeProcess, *, family: bool) -> None:
        """End a process; its workers with it, or handed to init as `kill -9` leaves them."""
        for worker in self.workers(process):
            if family:
                self.processes.pop(worker.pid, None)
            worker.parent = 1
        self.processes.pop(process.pid, None)

    def term(self, process: FakeProcess) -> bool:
        """A TERM; True where the process ends of it (a starting vLLM swallows the first)."""
        process.terms += 1
        if process.behaviour.swallows_term and process.terms < 2:
            return False
        self.end(process, family=True)
        return True

    def health(self, process: FakeProcess) -> int | None:
        """What /health answers; None before the server listens."""
        ready = self.now - process.started_at >= process.behaviour.ready_after
        return process.behaviour.health if ready else None


def port_of(argv: tuple[str, ...]) -> int:
    """The port in a vLLM's arguments; 8000 without one."""
    for at, word in enumerate(argv):
        if word == "--port":
            return int(argv[at + 1])
        if word.startswith("--port="):
            return int(word.removeprefix("--port="))
    return 8000


def models_of(process: FakeProcess) -> list[str]:
    """The names under which a vLLM answers: those that it was given, else its model's; as the agent sorts them."""
    argv, given = process.argv, []
    if "--served-model-name" in argv:
        words = argv[argv.index("--served-model-name") + 1 :]
        given = [*itertools.takewhile(lambda word: not word.startswith("-"), words)]
    own = argv[argv.index("serve") + 1] if "serve" in argv else ""
    return sorted(process.behaviour.names or given or [own])

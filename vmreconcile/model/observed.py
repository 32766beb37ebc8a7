"""What was seen on a host, as values. Parsed from the agent's answer in `effects/observe.py`; decides nothing."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.model.gpus import Gpu, Measured
from vmreconcile.model.values import JsonValue


class Phase(enum.StrEnum):
    """Where a server stands, as `status` shows it."""

    ABSENT = "absent"
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    CRASHED = "crashed"
    UNKNOWN = "unknown"


Root = tuple[int, int]
"""A root process as pid and start time in ticks, which together name it for as long as the host runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvValue:
    """One environment variable seen on a host: a salted fingerprint, and the value where it is no secret."""

    fingerprint: str
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A process under a root, or one whose root died. `start_ticks`: clock ticks from boot to its start (proc(5))."""

    pid: int
    start_ticks: int
    title: str = ""
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """The root process of a server of ours. `started_at` is seconds since the epoch."""

    pid: int
    start_ticks: int
    started_at: float
    argv: tuple[str, ...]
    ports: tuple[int, ...] = ()
    env: Mapping[str, EnvValue] = field(default_factory=dict)
    children: tuple[Worker, ...] = ()

    @property
    def root(self) -> Root:
        """What names it."""
        return self.pid, self.start_ticks

    @property
    def pids(self) -> frozenset[int]:
        """The root, and the workers under it."""
        return frozenset({self.pid, *(child.pid for child in self.children)})


@dataclass(frozen=True, slots=True, kw_only=True)
class LastFailure:
    """The last launch that did not become ready, as a record has it. `when` in seconds since 1970.

    `launch` is its digest, `kind` the class of its failure; `revision` is what came back, None where it was left
    stopped.
    """

    launch: str
    kind: str
    when: float
    revision: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The ownership record as the host holds it: what was started, when, on behalf of which server."""

    server: str = ""
    runtime: str = ""
    pid: int | None = None
    start_ticks: int | None = None
    boot_id: str = ""
    state: str = ""
    env_names: tuple[str, ...] = ()
    decided: Mapping[str, JsonValue] = field(default_factory=dict)
    """Numbers that the tool chose for what it started, by setting."""
    measured: Measured | None = None
    failed: LastFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlace:
    """Where a unit or a drop-in names a token beside our env file. `wins`: it is what the server gets.

    `fingerprint` "" where the value is not in the file (PassEnvironment=).
    """

    variable: str
    path: str
    line: int
    fingerprint: str = ""
    wins: bool = False

    def __str__(self) -> str:
        """Render `HF_TOKEN in PATH:LINE`."""
        return f"{self.variable} in {self.path}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A systemd unit of ours, in systemd's own words."""

    name: str
    path: str = ""
    load: str = ""
    active: str = ""
    sub: str = ""
    result: str = ""
    enabled: str = ""
    restarts: int = 0
    exit_code: int | None = None
    text: str | None = None
    drop_ins: tuple[str, ...] = ()
    needs_reload: bool = False
    token_places: tuple[TokenPlace, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvFile:
    """The env file of a server: mode bits, owner and fingerprints; values only where they are no secret."""

    path: str
    mode: int
    uid: int
    mtime: float = 0.0
    problem: str | None = None
    env: Mapping[str, EnvValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What the server's HTTP side said. `health` is the status code, None when nothing answered (then `problem`)."""

    address: str = "127.0.0.1"
    port: int = 0
    health: int | None = None
    problem: str | None = None
    version: str | None = None
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    requests_running: float | None = None
    requests_waiting: float | None = None
    cache_config: Mapping[str, str] = field(default_factory=dict)
    stalled_s: float | None = None
    """For how many seconds it has moved none of its requests and answered no new one; None: it works, or is idle."""

    @property
    def wedged(self) -> bool:
        """Whether it says that it is healthy, and does nothing."""
        return self.health == 200 and self.stalled_s is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedServer:
    """Everything of ours under one slug on one host; any part may be missing."""

    slug: str
    runtime: str = ""
    record: Record | None = None
    process: Process | None = None
    orphans: tuple[Worker, ...] = ()
    unit: Unit | None = None
    env_file: EnvFile | None = None
    endpoint: Endpoint | None = None
    log_path: str = ""
    log_written_at: float | None = None
    """When its log was last written, by the host's clock; None where it has none of its own (the journal)."""
    problems: tuple[str, ...] = ()

    @property
    def pids(self) -> frozenset[int]:
        """Every process of it; workers whose root died belong to it, and go before it starts again."""
        return (self.process.pids if self.process else frozenset()) | {worker.pid for worker in self.orphans}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A vLLM that is not ours: shown, never touched."""

    host: str
    pid: int
    port: int | None
    what: str
    user: str = ""
    why: str = ""
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A vLLM worker without its root. `server` is the slug where it is ours, else ''."""

    host: str
    pid: int
    title: str = ""
    server: str = ""
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortHolder:
    """Who listens on a wanted port. `slug` is set where it is a server of ours; pid None: cannot be seen."""

    port: int
    pid: int | None
    what: str = ""
    user: str = ""
    slug: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledVllm:
    """A vLLM as installed: `asked` is what was asked for ('' is `vllm` on PATH), `path` where it is."""

    asked: str
    path: str | None
    version: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Systemd:
    """systemd on the host. `scope` is system or user; `problem` says why it cannot be used."""

    version: int | None = None
    scope: str = "system"
    lingering: bool | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One host as seen at one moment; `now` is the host's own clock, `salt` what its fingerprints were made with."""

    host: str
    hostname: str = ""
    now: float
    boot_id: str
    uid: int
    user: str
    home: str = "/"
    config_dir: str
    state_dir: str
    folder_problem: str | None = None
    salt: str = ""
    python: str = ""
    systemd: Systemd = field(default_factory=Systemd)
    servers: tuple[ObservedServer, ...] = ()
    strangers: tuple[Stranger, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    ports: tuple[PortHolder, ...] = ()
    vllm: tuple[InstalledVllm, ...] = ()
    architectures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By slug, what the config.json of its model names, where a tuning rule asks for it and the file is there."""
    gpus: tuple[Gpu, ...] = ()
    programs: Mapping[int, str] = field(default_factory=dict)
    """What the processes are that hold memory of GPUs, by pid."""
    gpu_problem: str | None = None
    gpu_driver: str | None = None
    gpu_cuda: str | None = None
    """The newest CUDA that the driver knows."""

    def server(self, slug: str) -> ObservedServer:
        """What is there under `slug`; an empty `ObservedServer` where nothing is."""
        for server in self.servers:
            if server.slug == slug:
                return server
        return ObservedServer(slug=slug)

    def installed(self, asked: str) -> InstalledVllm:
        """The vLLM behind an executable as asked."""
        for vllm in self.vllm:
            if vllm.asked == asked:
                return vllm
        return InstalledVllm(asked=asked, path=None, version=None, problem="not looked for")


NO_PYTHON = "no-python"
"""The cause where a host was reached, and has no Python that the agent could run on."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Unreachable:
    """A host that could not be observed: data, not an exception. `cause` is one that has a name, else ""."""

    host: str
    reason: str
    remedy: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """Every host observed in one pass, and those that could not be, each sorted by name."""

    hosts: tuple[HostView, ...] = ()
    unreachable: tuple[Unreachable, ...] = ()

    def host(self, name: str) -> HostView | None:
        """The view of one host, None where it was not reached."""
        return next((view for view in self.hosts if view.host == name), None)

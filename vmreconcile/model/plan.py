"""A plan: inert data that holds what will be done, why, and the literal steps. What was shown is what runs."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.errors import Diagnostic
from vmreconcile.model.gpus import Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Orphan, Phase, Root, Stranger, Unreachable
from vmreconcile.model.steps import Step
from vmreconcile.model.values import JsonValue


class Action(enum.StrEnum):
    """What is done to one server."""

    START = "start"
    RESTART = "restart"
    RETUNE = "retune"
    STOP = "stop"
    REMOVE = "remove"
    NOOP = "noop"
    BLOCKED = "blocked"

    @property
    def symbol(self) -> str:
        """The mark beside the word in a plan."""
        return _SYMBOLS[self]


_SYMBOLS = {
    Action.START: "+",
    Action.RESTART: "↻",
    Action.RETUNE: "~",
    Action.STOP: "-",
    Action.REMOVE: "x",
    Action.NOOP: "=",
    Action.BLOCKED: "!",
}


class Reason(enum.StrEnum):
    """Why an action was chosen: the closed set that docs/planning-behaviors.md documents."""

    ABSENT = "absent"
    STOPPED = "stopped"
    CRASHED = "crashed"
    ROOT_DIED = "root_died"
    ARGS_CHANGED = "args_changed"
    MODEL_CHANGED = "model_changed"
    PORT_CHANGED = "port_changed"
    EXECUTABLE_CHANGED = "executable_changed"
    RUNTIME_CHANGED = "runtime_changed"
    ENV_CHANGED = "env_changed"
    ENV_SHADOWED = "env_shadowed"
    TOKEN_CHANGED = "token_changed"  # noqa: S105 - a reason's name
    VERSION_CHANGED = "version_changed"
    UNHEALTHY = "unhealthy"
    WEDGED = "wedged"
    REQUESTED = "requested"
    ROLLED_BACK = "rolled_back"
    UNIT_CHANGED = "unit_changed"
    ENV_FILE_CHANGED = "env_file_changed"
    WANTED_STOPPED = "wanted_stopped"
    WANTED_ABSENT = "wanted_absent"
    UNCLAIMED = "unclaimed"
    IN_SYNC = "in_sync"
    STILL_STARTING = "still_starting"
    PORT_HELD = "port_held"
    NO_EXECUTABLE = "no_executable"
    NO_RUNTIME = "no_runtime"
    FOLDER_UNUSABLE = "folder_unusable"
    ARGUMENT_UNKNOWN = "argument_unknown"
    GATED = "gated"
    TOKEN_MISSING = "token_missing"  # noqa: S105 - a reason's name
    TOKEN_INVALID = "token_invalid"  # noqa: S105 - a reason's name
    MODEL_NOT_FOUND = "model_not_found"
    REVISION_NOT_FOUND = "revision_not_found"
    GPUS_CHANGED = "gpus_changed"
    GPU_MISSING = "gpu_missing"
    GPU_UNUSABLE = "gpu_unusable"
    GPU_MEMORY_HELD = "gpu_memory_held"
    GPU_OVERCOMMITTED = "gpu_overcommitted"
    TOO_FEW_GPUS = "too_few_gpus"
    MEMORY_UNKNOWN = "memory_unknown"
    DOES_NOT_FIT = "does_not_fit"
    CORDONED = "cordoned"
    MAX_UNAVAILABLE = "max_unavailable"
    PLAN_STALE = "plan_stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One obstacle: a reason of the closed set, what was seen, what to do."""

    reason: Reason
    note: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value that differs: `before` as observed, `after` as wanted, `origin` where that was said."""

    path: str
    before: JsonValue = None
    after: JsonValue = None
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One server's action with its reason, its fields and its literal steps.

    `note` is one line for a person (the holder of a port, the problem of a folder), `tuning` what rules did to it.
    `stops` take down what is there, `steps` then bring up what is wanted; `early` asks for the stops before anything
    else on the host, because another server needs the port. `digest` is the observed state, by field, that the steps
    were planned from.
    """

    server: ServerId
    action: Action
    reason: Reason
    phase: Phase
    disruptive: bool = False
    fields: tuple[Field, ...] = ()
    note: str = ""
    remedy: str = ""
    tuning: tuple[str, ...] = ()
    stops: tuple[Step, ...] = ()
    steps: tuple[Step, ...] = ()
    early: bool = False
    after: tuple[ServerId, ...] = ()
    """Servers that must be done before, because they hold the port or a GPU that it takes."""
    frees: bool = False
    """Whether it gives up memory of a GPU that another server of this plan takes."""
    gate: Gate | None = None
    placed: Placed | None = None
    """What was decided about GPUs and memory; None for a server that is not to run."""
    digest: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def root(self) -> Root | None:
        """The root process that was seen when the plan was made; None where there was none."""
        pid, ticks = (self.digest.get(f"process.{part}") for part in ("pid", "start_ticks"))
        return (pid, ticks) if isinstance(pid, int) and isinstance(ticks, int) else None

    @property
    def pending(self) -> bool:
        """Whether `apply` would carry out steps for it."""
        return self.action not in {Action.NOOP, Action.BLOCKED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What must hold after the steps: the server ready on this address within `timeout` seconds, and for `soak` more.

    `models` are names that `/v1/models` must show. `runner` is 'generate' or 'pooling' where the settings say so, else
    "": it decides which question is the first to be tried.
    """

    address: str
    port: int
    timeout: float
    completion: bool
    models: tuple[str, ...] = ()
    runner: str = ""
    soak: float = 0.0
    grows: bool = False
    """Whether `timeout` is nobody's word, and grows with the weights once it is known how large they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waves:
    """In which order the servers of a model that run are taken down: a wave at a time, `limit` of `total` at most.

    `canary`: how many waves at the beginning are canaries'. `pause`: seconds between two waves.
    """

    model: str
    waves: tuple[tuple[ServerId, ...], ...]
    limit: int
    total: int
    canaries: int = 0
    pause: float = 0.0

    @property
    def downtime(self) -> bool:
        """Whether nobody serves the model meanwhile, because it has this one server only."""
        return self.total == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every wanted or owned server with its change (noop and blocked ones too), sorted by server."""

    changes: tuple[Change, ...] = ()
    strangers: tuple[Stranger, ...] = ()
    orphans: tuple[Orphan, ...] = ()
    unreachable: tuple[Unreachable, ...] = ()
    unreachable_servers: tuple[ServerId, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    asks: frozenset[ServerId] = frozenset()
    """Servers for which the files of their models would have told how much memory they need."""
    down: frozenset[ServerId] = frozenset()
    """Servers wanted running that do not serve as far as was seen, also those that this plan does not act on."""
    waves: tuple[Waves, ...] = ()
    """For each model of which servers are taken down, sorted by model."""

    @property
    def pending(self) -> tuple[Change, ...]:
        """The changes that `apply` would carry out."""
        return tuple(change for change in self.changes if change.pending)

    def on(self, host: str) -> tuple[Change, ...]:
        """The changes of one host."""
        return tuple(change for change in self.changes if change.server.host == host)

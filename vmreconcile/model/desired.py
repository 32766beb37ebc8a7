"""What the files ask for, resolved: one `DesiredServer` for each server, each value with its origin."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.errors import Diagnostic
from vmreconcile.model.gpus import Needs
from vmreconcile.model.names import ServerId
from vmreconcile.model.tuning import Rule
from vmreconcile.model.values import Origin, Setting

DEFAULT_PRIORITY = 3

CORDONED = "cordoned"
"""What stands for the reason of a cordon that has none."""


class DesiredState(enum.StrEnum):
    """`state:` of a model."""

    RUNNING = "running"
    STOPPED = "stopped"
    ABSENT = "absent"


CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """When a start counts as done. Times in seconds; `soak`: how long it must stay up after its first answer.

    `startup_timeout` None: a quarter of an hour, and more the larger the weights are (core/gates.py).
    """

    startup_timeout: float | None = None
    completion: bool = True
    soak: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a change goes through a model's servers. Times in seconds; `drain` None is the default that hooks decide.

    `max_unavailable`: how many may be down at once, a count or a percentage such as '25%'. `canary`: how many go first.
    `order`: host patterns whose servers go first.
    """

    max_unavailable: int | str = 1
    canary: int = 0
    pause: float = 0.0
    max_failures: int = 0
    order: tuple[str, ...] = ()
    drain: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Commands of the controller around a stop or a start; text is a shell command. `timeout` in seconds each."""

    before_stop: tuple[str, ...] | str | None = None
    after_ready: tuple[str, ...] | str | None = None
    timeout: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLimit:
    """How many servers of all models may be down at once among the hosts that have it from the same place."""

    max_unavailable: int | str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredServer:
    """One server as wanted.

    `settings` are vLLM arguments by canonical name, normalised, without those the tool owns (port, model, revision);
    `env` maps names to string values. `executable` "" means `vllm` on the host's PATH; `runtime` "" lets the host
    decide (systemd where it runs, else process); `state_dir` "" means the user's defaults. `token` names a token
    source, None means that this server gets none. `gpus` is 'auto', a count, or a tuple of indices.
    """

    id: ServerId
    model: str
    revision: str | None = None
    port: int
    priority: int = DEFAULT_PRIORITY
    """1 (most important) to 5: who starts first on a host."""
    prefetch: bool = False
    state: DesiredState = DesiredState.RUNNING
    settings: Mapping[str, Setting] = field(default_factory=dict)
    env: Mapping[str, Setting] = field(default_factory=dict)
    gpus: str | int | tuple[int, ...] = "auto"
    needs: Needs = field(default_factory=Needs)
    cordon: str = ""
    """Why nothing new is started of it, "" where it is not cordoned."""
    host_cordon: str = ""
    """The same, said of its host."""
    cordoned_gpus: tuple[str, ...] = ()
    """GPUs of its host on which nothing new is put: indices, or UUIDs."""
    token: str | None = "default"  # noqa: S105 - the name of a source
    delivery: str = "environment"
    """How the token reaches the server: 'environment', or 'credential' (systemd's LoadCredential=)."""
    runtime: str = ""
    executable: str = ""
    state_dir: str = ""
    health: Health = field(default_factory=Health)
    rollout: Rollout = field(default_factory=Rollout)
    turn: int = 0
    """Which pattern of `rollout.order` names its host, from 0; hosts that none names come after."""
    hooks: Hooks = field(default_factory=Hooks)
    host_limit: HostLimit | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Origins of the other fields by name: model, port, state, runtime, executable, token, gpus …"""
    rules: tuple[Rule, ...] = ()
    """Tuning rules for this model; what they say of its host is looked at when that was observed."""
    architectures: tuple[str, ...] = ()
    """What the Hub says its config.json names, where a tuning rule asks for it; the host's own file counts first."""

    keeps: tuple[str, ...] = ()
    """Secrets of its environment that stay as the host has them: of a revision, which holds none."""
    visible: tuple[str, ...] = ()
    """Its GPUs as CUDA_VISIBLE_DEVICES is to name them; decided once its host was seen."""

    @property
    def from_hub(self) -> bool:
        """Whether its model is named by an id on the Hub, and not by a path on its host."""
        return not self.model.startswith(("/", ".", "~"))

    @property
    def cache_variables(self) -> dict[str, str]:
        """The variables of its environment that decide where the Hub's cache is (huggingface_hub.constants)."""
        return {name: str(self.env[name].value) for name in CACHE_VARIABLES if name in self.env}

    @property
    def asks_architecture(self) -> bool:
        """Whether some tuning rule depends on it."""
        return any(rule.match.architecture for rule in self.rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredFleet:
    """Every wanted server, sorted by (host, model, replica), and warnings met on the way."""

    servers: tuple[DesiredServer, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()

    def on(self, host: str) -> tuple[DesiredServer, ...]:
        """Those of one host."""
        return tuple(server for server in self.servers if server.id.host == host)

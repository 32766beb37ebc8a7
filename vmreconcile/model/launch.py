"""Everything a runtime needs to bring one server up on one host: pure data, secrets by name only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.model.names import ServerId
from vmreconcile.model.steps import EnvEntry
from vmreconcile.model.values import JsonValue

MARKER = "VMRECONCILE_SERVER"
"""The environment variable that marks a process as ours; its value is the slug."""

TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Where the Hub's client looks for a token in the environment, the first one first (huggingface_hub 2.4)."""


def token_beside(env_path: str) -> str:
    """Where the token is that belongs to an env file, if it is kept apart from it."""
    return env_path.removesuffix(".env") + ".token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One server's start: `argv` verbatim, the env file's entries, and the paths on the host.

    `unit_dir` is where systemd reads units for `scope` ('system' or 'user'); `cwd` the working folder.
    """

    id: ServerId
    argv: tuple[str, ...]
    entries: tuple[EnvEntry, ...]
    env_path: str
    token_path: str = ""
    """Where the token goes for systemd to hand it over as a credential; "" for the env file."""
    log_path: str
    cwd: str
    scope: str = "system"
    unit_dir: str = "/etc/systemd/system"
    linger: bool = False
    drains: int = 0
    """Seconds that it may take for requests in flight when it is told to stop (`shutdown_timeout`)."""
    record: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def unit_path(self) -> str:
        """Where the unit file stands."""
        return f"{self.unit_dir}/{self.id.unit}"

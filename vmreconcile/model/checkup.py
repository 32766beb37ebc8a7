"""What troubleshooting looked at, and what it says: facts of a host, and checks with their outcome."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Health(enum.StrEnum):
    """The outcome of one check."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line: `host` "" is the controller; `server` "" is none in particular."""

    check: str
    status: Health
    summary: str
    remedy: str = ""
    host: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Space where `path` is or would be made, in bytes; `device` tells file systems apart."""

    path: str
    device: int = 0
    total: int = 0
    free: int = 0
    inodes_free: int | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where a server's model is kept, and how much of it is there: `size` in bytes, None for nothing."""

    slug: str
    path: str
    size: int | None = None
    partial: int = 0
    """Downloads that were cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file that a killed vLLM left behind."""

    path: str
    size: int
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Whether the host reaches an endpoint of the Hub; `problem` "" where it does."""

    endpoint: str
    problem: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What `checkup` found on a host. `limits` maps a name to (soft, hard), -1 for none."""

    caches: tuple[Cache, ...] = ()
    disks: tuple[Disk, ...] = ()
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    leftovers: tuple[Leftover, ...] = ()
    token_files: tuple[tuple[str, str, int], ...] = ()
    """(variable, path, line) of tokens in files of logins."""
    hubs: tuple[Reached, ...] = ()

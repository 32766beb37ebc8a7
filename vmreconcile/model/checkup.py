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
    """Space where `path` is or would be made, in bytes."""

    path: str
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
    """A file that a killed vLLM left behind; `age` in seconds."""

    path: str
    size: int
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """Whether the host reaches an endpoint of the Hub, and how long that took; `problem` "" where it does."""

    endpoint: str
    problem: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A limit of a process, -1 for none: the one that holds, and how far the process may raise it."""

    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a process hands on to those that it starts; None where it was not told."""

    open_files: Limit | None = None
    processes: Limit | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When the host had the request and when it answered, in seconds since the epoch by its own clock."""

    received: float
    answered: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """A host's clock minus the controller's, in seconds, and how far off that may be."""

    offset: float
    tolerance: float

    @classmethod
    def measured(cls, sent: float, heard: float, times: Times) -> Clock:
        """As NTP measures (RFC 5905, section 8): the way there and back counts, what the host does meanwhile does not.

        `sent` and `heard` are by the controller's clock.
        """
        offset = ((times.received - sent) + (times.answered - heard)) / 2
        return cls(offset=offset, tolerance=max(0.0, (heard - sent) - (times.answered - times.received)) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What `checkup` found on a host."""

    caches: tuple[Cache, ...] = ()
    disks: tuple[Disk, ...] = ()
    login: Limits = field(default_factory=Limits)
    """Limits of the agent, which runtime process hands on."""
    systemd: Limits | None = None
    """Limits of the systemd that our units belong to; None where it cannot be seen."""
    leftovers: tuple[Leftover, ...] = ()
    token_files: tuple[tuple[str, str, int], ...] = ()
    """(variable, path, line) of tokens in files of logins."""
    hubs: tuple[Reached, ...] = ()
    times: Times | None = None

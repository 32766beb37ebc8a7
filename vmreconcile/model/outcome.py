"""What an apply did: one `Result` a server. Status words are the contract's."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Unreachable
from vmreconcile.model.plan import Action


class Status(enum.StrEnum):
    """How it ended for one server."""

    CHANGED = "changed"
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    ROLLED_BACK = "rolled_back"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why it failed: a class for scripts, a summary, the evidence (a log line), what to do."""

    kind: str
    summary: str
    evidence: str = ""
    remedy: str = ""
    untouched: bool = False
    """Whether the server is as it was before, and serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One server's outcome; `seconds` is wall time spent on it."""

    server: ServerId
    action: Action
    status: Status
    seconds: float = 0.0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A whole apply, sorted by server."""

    results: tuple[Result, ...] = ()
    unreachable: tuple[Unreachable, ...] = ()
    interrupted: bool = False

    def count(self, status: Status) -> int:
        """How many servers ended with `status`."""
        return sum(1 for result in self.results if result.status is status)

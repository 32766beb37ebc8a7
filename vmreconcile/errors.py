"""The exception tree (one exit code a class) and `Diagnostic`, a located problem. Imports nothing of ours.

Exit codes are the outward contract: 0 done, 1 an action failed, 2 changes pending, 3 some hosts unreachable,
4 locked, 5 input invalid, 64 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar


class Severity(enum.StrEnum):
    """How bad a diagnostic is: an error refuses the run (exit 5), a warning is shown."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """A spot in a file: `line` and `column` count from 1; 0 means the file (or line) as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        """Render `FILE:LINE:COL`, leaving out what is not known."""
        parts = [self.file]
        if self.line:
            parts.append(str(self.line))
            if self.column:
                parts.append(str(self.column))
        return ":".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One problem with the input: what (`summary`), why it is one, how to mend it.

    `code` is a stable kebab-case name for scripts and tests, `suggestion` a 'did you mean' or "".
    """

    place: Place
    code: str
    summary: str
    why: str = ""
    remedy: str = ""
    suggestion: str = ""
    severity: Severity = Severity.ERROR


class VmreconcileError(Exception):
    """Anything we raise for a user to read: `str()` says what happened, `remedy` what to do."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        """Keep the message for `str()` and the remedy for the renderer."""
        super().__init__(message)
        self.remedy = remedy


class InputError(VmreconcileError):
    """The inventory, the models or another file cannot be used; carries every problem found."""

    exit_code: ClassVar[int] = 5

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        """Take at least one diagnostic; the message is the first one's."""
        super().__init__(f"{diagnostics[0].place}: {diagnostics[0].summary}", remedy=diagnostics[0].remedy)
        self.diagnostics = diagnostics


class UsageError(VmreconcileError):
    """The command line is wrong."""

    exit_code: ClassVar[int] = 64


class LockedError(VmreconcileError):
    """Another run holds what this one needs."""

    exit_code: ClassVar[int] = 4


class UnreachableError(VmreconcileError):
    """A host cannot be reached or cannot run the agent; `reason` is one line for the plan."""

    exit_code: ClassVar[int] = 3

    def __init__(self, reason: str, *, remedy: str = "", cause: str = "") -> None:
        """`reason` reads after the host's name: 'connection refused (10.0.0.9:22)'; `cause` is one that has a name."""
        super().__init__(reason, remedy=remedy)
        self.reason = reason
        self.cause = cause

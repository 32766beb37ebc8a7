"""Where checked values stand, whether in a model file or in an inventory variable, and how their path is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vmreconcile.errors import Diagnostic, Place, Severity
from vmreconcile.model.document import Path
from vmreconcile.model.showing import printable
from vmreconcile.model.values import Setting


class Source(Protocol):
    """Knows the place of a value and of its key; `Document` is one."""

    def place(self, *path: str | int) -> Place:
        """Where the value at `path` begins."""

    def key_place(self, *path: str | int) -> Place:
        """Where the key of the value at `path` begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An inventory variable. Inventories tell the place of the variable, not of what is in it."""

    setting: Setting

    def place(self, *_: str | int) -> Place:
        """Where the variable stands."""
        return self.setting.origin.place or Place(file=str(self.setting.origin))

    key_place = place


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong at a path; becomes a `Diagnostic` where it stands. `at_key`: the key is wrong, not the value."""

    path: Path
    code: str
    summary: str
    why: str = ""
    remedy: str = ""
    suggestion: str = ""
    at_key: bool = False
    severity: Severity = Severity.ERROR

    def located(self, source: Source) -> Diagnostic:
        """The finding with its place."""
        return Diagnostic(
            place=source.key_place(*self.path) if self.at_key else source.place(*self.path),
            code=self.code,
            summary=self.summary,
            why=self.why,
            remedy=self.remedy,
            suggestion=self.suggestion,
            severity=self.severity,
        )


def dotted(path: Path) -> str:
    """A path as people read it: `overrides.gpu3.args.max_model_len`, `gpus[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{printable(step)}" if text else printable(step)
    return text

"""Tuning rules, and what they did to a server."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.errors import Place
from vmreconcile.model.values import JsonValue


class Manner(enum.StrEnum):
    """How a rule sets an argument."""

    AT_LEAST = "at_least"
    VALUE = "value"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Whom a rule is for; "" and None ask nothing.

    `model`, `architecture` and `gpu` are globs, `size` bounds are in 1e9 parameters.
    """

    model: str = ""
    architecture: str = ""
    at_least: float | None = None
    at_most: float | None = None
    vllm_version: str = ""
    gpu: str = ""

    @property
    def open_questions(self) -> bool:
        """Whether more is asked than the model's id can tell."""
        return bool(self.architecture or self.vllm_version or self.gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule; `sets` and `suggests` are by the argument's canonical name."""

    name: str
    match: Match
    sets: Mapping[str, tuple[Manner, JsonValue]] = field(default_factory=dict)
    suggests: Mapping[str, JsonValue] = field(default_factory=dict)
    reason: str = ""
    source: str = ""
    place: Place | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What one rule did to one argument: `value` is what stands now, `done` says how that came."""

    rule: Rule
    argument: str
    value: JsonValue
    done: str

    def __str__(self) -> str:
        """Render for a person."""
        return f"{self.argument} {self.done} (rule {self.rule.name}: {self.rule.reason})"

"""What a server was launched with, as its host keeps it: enough to bring it back, and no secret. Pure.

Owns the form of docs/wire.md. What a host answers is trusted in nothing: a revision that it hands back names values
or what the host itself has, never a secret of the controller.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.model.gpus import Placed
from vmreconcile.model.steps import KEEP, Keep
from vmreconcile.model.values import LAST_MOMENT, JsonValue

Entry = tuple[str, str | Keep]
"""A variable of an env file: its value, or that it stays as the host has it."""

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""A name that systemd and shells take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who changes servers: `USER@CONTROLLER`, the commit of the model files (`+` where they differ), our version."""

    who: str = ""
    commit: str = ""
    tool: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was launched: `argv` without an interpreter, the env file's entries, and how it was run.

    `decided` are the numbers that the tool chose; `placed` is on which GPUs it was, None where nobody decided that.
    """

    argv: tuple[str, ...]
    entries: tuple[Entry, ...] = ()
    runtime: str = "process"
    credential: bool = False
    vllm_version: str = ""
    decided: Mapping[str, JsonValue] = field(default_factory=dict)
    placed: Placed | None = None

    @property
    def secrets(self) -> frozenset[str]:
        """Names of variables whose values only the host has."""
        return frozenset(name for name, value in self.entries if isinstance(value, Keep))

    @property
    def public(self) -> dict[str, str]:
        """The other variables."""
        return {name: value for name, value in self.entries if isinstance(value, str)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One launch: good once it was proven ready, else `kind` is the class of its failure.

    `number` is the host's, 0 before it was kept; `when` in seconds since 1970 by the controller's clock; `note` is for
    a person.
    """

    number: int = 0
    when: float = 0.0
    author: Author = field(default_factory=Author)
    good: bool = True
    kind: str = ""
    note: str = ""
    kept: Kept


def to_json(revision: Revision) -> dict[str, JsonValue]:
    """The revision as the wire has it, without its number."""
    kept, author = revision.kept, revision.author
    return {
        "when": revision.when,
        "who": author.who,
        "commit": author.commit,
        "tool": author.tool,
        "good": revision.good,
        "kind": revision.kind,
        "note": revision.note,
        "launch": {
            "vllm_version": kept.vllm_version,
            "runtime": kept.runtime,
            "argv": list(kept.argv),
            "env": [[name, {"keep": True} if isinstance(value, Keep) else value] for name, value in kept.entries],
            "credential": kept.credential,
            "decided": dict(kept.decided),
            "placed": _placed_json(kept.placed),
        },
    }


def _placed_json(placed: Placed | None) -> JsonValue:
    if placed is None:
        return None
    return {
        "devices": list(placed.devices),
        "visible": list(placed.visible),
        "settings": dict(placed.settings),
        "requested": list(placed.requested),
    }


def from_json(data: JsonValue) -> Revision:
    """The inverse of `to_json`, with the number that the host gave it.

    Raises:
        ValueError: for what is no revision.
    """
    row, launch = _object(data), _object(_object(data).get("launch"))
    number, when = row.get("number", 0), row.get("when")
    if type(number) is not int or number < 0:
        raise ValueError("a revision has a number")
    moment = float(when) if isinstance(when, int | float) and 0 <= when < LAST_MOMENT else 0.0
    author = Author(who=_text(row, "who"), commit=_text(row, "commit"), tool=_text(row, "tool"))
    argv = _texts(launch.get("argv"))
    if len(argv) < 3:
        raise ValueError("a revision has a command line")
    entries = launch.get("env")
    kept = Kept(
        argv=argv,
        entries=tuple(map(_entry, entries)) if isinstance(entries, list) else (),
        runtime=_text(launch, "runtime"),
        credential=launch.get("credential") is True,
        vllm_version=_text(launch, "vllm_version"),
        decided=_numbers(launch.get("decided")),
        placed=_placed(launch.get("placed")),
    )
    return Revision(
        number=number,
        when=moment,
        author=author,
        good=row.get("good") is True,
        kind=_text(row, "kind"),
        note=_text(row, "note"),
        kept=kept,
    )


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise ValueError("an object is missing")  # noqa: TRY004 - the caller reads ValueError
    return value


def _text(row: Mapping[str, JsonValue], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _texts(value: JsonValue) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) and _is_sound(word) for word in value):
        raise ValueError("a list of texts is missing")
    return tuple(map(str, value))


def _is_sound(text: str) -> bool:
    """Whether a program can be given this text: no NUL, and no half of a letter."""
    return "\0" not in text and text.encode("utf-8", "replace").decode("utf-8") == text


def _entry(item: JsonValue) -> Entry:
    """A variable: text, or kept; a name of a secret, which a step may have, is refused here."""
    match item:
        case [str(name), str(value)] if VARIABLE.fullmatch(name) and _is_sound(value):
            return name, value
        case [str(name), {"keep": True}] if VARIABLE.fullmatch(name):
            return name, KEEP
        case _:
            raise ValueError("a variable is [name, value] or [name, {keep: true}]")


def _numbers(value: JsonValue) -> dict[str, JsonValue]:
    """Numbers by name; nothing else was ever chosen."""
    found = value if isinstance(value, dict) else {}
    return {name: each for name, each in found.items() if type(each) in {int, float}}


def _placed(value: JsonValue) -> Placed | None:
    if value is None:
        return None
    row = _object(value)
    devices, requested = _texts(row.get("devices")), row.get("requested")
    sizes = tuple(size for size in requested if type(size) is int) if isinstance(requested, list) else ()
    if sizes and len(sizes) != len(devices):
        raise ValueError("GPUs and their memory do not match")
    return Placed(
        devices=devices, visible=_texts(row.get("visible")), settings=_numbers(row.get("settings")), requested=sizes
    )

"""Token sources: each says one thing, each name means one thing, and every name that is used is defined. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from vmreconcile.core.checks.source import Finding, Variable
from vmreconcile.core.durations import seconds
from vmreconcile.core.token_sources import KINDS, VARIABLE, definitions
from vmreconcile.errors import Diagnostic
from vmreconcile.model.document import Path
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.showing import may_be_token, shown
from vmreconcile.model.tokens import SourceKind
from vmreconcile.model.values import JsonValue, Setting

NAME = re.compile(r"[A-Za-z0-9_.-]+")


def check_sources(value: Mapping[str, JsonValue], path: Path) -> Iterator[Finding]:
    """What the schema cannot say of one definition: one key that reads, a duration, a command's program."""
    for name, content in value.items():
        if not isinstance(content, dict):
            continue
        at = (*path, name)
        given = [kind for kind in KINDS if kind in content]
        if len(given) != 1:
            said = f"says {' and '.join(given)}" if given else "says none of them"
            yield Finding(
                path=at,
                code="token-source-unclear",
                summary=f"The token source {shown(name)} {said}.",
                why=f"A source has one of {', '.join(KINDS)}.",
                remedy="For example: {file: ~/.secrets/hf}, or {command: [pass, show, huggingface]}",
            )
        elif "timeout" in content and given != [SourceKind.COMMAND.value]:
            yield Finding(
                path=(*at, "timeout"),
                code="token-source-unclear",
                summary=f"The token source {shown(name)} has a timeout and no command.",
                remedy="Leave timeout out.",
            )
        elif "timeout" in content and seconds(content["timeout"]) is None:
            yield Finding(
                path=(*at, "timeout"),
                code="wrong-value",
                summary=f"timeout cannot be {shown(content['timeout'])}.",
                why="It is a number of seconds, or text such as 30s or 2m.",
            )


def check_conflicts(inventory: Inventory) -> Iterator[Diagnostic]:
    """One name with two meanings."""
    first: dict[str, tuple[JsonValue, Setting]] = {}
    for setting in definitions(inventory):
        for name, content in setting.value.items() if isinstance(setting.value, dict) else ():
            known, where = first.setdefault(name, (content, setting))
            if known != content:
                yield Finding(
                    path=(VARIABLE, name),
                    code="token-source-twice",
                    summary=f"The token source {shown(name)} is defined twice, differently.",
                    why=f"The other definition is at {where.origin}; a name means the same token on every host.",
                    remedy="Give one of them another name.",
                ).located(Variable(setting=setting))


def check_name(source: JsonValue, path: Path, names: frozenset[str]) -> Iterator[Finding]:
    """Whether a token source of that name exists; null is none, and the schema says what is no name."""
    if not isinstance(source, str) or not NAME.fullmatch(source) or source in names:
        return
    near = difflib.get_close_matches(source, sorted(names), n=1, cutoff=0.6)
    called = "of the name that is given" if may_be_token(source) else shown(source)
    yield Finding(
        path=path,
        code="unknown-token-source",
        summary=f"There is no token source {called}.",
        why=f"The sources are {', '.join(sorted(names))}; {VARIABLE} in the inventory defines more.",
        remedy="Define it, or write default, or null for a server without a token.",
        suggestion=near[0] if near else "",
    )

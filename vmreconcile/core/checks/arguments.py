"""vLLM's arguments in `args` and `vllm_args`: known, not the tool's own, given once, of the right type. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping

from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.model.document import Path
from vmreconcile.model.showing import listed, masked, printable, shown
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import OBJECT_KINDS, Argument
from vmreconcile.vllm.catalogue import TOOL_OWNED, Catalogue, check_value
from vmreconcile.vllm.checks import check_key

AUTO = "auto"
DECIDED = frozenset({"gpu_memory_utilization"})
"""Arguments that `auto` leaves to the tool."""

_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")


def check_arguments(args: Mapping[str, JsonValue], path: Path, catalogue: Catalogue) -> Iterator[Finding]:
    """Everything wrong with a map of arguments that stands at `path`."""
    seen: dict[str, str] = {}
    for name, value in args.items():
        at = (*path, name)
        head, dot, rest = name.partition(".")
        owned = TOOL_OWNED.get(_snake(head))
        known = catalogue.canonical(name)
        if owned is None and known is not None:
            owned = TOOL_OWNED.get(known)
        if owned is not None:
            yield _owned(at, name, owned)
            continue
        if known is None:
            yield _unknown(at, name, catalogue)
            continue
        full = known + dot + rest
        if full in seen:
            yield _twice(at, name, seen[full])
        seen[full] = name
        yield from _check_one(at, value, catalogue.arguments[known], rest if dot else None)


def _check_one(at: Path, value: JsonValue, argument: Argument, rest: str | None) -> Iterator[Finding]:
    if rest is not None:
        key, *deeper = rest.split(".")
        problem = check_key(argument, key) if key and all(deeper) else f"{argument.name}: a part of the name is empty"
        if problem:
            yield _wrong(at, problem, argument, at_key=True)
        return
    if value is None or (value == AUTO and argument.name in DECIDED):
        return
    problem = check_value(argument, value) or _out_of_range(argument.name, value)
    if problem:
        yield _wrong(at, problem, argument)


def _out_of_range(name: str, value: JsonValue) -> str | None:
    """The few ranges that are sure whatever the model (vLLM checks them only when it starts, and exits 1)."""
    match name, value:
        case "gpu_memory_utilization", int() | float() if not 0 < value <= 1:
            return f"gpu_memory_utilization is above 0 and at most 1, not {value}"
        case (("tensor_parallel_size" | "pipeline_parallel_size" | "data_parallel_size"), int()) if value < 1:
            return f"{name} is 1 or more, not {value}"
        case "host", str() if not _is_address(value):
            return f"host is an address or a host name without a port, not {shown(value)}"
        case _:
            return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return _HOST_NAME.fullmatch(text) is not None
    return True


def _owned(at: Path, name: str, why: str) -> Finding:
    return Finding(
        path=at,
        code="argument-owned",
        summary=f"{dotted(at)} is not set here.",
        why=_sentence(why[:1].upper() + why[1:]),
        remedy=f"Remove {printable(name)}.",
        at_key=True,
    )


def _unknown(at: Path, name: str, catalogue: Catalogue) -> Finding:
    head, dot, _ = name.partition(".")
    whole = catalogue.canonical(head) if dot else None
    if whole is not None:
        return Finding(
            path=at,
            code="argument-has-no-parts",
            summary=f"{dotted(at)}: {whole} holds no mapping, so nothing in it can be set.",
            remedy=f"Set {whole} as a whole.",
            at_key=True,
        )
    near = catalogue.suggest(name)
    return Finding(
        path=at,
        code="unknown-argument",
        summary=f"vLLM {catalogue.version} has no argument {shown(name)}.",
        why=f"{dotted(at)} would end the server's start with exit status 2.",
        remedy="Correct or remove it; vllm serve --help=all lists the arguments.",
        suggestion=listed(near, "or"),
        at_key=True,
    )


def _twice(at: Path, name: str, first: str) -> Finding:
    return Finding(
        path=at,
        code="argument-twice",
        summary=f"{shown(name)} and {shown(first)} are the same argument.",
        why="Only one of the two would count.",
        remedy="Remove one of them.",
        at_key=True,
    )


def _wrong(at: Path, problem: str, argument: Argument, *, at_key: bool = False) -> Finding:
    problem, _, meant = problem.partition("; did you mean ")
    return Finding(
        path=at,
        code="argument-value",
        summary=_sentence(masked(problem)),
        suggestion=printable(meant.rstrip("?")),
        why=f"vLLM's own words: {argument.help.rstrip('.')}." if argument.help else "",
        remedy=f"Correct {dotted(at)}, or leave it out for vLLM's default"
        + ("." if argument.kind in OBJECT_KINDS or argument.default is None else f" ({shown(argument.default)})."),
        at_key=at_key,
    )


def _sentence(text: str) -> str:
    """Our own one-line texts with a point; what could move the cursor is escaped."""
    line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return line if line.endswith((".", "?")) else line + "."


def _snake(name: str) -> str:
    return name.lstrip("-").replace("-", "_")

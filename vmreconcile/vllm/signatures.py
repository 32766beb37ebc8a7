"""What a vLLM log says of why a start failed.

The signatures are data (`signatures.json`), taken from the sources of vLLM 0.10-0.32 and transformers and checked
against real runs. Reads lines, fetches none, decides nothing about what to do with a failed server.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vmreconcile.model.showing import masked
from vmreconcile.vllm.log import ACCESS, ERROR, after_ready, bare, is_logged, latest_start

LONGEST = 400
UNKNOWN = "died"
"""The class of an end that no signature knows."""

KILLED = -9
"""The exit code of what was ended by SIGKILL, which leaves no line in a log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a start failed: a class for scripts, a summary, the log line that shows it (from 1), and the way out.

    `evidence` is that line without vLLM's prefix, shortened, with anything like a Hub token taken out. `remedy` may
    name `{server}` and `{host}`, for whoever knows them; `settings` are those that it is about (see `Signature`).
    """

    kind: str
    summary: str
    evidence: str
    line: int
    remedy: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One class of failure: how it shows, with which exit codes, and what to say about it.

    The lowest `rank` counts: higher ones are often only a consequence of, or a part of, something better known.
    `before` is how many lines ahead of the matching one belong to the evidence. `settings` name what a person would
    change: `args.NAME`, `env.NAME`, a key of a model's file, a variable of the host (`vllm_executable`), or `args.*`:
    the arguments that the evidence names.
    """

    kind: str
    patterns: tuple[re.Pattern[str], ...]
    summary: str
    remedy: str
    exit_codes: frozenset[int]
    rank: int
    before: int
    settings: tuple[str, ...]


def explain(lines: Sequence[str], exit_code: int | None = None) -> Explanation | None:
    """Find a known root cause in a log, oldest line first.

    The latest start counts, in it the earliest cause of the lowest rank; once it was ready, only what came later, and
    no signature of a higher rank, for requests leave such lines too. Where the exit code is known, signatures that
    end with just this code come first.
    """
    start = latest_start(lines)
    ready = after_ready(lines, start)
    if ready is not None:
        found = [match for match in _matches(lines, ready) if not match[1].rank]
    else:
        found = list(_matches(lines, start)) or list(_matches(lines, 0))
    if exit_code == 2:  # arguments are refused before the line that begins a start
        found = [match for match in _matches(lines, 0) if 2 in match[1].exit_codes][-1:] or found
    if not found:
        return None
    number, signature, match = min(found, key=lambda one: (one[1].rank, one[0]))
    said = _Said(match.groupdict())
    return Explanation(
        kind=signature.kind,
        summary=signature.summary.format_map(said),
        evidence=_evidence(lines[max(number - signature.before, 0) : number + 1]),
        line=number + 1,
        remedy=signature.remedy.format_map(said),
        settings=signature.settings,
    )


def cause(lines: Sequence[str], exit_code: int | None = None, *, ended: bool = False) -> Explanation | None:
    """The known cause, else `died` with the error that stands in the log.

    Where the server is known to have `ended`, the last line that says something is better than nothing.
    """
    found = explain(lines, exit_code) or _killed(lines, exit_code)
    if found is not None:
        return found
    number = _root_error(lines)
    if number is None and ended:
        number = _last_said(lines)
    if number is None:
        return None
    return Explanation(
        kind=UNKNOWN,
        summary="it ended, and its log shows no known cause",
        evidence=_evidence(_whole(lines, number)),
        line=number + 1,
        remedy="vmreconcile logs {server} shows what led to it",
        settings=("model",),
    )


def _killed(lines: Sequence[str], exit_code: int | None) -> Explanation | None:
    """Why the root itself was killed, None where it was not; the evidence is where it had come to."""
    if exit_code != KILLED:
        return None
    signature = next(each for each in signatures() if KILLED in each.exit_codes)
    number = _last_said(lines)
    return Explanation(
        kind=signature.kind,
        summary=signature.summary,
        evidence="" if number is None else _evidence(lines[number : number + 1]),
        line=0 if number is None else number + 1,
        remedy=signature.remedy,
        settings=signature.settings,
    )


def _last_said(lines: Sequence[str]) -> int | None:
    """The index of the last line that says something."""
    return next((at for at in range(len(lines) - 1, -1, -1) if _ends(lines[at])), None)


def _root_error(lines: Sequence[str]) -> int | None:
    """The index of the exception that ended the latest start, None where nothing ended it.

    vLLM's processes hand on their end with generic words: the last exception before them is the root's. Without such
    words it is the last exception that no logger printed, for Python prints that one as it ends.
    """
    start = latest_start(lines)
    start = after_ready(lines, start) or start
    errors = [number for number in range(start, len(lines)) if ERROR.match(bare(lines[number]))]
    own = [number for number in errors if not _is_generic(bare(lines[number]))]
    generic = next((number for number in errors if number not in own), None)
    if generic is None:
        return next((number for number in reversed(own) if not is_logged(lines[number])), None)
    return next((number for number in reversed(own) if number < generic), own[0] if own else None)


def _whole(lines: Sequence[str], number: int) -> Sequence[str]:
    """An exception's line; with the next that says something, where its text begins on a line of its own."""
    if not bare(lines[number]).rstrip().endswith(":"):
        return lines[number : number + 1]
    following = next((at for at in range(number + 1, len(lines)) if _tells(lines[at])), None)
    return [lines[number].rstrip().removesuffix(":"), *([] if following is None else [lines[following]])]


def _tells(line: str) -> bool:
    """Whether a line may be shown as the last one that says something."""
    text = bare(line).strip()
    return bool(text) and not ACCESS.search(text) and not _is_generic(text)


def _ends(line: str) -> bool:
    """Whether a line may be shown as the last one of a log, where it is no part of a traceback."""
    return _tells(line) and not bare(line).startswith(("  ", "Traceback "))


def _is_generic(text: str) -> bool:
    """Whether vLLM only says that something ended."""
    return any(pattern.search(text) for pattern in generic_lines())


@functools.cache
def signatures() -> tuple[Signature, ...]:
    """Every known signature."""
    return tuple(
        Signature(
            kind=row["kind"],
            patterns=tuple(re.compile(pattern) for pattern in row["patterns"]),
            summary=row["summary"],
            remedy=row["remedy"],
            exit_codes=frozenset(row.get("exit_codes", [1])),
            rank=row.get("rank", 0),
            before=row.get("before", 0),
            settings=tuple(row.get("settings", ())),
        )
        for row in _data()["signatures"]
    )


@functools.cache
def generic_lines() -> tuple[re.Pattern[str], ...]:
    """What vLLM says of any end; never given as the cause."""
    return tuple(re.compile(pattern) for pattern in _data()["generic"])


@functools.cache
def _data() -> dict[str, Any]:
    """Read the catalogue, which is our own file."""
    text = (resources.files("vmreconcile.vllm") / "signatures.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _matches(lines: Sequence[str], start: int) -> Iterator[tuple[int, Signature, re.Match[str]]]:
    """Every line from `start` that a signature knows."""
    for number in range(start, len(lines)):
        line = bare(lines[number])
        for signature in signatures():
            for pattern in signature.patterns:
                match = pattern.search(line)
                if match:
                    yield number, signature, match
                    break


def _evidence(lines: Sequence[str]) -> str:
    """Log lines as they may be shown."""
    text = masked(": ".join(bare(line).strip() for line in lines))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


class _Said(dict[str, str | None]):
    """The numbers of a log line by name; one that the line leaves out shows as '?'."""

    def __init__(self, groups: Mapping[str, str | None]) -> None:
        """Keep what was said."""
        places = {"server": "{server}", "host": "{host}"}  # filled in by whoever knows them
        super().__init__({**places, **{name: value or "?" for name, value in groups.items()}})

    def __missing__(self, name: str) -> str:
        """A name that another form of the signature has."""
        return "?"

"""What a vLLM log says: why a start failed, and what vLLM measured while starting.

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

from vmreconcile.model.showing import masked

PREFIX = re.compile(r"^(?:\([^()]* pid=\d+\)\s?)?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?")
"""What vLLM puts before a line: '(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] '."""

BEGIN = re.compile(r"non-default args: |vLLM API server version ")
"""A line that each start prints, and early; a log may hold several starts."""

READY = "Application startup complete."
LOADING = re.compile(r"Model loading took ([\d.]+) GiB(?: memory)? and ([\d.]+) seconds")
KV_MEMORY = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
KV_TOKENS = re.compile(r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens")
GRAPHS = re.compile(r"Graph capturing finished in ([\d.]+) secs, took (-?[\d.]+) GiB")
LONGEST = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a start failed: a class for scripts, a summary, the log line that shows it (from 1), and the way out.

    `evidence` is that line without vLLM's prefix, shortened, with anything like a Hub token taken out.
    """

    kind: str
    summary: str
    evidence: str
    line: int
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One class of failure: how it shows, with which exit codes, and what to say about it.

    `weak` ones are often only a consequence of, or a part of, something better known; `before` is how many lines
    ahead of the matching one belong to the evidence.
    """

    kind: str
    patterns: tuple[re.Pattern[str], ...]
    summary: str
    remedy: str
    exit_codes: frozenset[int]
    weak: bool
    before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the latest start in a log measured; None where it says nothing (yet). GiB are those of one GPU.

    With several workers: the largest weights, the smallest KV memory.
    """

    weights_gib: float | None = None
    load_seconds: float | None = None
    kv_cache_gib: float | None = None
    kv_cache_tokens: int | None = None
    graph_gib: float | None = None
    graph_seconds: float | None = None
    ready: bool = False


def explain(lines: Sequence[str], exit_code: int | None = None) -> Explanation | None:
    """Find the root cause in a log, oldest line first.

    The latest start counts, in it the earliest cause, weak signatures only where there is no other. Where the exit
    code is known, signatures that end with just this code come first.
    """
    start = _latest_start(lines)
    found = list(_matches(lines, start)) or list(_matches(lines, 0))
    if exit_code == 2:  # arguments are refused before the line that begins a start
        found = [match for match in _matches(lines, 0) if 2 in match[1].exit_codes][-1:] or found
    if not found:
        return None
    number, signature, match = min(found, key=lambda one: (one[1].weak, one[0]))
    said = _Said(match.groupdict())
    return Explanation(
        kind=signature.kind,
        summary=signature.summary.format_map(said),
        evidence=_evidence(lines[max(number - signature.before, 0) : number + 1]),
        line=number + 1,
        remedy=signature.remedy.format_map(said),
    )


def measured(lines: Sequence[str]) -> Measured:
    """Read back what the latest start in a log measured."""
    text = [PREFIX.sub("", line) for line in lines[_latest_start(lines) :]]
    loading = list(_found(LOADING, text))
    memory = list(_found(KV_MEMORY, text))
    tokens = list(_found(KV_TOKENS, text))
    graphs = list(_found(GRAPHS, text))
    return Measured(
        weights_gib=max((float(match[1]) for match in loading), default=None),
        load_seconds=max((float(match[2]) for match in loading), default=None),
        kv_cache_gib=min((float(match[1]) for match in memory), default=None),
        kv_cache_tokens=min((int(match[1].replace(",", "")) for match in tokens), default=None),
        graph_gib=max((float(match[2]) for match in graphs), default=None),
        graph_seconds=max((float(match[1]) for match in graphs), default=None),
        ready=any(READY in line for line in text),
    )


@functools.cache
def signatures() -> tuple[Signature, ...]:
    """Every known signature."""
    text = (resources.files("vmreconcile.vllm") / "signatures.json").read_text(encoding="utf-8")
    return tuple(
        Signature(
            kind=row["kind"],
            patterns=tuple(re.compile(pattern) for pattern in row["patterns"]),
            summary=row["summary"],
            remedy=row["remedy"],
            exit_codes=frozenset(row.get("exit_codes", [1])),
            weak=row.get("weak", False),
            before=row.get("before", 0),
        )
        for row in json.loads(text)
    )


def _latest_start(lines: Sequence[str]) -> int:
    """The index of the line that begins the latest start; 0 where none does."""
    return next((number for number in range(len(lines) - 1, -1, -1) if BEGIN.search(lines[number])), 0)


def _matches(lines: Sequence[str], start: int) -> Iterator[tuple[int, Signature, re.Match[str]]]:
    """Every line from `start` that a signature knows."""
    for number in range(start, len(lines)):
        line = PREFIX.sub("", lines[number])
        for signature in signatures():
            for pattern in signature.patterns:
                match = pattern.search(line)
                if match:
                    yield number, signature, match
                    break


def _found(pattern: re.Pattern[str], lines: Sequence[str]) -> Iterator[re.Match[str]]:
    """The matches of one pattern."""
    return (match for line in lines if (match := pattern.search(line)))


def _evidence(lines: Sequence[str]) -> str:
    """Log lines as they may be shown."""
    text = masked(": ".join(PREFIX.sub("", line).strip() for line in lines))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


class _Said(dict[str, str | None]):
    """The numbers of a log line by name; one that the line leaves out shows as '?'."""

    def __init__(self, groups: Mapping[str, str | None]) -> None:
        """Keep what was said."""
        super().__init__({name: value or "?" for name, value in groups.items()})

    def __missing__(self, name: str) -> str:
        """A name that another form of the signature has."""
        return "?"

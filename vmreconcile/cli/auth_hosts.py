"""auth status --on-hosts, auth check --on-hosts: the same questions, asked of the hosts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vmreconcile.cli.codes import worst
from vmreconcile.cli.output import inputs_of, note, print_json, reach_of
from vmreconcile.cli.render_status import age_text
from vmreconcile.cli.terminal import Style, advice, printable, style_for
from vmreconcile.core.access import remedy, told
from vmreconcile.core.reports import FORMAT_VERSION, Json, unreachable_json
from vmreconcile.flows.auth_hosts import CheckedOnHost, TokenOnHost, check_on_hosts, tokens_on_hosts
from vmreconcile.flows.prepare import prepared
from vmreconcile.model.observed import Unreachable

if TYPE_CHECKING:
    import argparse

HEAD = ("SERVER", "SOURCE", "ENV FILE", "MODE", "AGE", "FINGERPRINT", "PROCESS")
WORDS = {True: "current", False: "another", None: "unknown"}


def status_on_hosts(arguments: argparse.Namespace) -> int:
    """Each server's env file and process; 1 where one is not as it is to be."""
    with prepared(inputs_of(arguments), reach_of(arguments)) as ready:
        found, lost = tokens_on_hosts(ready)
    if arguments.json:
        _print_json("servers", map(token_json, found), lost)
    else:
        print(tokens_text(found, style_for(sys.stdout, no_color=arguments.no_color)))
        _say_lost(lost)
    return worst([0 if all(each.good for each in found) else 1, 3 if lost else 0])


def token_json(token: TokenOnHost) -> Json:
    """One server as a script reads it."""
    file = token.file
    return {
        "server": str(token.server),
        "source": token.source,
        "env_file": {
            "path": file.path,
            "mode": f"{file.mode:04o}",
            "uid": file.uid,
            "age_seconds": round(token.age),
            "fingerprint": token.fingerprint or None,
            "current": token.right,
        }
        if file
        else None,
        "process": {"pid": token.pid, "current": token.current} if token.pid else None,
        "shadows": [
            {"variable": place.variable, "path": place.path, "line": place.line, "wins": place.wins}
            for place in token.places
        ],
    }


def tokens_text(found: Iterable[TokenOnHost], style: Style) -> str:
    """A table, and below it where other tokens are named."""
    rows = [(token, _row(token)) for token in found]
    widths = [max(len(row[at]) for row in [HEAD, *(row for _, row in rows)]) for at in range(len(HEAD))]
    lines = [style.paint(_line(HEAD, widths), "bold")]
    for token, row in rows:
        line = _line(row, widths)
        lines.append(line if token.good else style.paint(line, "red"))
        lines += [
            f"  {printable(str(place))}{', wins over the env file' if place.wins else ', loses'}"
            for place in token.places
        ]
    return "\n".join(lines)


def _row(token: TokenOnHost) -> tuple[str, ...]:
    file = token.file
    process = "not running" if token.pid is None else _word(token, token.current)
    if file is None:
        return (str(token.server), token.source or "none", "not there", "", "", "", process)
    cells = (
        _word(token, token.right),
        f"{file.mode:04o}",
        age_text(token.age),
        printable(token.fingerprint) or "none",
        process,
    )
    return (str(token.server), token.source or "none", *cells)


def _word(token: TokenOnHost, same: bool | None) -> str:  # noqa: FBT001 - a value that is shown
    if token.source is None:
        return "no token" if same else "a token"
    return WORDS[same]


def _line(cells: Iterable[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def check_from_hosts(arguments: argparse.Namespace) -> int:
    """What the Hub says to the hosts themselves; 1 where one could not load a model."""
    with prepared(inputs_of(arguments), reach_of(arguments)) as ready:
        found, lost = check_on_hosts(ready)
    if arguments.json:
        _print_json("checks", map(check_json, found), lost)
    else:
        style = style_for(sys.stdout, no_color=arguments.no_color)
        for each in found:
            print(check_text(each, style))
        if not found and not lost:
            print("nothing to ask")
        _say_lost(lost)
    bad = any(each.verdict.failed for each in found)
    return worst([1 if bad else 0, 3 if lost else 0])


def check_json(check: CheckedOnHost) -> Json:
    """One server as a script reads it."""
    question, verdict = check.question, check.verdict
    return {
        "server": str(check.server),
        "host": check.server.host,
        "model": question.model,
        "revision": question.revision or None,
        "endpoint": question.address,
        "token": check.whose,
        "access": verdict.access.value,
        "detail": verdict.detail or None,
        "remedy": remedy(question, verdict) or None,
    }


def check_text(check: CheckedOnHost, style: Style) -> str:
    """One server as a person reads it."""
    question, verdict = check.question, check.verdict
    mark = style.paint(verdict.access.value, "red" if verdict.failed else "green")
    lines = [f"{mark}  {check.server}: {printable(told(question, verdict))}"]
    if verdict.failed:
        lines.append(f"  mend  on {check.server.host}: {advice(remedy(question, verdict))}")
    return "\n".join(lines)


def _print_json(name: str, rows: Iterable[Json], lost: Iterable[Unreachable]) -> None:
    print_json({"format_version": FORMAT_VERSION, name: [*rows], "unreachable": [*map(unreachable_json, lost)]})


def _say_lost(lost: Iterable[Unreachable]) -> None:
    for host in lost:
        note(f"unreachable: {host.host}: {printable(host.reason)}")

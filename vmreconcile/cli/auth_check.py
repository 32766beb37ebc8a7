"""auth check: what the Hub says of every model, with the token that its servers get."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmreconcile.cli.output import inputs_of, note, print_json, reach_of
from vmreconcile.cli.terminal import Style, advice, printable, style_for
from vmreconcile.core.access import remedy, told
from vmreconcile.core.reports import FORMAT_VERSION
from vmreconcile.flows.auth import Checked, another_hub, check_access, counted, refused
from vmreconcile.model.access import Access
from vmreconcile.model.values import JsonValue

if TYPE_CHECKING:
    import argparse


def check(arguments: argparse.Namespace) -> int:
    """Ask and show; 1 where a server could not load its model, or where the Hub cannot be asked and should be."""
    if arguments.on_hosts:
        from vmreconcile.cli.auth_hosts import check_from_hosts  # noqa: PLC0415 - kept out of a quick start

        return check_from_hosts(arguments)
    inputs, reach = inputs_of(arguments), reach_of(arguments)
    checks = check_access(inputs, reach, fresh=arguments.no_cache)
    if arguments.json:
        print_json({"format_version": FORMAT_VERSION, "checks": [check_json(each) for each in checks]})
    else:
        style = style_for(sys.stdout, no_color=arguments.no_color)
        for each in checks:
            print(check_text(each, style))
        found = counted(checks)
        print(", ".join(f"{number} {access}" for access, number in sorted(found.items())) or "nothing to ask")
    other = another_hub(inputs, reach)
    if other:
        note(f"note: {other}")
    return 1 if refused(checks) else 0


def check_json(check: Checked) -> dict[str, JsonValue]:
    """One question as a script reads it."""
    question, verdict = check.question, check.verdict
    return {
        "model": question.model,
        "revision": question.revision or None,
        "endpoint": question.address,
        "source": question.source or None,
        "access": verdict.access.value,
        "detail": verdict.detail or None,
        "remedy": remedy(question, verdict) or None,
        "servers": [str(server) for server in check.servers],
    }


def check_text(check: Checked, style: Style) -> str:
    """One question as a person reads it."""
    question, verdict = check.question, check.verdict
    mark = style.paint(verdict.access.value, "red" if verdict.failed else "green")
    lines = [f"{mark}  {printable(told(question, verdict))}"]
    if verdict.failed:
        if verdict.detail and verdict.access is not Access.HUB_UNREACHABLE:
            lines.append(f"  the Hub  {printable(verdict.detail)}")
        lines.append(f"  mend     {advice(remedy(question, verdict))}")
    lines.append(f"  servers  {', '.join(map(str, check.servers)) or 'none: its hosts: names no host'}")
    return "\n".join(lines)

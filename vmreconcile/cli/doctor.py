"""doctor: everything that is usually wrong, looked at; one line a check, the remedy under a failing one."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

from vmreconcile.cli.codes import worst
from vmreconcile.cli.output import inputs_of, print_json, reach_of
from vmreconcile.cli.terminal import Style, advice, printable, style_for
from vmreconcile.core.checkup.report import document
from vmreconcile.core.reports import unreachable_json
from vmreconcile.flows.doctor import asked_about, examine
from vmreconcile.model.checkup import Check, Health
from vmreconcile.model.tokens import Need

if TYPE_CHECKING:
    import argparse

COLOR = {Health.OK: "green", Health.WARN: "yellow", Health.FAIL: "red", Health.SKIPPED: "magenta"}


def doctor(arguments: argparse.Namespace) -> int:
    """Look, and say; 1 where a check fails, 3 where only hosts were out of reach."""
    inputs = inputs_of(arguments)
    asked = asked_about(arguments.names, inputs)
    checks, lost = examine(inputs, reach_of(arguments, asked.hosts, Need.COMPARED), asked)
    if arguments.json:
        print_json(document(checks, map(unreachable_json, lost)))
    else:
        print(doctor_text(checks, style_for(sys.stdout, no_color=arguments.no_color), quiet=arguments.quiet))
    return worst([1 if any(check.status is Health.FAIL for check in checks) else 0, 3 if lost else 0])


def doctor_text(checks: list[Check], style: Style, *, quiet: bool) -> str:
    """Host by host, the controller first; `quiet` leaves out what is well."""
    lines: list[str] = []
    before = None
    for check in checks:
        if quiet and check.status is Health.OK:
            continue
        if check.host != before:
            lines.append(style.paint(check.host or "here", "bold"))
            before = check.host
        what = f"{check.check}: {check.server}: " if check.server else f"{check.check}: "
        mark = style.paint(f"{check.status.value:<7}", COLOR[check.status])
        lines.append(f"  {mark}  {what}{printable(check.summary)}")
        if check.remedy and check.status is not Health.OK:
            lines.append(f"           mend  {advice(check.remedy)}")
    counts = Counter(check.status for check in checks)
    return "\n".join([*lines, ", ".join(f"{counts[status]} {status.value}" for status in Health if counts[status])])

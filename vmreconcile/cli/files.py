"""Commands that read or write files only: init, validate, inventory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmreconcile.cli.output import note, print_json, sources_of
from vmreconcile.cli.render_errors import counts_text, diagnostics_text
from vmreconcile.cli.terminal import as_called, style_for
from vmreconcile.core.patterns import select
from vmreconcile.core.reports import FORMAT_VERSION, diagnostics_json
from vmreconcile.effects.inventory import host_json, read_inventory, to_json
from vmreconcile.effects.retry import read_retry
from vmreconcile.errors import Severity, UsageError
from vmreconcile.flows.inputs import check

if TYPE_CHECKING:
    import argparse

INVALID_EXIT = 5


def init(arguments: argparse.Namespace) -> int:
    """Write the example; what is there already is left alone."""
    from vmreconcile.effects.examples import write_examples  # noqa: PLC0415 - only init needs it

    written, kept = write_examples(arguments.dir)
    if arguments.json:
        print_json(
            {
                "format_version": FORMAT_VERSION,
                "written": [str(path) for path in written],
                "kept": [str(path) for path in kept],
            }
        )
        return 0
    for path in written:
        print(f"wrote {path}")
    for path in kept:
        print(f"kept  {path} (it was there already)")
    where = "" if arguments.dir == Path() else f"cd {arguments.dir}, "
    print(as_called(f"Next: {where}edit them, then vmreconcile validate"))
    return 0


def validate(arguments: argparse.Namespace) -> int:
    """Check every file; exit 5 where there is an error."""
    checked = check(sources_of(arguments))
    problems = checked.problems
    failed = any(problem.severity is Severity.ERROR for problem in problems)
    if arguments.json:
        print_json(diagnostics_json(problems))
    elif problems:
        print(diagnostics_text(problems, style_for(sys.stdout, no_color=arguments.no_color)))
        print(counts_text(problems))
    else:
        print(f"valid: {_counted(checked.models, 'model')}, {_counted(checked.hosts, 'host')}")
    return INVALID_EXIT if failed else 0


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def inventory(arguments: argparse.Namespace) -> int:
    """Show what was read."""
    read = read_inventory(tuple(arguments.inventory or ["inventory"]), environ=dict(os.environ))
    if arguments.list:
        print_json(to_json(read))
        return 0
    if arguments.host is not None:
        if arguments.host not in read.hosts:
            raise UsageError(f"no host {arguments.host!r} in the inventory", remedy="vmreconcile inventory --list")
        print_json(host_json(read, arguments.host))
        return 0
    hosts = select(arguments.hosts, read, retry=read_retry)
    if arguments.json:
        print_json({"format_version": FORMAT_VERSION, "hosts": list(hosts)})
        return 0
    for host in hosts:
        print(host)
    if not hosts:
        note(f"the pattern {arguments.hosts!r} names no host")
    return 0

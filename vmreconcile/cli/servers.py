"""Commands that look at servers: status, show, logs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from vmreconcile.cli.codes import plan_code
from vmreconcile.cli.output import inputs_of, note, print_json, reach_of, say_notes
from vmreconcile.cli.render_status import explained_lines, show_text, status_text
from vmreconcile.cli.terminal import printable, style_for
from vmreconcile.core.reports import FORMAT_VERSION, status_json
from vmreconcile.errors import UnreachableError, UsageError
from vmreconcile.flows.explaining import explanation_of_log, explanations
from vmreconcile.flows.inputs import Inputs
from vmreconcile.flows.logs import follow_log
from vmreconcile.flows.prepare import prepared
from vmreconcile.flows.reconcile import observe_and_plan
from vmreconcile.flows.show import show_server
from vmreconcile.model.names import ServerId
from vmreconcile.model.tokens import Need

if TYPE_CHECKING:
    import argparse

WATCH_EVERY_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


def status(arguments: argparse.Namespace) -> int:
    """Every server, once or until Ctrl-C.

    Raises:
        UsageError: --watch with --json, which prints one document.
    """
    if arguments.watch and arguments.json:
        raise UsageError("--watch and --json do not go together", remedy="call status --json as often as you need it")
    inputs = inputs_of(arguments)
    with prepared(inputs, reach_of(arguments, need=Need.COMPARED)) as ready:
        say_notes(ready)
        while True:
            view, plan = observe_and_plan(ready, once=not arguments.watch)
            if arguments.json:
                print_json(status_json(view, plan))
            else:
                style = style_for(sys.stdout, no_color=arguments.no_color)
                why = explanations(ready, view, plan)
                head = CLEAR if arguments.watch and sys.stdout.isatty() else ""
                print("\n".join([head + status_text(view, plan, style), *explained_lines(why, style)]), flush=True)
            if not arguments.watch:
                return plan_code(plan, detailed=False)
            time.sleep(WATCH_EVERY_S)


def show(arguments: argparse.Namespace) -> int:
    """One server, wanted beside observed."""
    inputs = inputs_of(arguments)
    server = server_named(arguments.server, inputs)
    with prepared(inputs, reach_of(arguments, (server.host,), Need.COMPARED)) as ready:
        say_notes(ready)
        shown = show_server(server, ready)
    if arguments.json:
        print_json(shown.document)
    else:
        print(show_text(shown, style_for(sys.stdout, no_color=arguments.no_color)))
    return 3 if shown.unreachable else 0


def logs(arguments: argparse.Namespace) -> int:
    """The log of one server."""
    inputs = inputs_of(arguments)
    server = server_named(arguments.server, inputs)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if not arguments.json:
            _print_line(line)

    with prepared(inputs, reach_of(arguments, (server.host,), Need.NONE)) as ready:
        try:
            follow_log(server, ready, lines=arguments.lines, follow=arguments.follow, tell=tell)
        except UnreachableError as error:
            raise UnreachableError(f"{server.host}: {error.reason}", remedy=error.remedy) from error
        found = None if arguments.json or arguments.follow else explanation_of_log(server, ready)
    if arguments.json:
        print_json({"format_version": FORMAT_VERSION, "server": str(server), "lines": list(lines)})
    elif found is not None:
        style = style_for(sys.stderr, no_color=arguments.no_color)
        note("\n".join(explained_lines({server: found}, style)))
    return 0


def _print_line(line: str) -> None:
    print(printable(line), flush=True)


def server_named(text: str, inputs: Inputs) -> ServerId:
    """The server that `NAME@HOST` names; its host must be in the inventory.

    Raises:
        UsageError: where the text or the host is wrong.
    """
    try:
        server = ServerId.parse(text)
    except ValueError as error:
        raise UsageError(str(error), remedy="vmreconcile status lists the servers") from error
    if server.host not in inputs.inventory.hosts:
        raise UsageError(f"no host {server.host!r} in the inventory", remedy="vmreconcile inventory --hosts all")
    return server

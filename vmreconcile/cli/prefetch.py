"""prefetch: models' files on their hosts ahead of time, free space looked at first; what runs is not touched."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING

from vmreconcile.cli.codes import worst
from vmreconcile.cli.oneoff import hosts_in_reach
from vmreconcile.cli.output import inputs_of, print_json, reach_of, say_notes
from vmreconcile.cli.progress import Progress
from vmreconcile.cli.terminal import advice, printable, style_for
from vmreconcile.core.reports import FORMAT_VERSION, Json
from vmreconcile.core.selection import named_servers
from vmreconcile.effects.lost import reached
from vmreconcile.effects.parallel import for_each
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.fetching import Fetched, NotFetched, fetch
from vmreconcile.flows.inputs import hosts_of
from vmreconcile.flows.prepare import Prepared, prepared
from vmreconcile.model.desired import DesiredServer, DesiredState

if TYPE_CHECKING:
    import argparse

GIB = 1 << 30
Row = tuple[DesiredServer, Fetched | NotFetched | UnreachableError]


def prefetch(arguments: argparse.Namespace) -> int:
    """Fetch for the servers named, or for all that are not to go; hosts side by side, a host's servers one by one."""
    inputs = inputs_of(arguments)
    names = arguments.servers or [server.id.model for server in inputs.desired.servers]
    servers = named_servers(names, inputs.desired, wanted=None)
    if arguments.servers:
        hosts = hosts_in_reach(servers, inputs, arguments.limit)
    else:
        allowed = set(hosts_of(inputs.inventory, arguments.limit))
        hosts = tuple(sorted({server.host for server in servers} & allowed))
    chosen = [
        server
        for server in inputs.desired.servers
        if server.id in servers and server.id.host in hosts and server.state is not DesiredState.ABSENT
    ]
    live = sys.stderr.isatty() and not arguments.json
    with (
        prepared(inputs, reach_of(arguments, hosts)) as ready,
        closing(Progress(style_for(sys.stderr, no_color=arguments.no_color), live=live)) as progress,
    ):
        say_notes(ready)
        work = for_each(hosts, lambda host: _host(_once(chosen, host), ready, progress), ready.fleet.forks)
        done, _ = reached(work)
    rows = sorted((row for fetched in done.values() for row in fetched), key=lambda row: row[0].id)
    _report(rows, arguments)
    bad = any(isinstance(each, NotFetched) for _, each in rows)
    lost = any(isinstance(each, UnreachableError) for _, each in rows)
    return worst([1 if bad else 0, 3 if lost else 0])


def _once(chosen: list[DesiredServer], host: str) -> list[DesiredServer]:
    """The servers of a host, replicas left out: they share their files."""
    return [server for server in chosen if server.id.host == host and server.id.replica == 0 and server.from_hub]


def _host(servers: list[DesiredServer], ready: Prepared, progress: Progress) -> list[Row]:
    rows: list[Row] = []
    for server in servers:
        try:
            done: Fetched | NotFetched | UnreachableError = fetch(
                server,
                ready.fleet,
                ready.secrets,
                lambda seconds, line, name=server.id: progress.waits(name, seconds, line),  # type: ignore[misc] # bound now
            )
        except (NotFetched, UnreachableError) as error:
            done = error
        progress.rests(server.id)
        rows.append((server, done))
        if isinstance(done, UnreachableError):
            rows += [(other, done) for other in servers[len(rows) :]]
            break
    return rows


def _report(rows: list[Row], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json({"format_version": FORMAT_VERSION, "results": [_json(*row) for row in rows]})
        return
    for server, done in rows:
        print(_text(server, done))
    if not rows:
        print("nothing to fetch: no server's model comes from the Hub")


def _text(server: DesiredServer, done: Fetched | NotFetched | UnreachableError) -> str:
    match done:
        case Fetched(fetched=0):
            return f"{server.id}: {server.model} is there already, {done.total / GIB:.2f} GiB in {printable(done.path)}"
        case Fetched():
            return f"{server.id}: fetched {done.fetched / GIB:.2f} GiB of {server.model} into {printable(done.path)}"
        case NotFetched():
            failure = done.failure
            return f"{printable(failure.summary)} ({printable(failure.kind)})\n  mend  {advice(failure.remedy)}"
        case _:
            return f"{server.id}: unreachable: {printable(done.reason)}"


def _json(server: DesiredServer, done: Fetched | NotFetched | UnreachableError) -> Json:
    row: Json = {"server": str(server.id), "model": server.model}
    match done:
        case Fetched():
            status = "fetched" if done.fetched else "ok"
            there: Json = {"bytes": done.fetched, "total": done.total, "path": done.path}
            return row | {"status": status} | there | {"error": None}
        case NotFetched():
            failure = done.failure
            error: Json = {"class": failure.kind, "summary": failure.summary, "remedy": failure.remedy}
        case _:
            error = {"class": "unreachable", "summary": done.reason, "remedy": done.remedy}
    status = "unreachable" if isinstance(done, UnreachableError) else "failed"
    return row | {"status": status, "bytes": 0, "total": 0, "path": None, "error": error}

"""history and rollback."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from vmreconcile.cli.agreement import Agreement
from vmreconcile.cli.codes import apply_code, worst
from vmreconcile.cli.oneoff import hosts_in_reach
from vmreconcile.cli.output import inputs_of, note, print_json, reach_of
from vmreconcile.cli.plans import carried_out, report
from vmreconcile.cli.render_history import history_text, lasting_text
from vmreconcile.cli.servers import server_named
from vmreconcile.cli.terminal import printable, style_for
from vmreconcile.core.reports import FORMAT_VERSION, field_json, unreachable_json
from vmreconcile.core.selection import named_servers
from vmreconcile.flows.histories import History, histories
from vmreconcile.flows.inputs import Inputs
from vmreconcile.flows.prepare import prepared
from vmreconcile.flows.reconcile import Scope
from vmreconcile.flows.rolling_back import chosen, wanted_back
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.outcome import Status
from vmreconcile.model.revision import Revision
from vmreconcile.model.tokens import Need
from vmreconcile.model.values import JsonValue

if TYPE_CHECKING:
    import argparse


def history(arguments: argparse.Namespace) -> int:
    """The revisions that hosts keep, newest first."""
    inputs = inputs_of(arguments)
    servers = _named(arguments.servers, inputs)
    hosts = hosts_in_reach(servers, inputs, arguments.limit)
    with prepared(inputs, reach_of(arguments, hosts, Need.NONE)) as ready:
        found, lost = histories(servers, ready)
    if arguments.json:
        print_json(
            {
                "format_version": FORMAT_VERSION,
                "servers": [_history_json(each) for each in found],
                "unreachable": [unreachable_json(host) for host in lost],
            }
        )
    else:
        print(history_text(found, lost, style_for(sys.stdout, no_color=arguments.no_color)))
    return worst([3 if lost else 0, 1 if any(each.problem for each in found) else 0])


def _named(names: list[str], inputs: Inputs) -> frozenset[ServerId]:
    """The servers meant; one that no file wants any more only with its host.

    Raises:
        UsageError: a name means no server, or its host is not in the inventory.
    """
    known = {str(server.id) for server in inputs.desired.servers}
    away = {name for name in names if "@" in name and name not in known}
    wanted = [name for name in names if name not in away]
    found = named_servers(wanted, inputs.desired, wanted=None) if wanted else frozenset()
    return found | {server_named(name, inputs) for name in away}


def _history_json(each: History) -> dict[str, JsonValue]:
    now = each.running
    return {
        "server": str(each.server),
        "revisions": [_revision_json(revision, each, now) for revision in reversed(each.revisions)],
        **({"problem": each.problem} if each.problem else {}),
    }


def _revision_json(revision: Revision, each: History, now: Revision | None) -> dict[str, JsonValue]:
    return {
        "number": revision.number,
        "when": revision.when,
        "who": revision.author.who,
        "commit": revision.author.commit,
        "vllm_version": revision.kept.vllm_version,
        "good": revision.good,
        "kind": revision.kind,
        "note": revision.note,
        "running": revision is now,
        "fields": [field_json(field) for field in each.fields(revision)],
    }


def rollback(arguments: argparse.Namespace) -> int:
    """Go back to a kept revision, as an apply would go forward; no file is written."""
    inputs = inputs_of(arguments)
    servers = named_servers(arguments.servers, inputs.desired, wanted=DesiredState.RUNNING)
    hosts = hosts_in_reach(servers, inputs, arguments.limit)
    with prepared(inputs, reach_of(arguments, hosts)) as ready:
        found, lost = histories(servers, ready)
        revisions = {each.server: chosen(each, arguments.to) for each in found}
        back, targets = wanted_back(revisions, ready)
        told = "rollback" if arguments.to is None else f"rollback to {arguments.to}"
        back = replace(back, note=told)
        seen = frozenset(target.wanted.id for target in targets)
        outcome = carried_out(arguments, back, Scope(only=seen, back=seen), Agreement(arguments, back))
    if outcome is None:
        note("nothing was changed")
        return 1
    report(arguments, outcome)
    for host in lost:
        note(f"{host.host}: unreachable, so nothing of it goes back: {printable(host.reason)}")
    done = {result.server for result in outcome.results if result.status is Status.CHANGED}
    lines = lasting_text((target for target in targets if target.wanted.id in done), inputs.desired)
    if lines:
        note(lines)
    return worst([apply_code(outcome), 3 if seen != servers else 0])

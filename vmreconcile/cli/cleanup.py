"""cleanup and force: memory given back by what is ours; what is not ours is shown and left alone."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from vmreconcile.cli.agreement import Agreement
from vmreconcile.cli.codes import apply_code, worst
from vmreconcile.cli.output import inputs_of, note, print_json, reach_of
from vmreconcile.cli.plans import carried_out, report
from vmreconcile.cli.progress import Progress
from vmreconcile.cli.render_plan import stranger_text
from vmreconcile.cli.terminal import printable, style_for
from vmreconcile.core.reports import FORMAT_VERSION, Json, apply_json, orphan_json, stranger_json, unreachable_json
from vmreconcile.core.selection import with_state
from vmreconcile.errors import LockedError
from vmreconcile.flows.cleanup import Cleaned, clean_up
from vmreconcile.flows.prepare import Prepared, prepared
from vmreconcile.flows.reconcile import Scope, observe_and_plan
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.observed import Phase
from vmreconcile.model.outcome import Outcome, Status
from vmreconcile.model.plan import Action
from vmreconcile.model.tokens import Need

if TYPE_CHECKING:
    import argparse

GIB = 1024**3
USELESS = frozenset({Phase.UNHEALTHY, Phase.CRASHED})
"""Phases in which a server may hold memory and serves nobody."""


def cleanup(arguments: argparse.Namespace) -> int:
    """End orphans of ours."""
    if arguments.preserve_priority is not None:
        note("note: no server is ended here whatever its priority; --preserve-priority changes nothing")
    inputs = inputs_of(arguments)
    with prepared(inputs, reach_of(arguments, need=Need.NONE)) as ready:
        return _clean(arguments, ready)


def _clean(arguments: argparse.Namespace, ready: Prepared, stopped: Outcome | None = None) -> int:
    view, _ = observe_and_plan(ready)
    cleaned = clean_up(ready, view, Progress(style_for(sys.stderr, no_color=arguments.no_color), live=False))
    if arguments.json:
        results = apply_json(stopped)["results"] if stopped else []
        print_json({**_json(cleaned), "stopped": results})
    else:
        if stopped:
            report(arguments, stopped)
        print(_text(cleaned, stopped.count(Status.CHANGED) if stopped else 0))
    locked = LockedError.exit_code if cleaned.locked else 0
    return worst([locked, 1 if cleaned.failed else 0, 3 if cleaned.unreachable else 0])


def _json(cleaned: Cleaned) -> Json:
    return {
        "format_version": FORMAT_VERSION,
        "ended": [orphan_json(orphan) for orphan in cleaned.ended],
        "failed": [orphan_json(orphan) | {"error": why} for orphan, why in cleaned.failed],
        "strangers": [stranger_json(stranger) for stranger in cleaned.strangers],
        "orphans": [orphan_json(orphan) for orphan in cleaned.foreign],
        "unreachable": [unreachable_json(host) for host in cleaned.unreachable],
    }


def _text(cleaned: Cleaned, stopped: int) -> str:
    lines = [
        f"ended on {each.host}: pid {each.pid} {printable(each.title)} of {each.server}{_memory(each.gpu_memory_bytes)}"
        for each in cleaned.ended
    ]
    lines += [
        f"could not end on {each.host}: pid {each.pid} of {each.server}: {printable(why)}"
        for each, why in cleaned.failed
    ]
    lines += [
        f"left on {each.host}, not ours: pid {each.pid} {printable(each.title)}{_memory(each.gpu_memory_bytes)}"
        for each in cleaned.foreign
    ]
    lines += [
        f"left on {each.host}, not ours: pid {each.pid}, {printable(each.user)}: "
        f"{stranger_text(each.what)}{_memory(each.gpu_memory_bytes)}"
        for each in cleaned.strangers
    ]
    lines += [f"unreachable: {each.host}: {printable(each.reason)}" for each in cleaned.unreachable]
    before = f"stopped with their workers: {stopped}, orphans " if stopped else ""
    return "\n".join([*lines, f"{before}ended: {len(cleaned.ended)}"])


def _memory(number: int | None) -> str:
    return f", {number / GIB:.1f} GiB of GPU memory" if number else ""


def force(arguments: argparse.Namespace) -> int:
    """End orphans, and stop servers of ours that hold memory and serve nobody; nothing is written to the files.

    What is not ours is never ended, whatever it holds: the old manager did that.
    """
    inputs = inputs_of(arguments)
    with prepared(inputs, reach_of(arguments, need=Need.NONE)) as ready:
        _, plan = observe_and_plan(ready)
        wanted = {server.id for server in inputs.desired.servers}
        stuck = frozenset(change.server for change in plan.changes if change.phase in USELESS) & wanted
        code, outcome = 0, None
        if stuck:
            stopped = replace(
                ready, inputs=replace(inputs, desired=with_state(inputs.desired, stuck, DesiredState.STOPPED))
            )
            scope = Scope(only=stuck, actions=frozenset({Action.STOP}))
            outcome = carried_out(arguments, stopped, scope, Agreement(arguments, stopped))
            code = 1 if outcome is None else apply_code(outcome)
        return worst([code, _clean(arguments, ready, outcome)])

"""plan and apply."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from vmreconcile import __version__
from vmreconcile.cli.agreement import Agreement, say_diagnostics
from vmreconcile.cli.codes import apply_code, plan_code
from vmreconcile.cli.output import inputs_of, lasting, note, print_json, reach_of, say_notes
from vmreconcile.cli.progress import Progress
from vmreconcile.cli.render_errors import outcome_text
from vmreconcile.cli.render_plan import plan_text
from vmreconcile.cli.retry import leave_retry_file
from vmreconcile.cli.terminal import style_for
from vmreconcile.core.planfile import parse, render
from vmreconcile.core.reports import apply_json, plan_json
from vmreconcile.core.rollout.course import Limits
from vmreconcile.effects.files import read_text, write_private
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.inputs import Inputs
from vmreconcile.flows.prepare import Prepared, prepared
from vmreconcile.flows.reconcile import Scope, checked, inventory_digest, observe_and_plan, reconcile, within
from vmreconcile.model.outcome import Outcome
from vmreconcile.model.plan import Action, Plan, Reason

if TYPE_CHECKING:
    import argparse


def plan(arguments: argparse.Namespace) -> int:
    """Look, compare, print."""
    inputs = inputs_of(arguments)
    with prepared(inputs, reach_of(arguments)) as ready:
        say_notes(ready)
        scope = Scope(prune=arguments.prune, limits=limits_of(arguments))
        view, found = observe_and_plan(ready, scope, once=True)
        found = checked(ready, scope, view, found)
        if arguments.out:
            text = render(found, within(ready), version=__version__, inventory=inventory_digest(ready))
            write_private(arguments.out, text)
    if arguments.json:
        print_json(plan_json(replace(found, diagnostics=(*inputs.warnings, *found.diagnostics))))
    else:
        say_diagnostics(found, arguments)
        style = style_for(sys.stdout, no_color=arguments.no_color)
        all_gone = _removes_all(arguments, inputs)
        following = "" if all_gone else following_command(arguments)
        print(plan_text(found, style, explain=arguments.explain, following=following))
        if all_gone:
            note(f"note: {arguments.models} wants no server at all: apply --prune refuses to remove every one")
        if arguments.out:
            note(f"written: {arguments.out}")
    return plan_code(found, detailed=arguments.detailed_exitcode)


def following_command(arguments: argparse.Namespace) -> str:
    """The apply that does what was planned: from the file, or within the same limits."""
    words = ["vmreconcile", "apply", *([shlex.quote(str(arguments.out))] if arguments.out else [])]
    words += ["--prune"] if arguments.prune and not arguments.out else []
    if arguments.limit is not None:
        words += ["--limit", shlex.quote(arguments.limit)]
    for name in ("max_unavailable", "max_failures"):
        if getattr(arguments, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    return " ".join(words)


def apply(arguments: argparse.Namespace) -> int:
    """Make it so.

    Raises:
        VmreconcileError: everything would be pruned, because no model wants any server.
    """
    inputs = inputs_of(arguments)
    if _removes_all(arguments, inputs):
        raise VmreconcileError(
            f"{arguments.models} wants no server at all, so --prune would remove every one: nothing was changed",
            remedy="look whether the right folder was read; to remove a model's servers, give it state: absent",
        )
    with prepared(inputs, reach_of(arguments)) as ready:
        scope = Scope(prune=arguments.prune or _prunes(arguments), limits=limits_of(arguments))
        return carry_out(arguments, ready, scope, Agreement(arguments, ready))


def limits_of(arguments: argparse.Namespace) -> Limits:
    """What the command line says for the whole run."""
    return Limits(max_unavailable=arguments.max_unavailable, max_failures=arguments.max_failures)


def _prunes(arguments: argparse.Namespace) -> bool:
    """Whether a plan file removes what no file wants: what is compared with it must reckon with that, too."""
    if arguments.planfile is None:
        return False
    saved = parse(read_text(arguments.planfile), str(arguments.planfile))
    return any(each.action is Action.REMOVE and each.reason is Reason.UNCLAIMED for each in saved.changes)


def _removes_all(arguments: argparse.Namespace, inputs: Inputs) -> bool:
    """Whether --prune would leave nothing, which more often is the wrong folder than what is meant."""
    return arguments.prune and not inputs.desired.servers


Agree: TypeAlias = Callable[[Plan], Plan | None]
"""Sees a plan before it is carried out, and gives back what may be, or None."""


def carry_out(arguments: argparse.Namespace, ready: Prepared, scope: Scope, agreed: Agree) -> int:
    """Reconcile within `scope`, telling progress, and report."""
    outcome = carried_out(arguments, ready, scope, agreed)
    if outcome is None:
        note("nothing was changed")
        return 1
    report(arguments, outcome)
    leave_retry_file(arguments, outcome)
    return apply_code(outcome)


def carried_out(arguments: argparse.Namespace, ready: Prepared, scope: Scope, agreed: Agree) -> Outcome | None:
    """Reconcile within `scope`, telling progress; None where that was not agreed to."""
    say_notes(ready)
    live = sys.stderr.isatty() and not arguments.json
    with closing(Progress(style_for(sys.stderr, no_color=arguments.no_color), live=live)) as progress:
        return reconcile(ready, scope, progress, agreed)[1]


def report(arguments: argparse.Namespace, outcome: Outcome) -> None:
    """Print what was done."""
    with lasting(sys.stdout):
        if arguments.json:
            print_json(apply_json(outcome))
        else:
            print(outcome_text(outcome, style_for(sys.stdout, no_color=arguments.no_color)))
        sys.stdout.flush()

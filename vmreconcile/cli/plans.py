"""plan and apply."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from vmreconcile import __version__
from vmreconcile.cli.codes import apply_code, plan_code
from vmreconcile.cli.output import inputs_of, lasting, note, print_json, reach_of, say_notes
from vmreconcile.cli.progress import Progress
from vmreconcile.cli.render_errors import diagnostics_text, outcome_text
from vmreconcile.cli.render_plan import plan_text
from vmreconcile.cli.terminal import ask, style_for
from vmreconcile.core.planfile import confirm, parse, render
from vmreconcile.core.reports import apply_json, plan_json
from vmreconcile.effects.files import read_text, write_private
from vmreconcile.errors import UsageError, VmreconcileError
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
        scope = Scope(prune=arguments.prune)
        view, found = observe_and_plan(ready, scope, once=True)
        found = checked(ready, scope, view, found)
        if arguments.out:
            text = render(found, within(ready), version=__version__, inventory=inventory_digest(ready))
            write_private(arguments.out, text)
    if arguments.json:
        print_json(plan_json(replace(found, diagnostics=(*inputs.warnings, *found.diagnostics))))
    else:
        _say_diagnostics(found, arguments)
        style = style_for(sys.stdout, no_color=arguments.no_color)
        following = "" if _removes_all(arguments, inputs) else "vmreconcile apply"
        print(plan_text(found, style, explain=arguments.explain, following=following))
        if not following:
            note(f"note: {arguments.models} wants no server at all: apply --prune refuses to remove every one")
        if arguments.out:
            note(f"written: {arguments.out}; carry it out with: vmreconcile apply {arguments.out}")
    return plan_code(found, detailed=arguments.detailed_exitcode)


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
        scope = Scope(prune=arguments.prune or _prunes(arguments))
        return carry_out(arguments, ready, scope, Agreement(arguments, ready))


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


def _say_diagnostics(plan: Plan, arguments: argparse.Namespace) -> None:
    if plan.diagnostics:
        note(diagnostics_text(plan.diagnostics, style_for(sys.stderr, no_color=arguments.no_color)))


class Agreement:
    """Shows the plan and decides whether it may be carried out: limits first, then the person at the terminal."""

    def __init__(self, arguments: argparse.Namespace, ready: Prepared) -> None:
        """Keep what was said on the command line."""
        self._arguments = arguments
        self._ready = ready

    def __call__(self, plan: Plan) -> Plan | None:
        """The plan to carry out, or None where the person said no.

        Raises:
            UsageError: the plan file cannot be used here.
            VmreconcileError: more disruptive changes than --max-changes allows.
        """
        planfile = getattr(self._arguments, "planfile", None)
        if planfile is not None:
            saved = parse(read_text(planfile), str(planfile))
            if saved.inventory != inventory_digest(self._ready):
                raise UsageError(
                    f"{planfile} was made with another --limit, or from another inventory",
                    remedy="give the --limit that it was made with, or make the plan again",
                )
            plan = confirm(saved, plan, within(self._ready))
        self._show(plan)
        _say_diagnostics(plan, self._arguments)
        self._limit(plan)
        if not plan.pending or not self._must_ask():
            return plan
        return plan if ask("Carry this out? [y/N] ") else None

    def _show(self, plan: Plan) -> None:
        if not self._arguments.json:
            with lasting(sys.stdout):
                print(plan_text(plan, style_for(sys.stdout, no_color=self._arguments.no_color)), flush=True)

    def _limit(self, plan: Plan) -> None:
        limit = getattr(self._arguments, "max_changes", None)
        disruptive = sum(change.disruptive for change in plan.pending)
        if limit is not None and disruptive > limit:
            raise VmreconcileError(
                f"the plan has {disruptive} disruptive changes, more than --max-changes {limit}: nothing was changed",
                remedy=f"look at the plan; if it is right: --max-changes {disruptive}",
            )

    def _must_ask(self) -> bool:
        if getattr(self._arguments, "yes", True) or self._arguments.no_input:
            return False
        return sys.stdin.isatty() and sys.stderr.isatty()

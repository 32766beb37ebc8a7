"""What a person, or --max-changes, agrees to: sees a plan before it is carried out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vmreconcile.cli.output import lasting, note
from vmreconcile.cli.render_errors import diagnostics_text
from vmreconcile.cli.render_plan import plan_text
from vmreconcile.cli.terminal import ask, style_for
from vmreconcile.core.planfile import confirm, parse
from vmreconcile.core.rollout.budgets import usual_changes
from vmreconcile.effects.files import read_text
from vmreconcile.errors import UsageError, VmreconcileError
from vmreconcile.flows.prepare import Prepared
from vmreconcile.flows.reconcile import inventory_digest, re_waved, within
from vmreconcile.model.plan import Plan

if TYPE_CHECKING:
    import argparse


def say_diagnostics(plan: Plan, arguments: argparse.Namespace) -> None:
    """Tell what was noticed while planning."""
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
        usual = usual_changes(plan)
        planfile = getattr(self._arguments, "planfile", None)
        if planfile is not None:
            saved = parse(read_text(planfile), str(planfile))
            if saved.inventory != inventory_digest(self._ready):
                raise UsageError(
                    f"{planfile} was made with another --limit, or from another inventory",
                    remedy="give the --limit that it was made with, or make the plan again",
                )
            plan = re_waved(self._ready, confirm(saved, plan, within(self._ready)))
        self._show(plan)
        say_diagnostics(plan, self._arguments)
        too_many = self._too_many(plan, usual)
        if not plan.pending or not (self._must_ask() or too_many):
            return plan
        return plan if ask(f"{too_many}Carry this out? [y/N] ") else None

    def _show(self, plan: Plan) -> None:
        if not self._arguments.json:
            with lasting(sys.stdout):
                print(plan_text(plan, style_for(sys.stdout, no_color=self._arguments.no_color)), flush=True)

    def _too_many(self, plan: Plan, usual: int) -> str:
        """What is to be asked of a person because the plan takes down more than the usual, '' where it does not.

        Raises:
            VmreconcileError: it takes down more than --max-changes allows, or than is usual and nobody can be asked.
        """
        if not hasattr(self._arguments, "max_changes"):
            return ""  # the servers were named one by one
        disruptive = sum(change.disruptive for change in plan.pending)
        given = self._arguments.max_changes
        limit = usual if given is None else given
        if disruptive <= limit:
            return ""
        if given is None and self._must_ask():
            return f"{disruptive} servers are restarted, stopped or removed, more than a third of all (or 3). "
        which = f"--max-changes {limit}" if given is not None else f"{limit} (a third of the servers, at least 3)"
        raise VmreconcileError(
            f"the plan has {disruptive} disruptive changes, more than {which}: nothing was changed",
            remedy=f"look at the plan; if it is right: --max-changes {disruptive}",
        )

    def _must_ask(self) -> bool:
        if getattr(self._arguments, "yes", True) or self._arguments.no_input:
            return False
        return sys.stdin.isatty() and sys.stderr.isatty()

"""start, stop, restart: idempotent, for the servers named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmreconcile.cli.agreement import Agreement
from vmreconcile.cli.output import inputs_of, note, reach_of
from vmreconcile.cli.plans import carry_out
from vmreconcile.core.selection import named_servers, with_state
from vmreconcile.effects.save import save_state
from vmreconcile.errors import UsageError
from vmreconcile.flows.inputs import Inputs, hosts_of
from vmreconcile.flows.prepare import prepared
from vmreconcile.flows.reconcile import Scope
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Action
from vmreconcile.model.tokens import Need

if TYPE_CHECKING:
    import argparse


def start(arguments: argparse.Namespace) -> int:
    """Start what does not run; a running server whose settings differ is left to apply."""
    return _set_state(arguments, DesiredState.RUNNING, frozenset({Action.START}))


def stop(arguments: argparse.Namespace) -> int:
    """Stop what runs."""
    return _set_state(arguments, DesiredState.STOPPED, frozenset({Action.STOP}))


def restart(arguments: argparse.Namespace) -> int:
    """Restart, with the settings that are wanted now."""
    inputs = inputs_of(arguments)
    servers = named_servers(arguments.servers, inputs.desired, wanted=DesiredState.RUNNING)
    hosts = hosts_in_reach(servers, inputs, arguments.limit)
    with prepared(inputs, reach_of(arguments, hosts)) as ready:
        scope = Scope(only=servers, restart=servers)
        return carry_out(arguments, ready, scope, Agreement(arguments, ready))


def hosts_in_reach(servers: frozenset[ServerId], inputs: Inputs, limit: str | None) -> tuple[str, ...]:
    """The hosts of the servers named: no other is looked at, and none of these may be left out by `limit`.

    Otherwise `state:` would be written for a server that is then left as it is.

    Raises:
        UsageError: one is on a host that `--limit` leaves out.
    """
    allowed = hosts_of(inputs.inventory, limit)
    left_out = sorted(str(server) for server in servers if server.host not in allowed)
    if left_out:
        raise UsageError(
            f"--limit {limit} leaves out {left_out[0]}: nothing was written or changed",
            remedy="name the servers meant as NAME@HOST",
        )
    return tuple(sorted({server.host for server in servers}))


def _set_state(arguments: argparse.Namespace, state: DesiredState, actions: frozenset[Action]) -> int:
    """Write `state:` first, so that a scheduled apply does not undo what was asked for; then carry it out."""
    inputs = inputs_of(arguments)
    servers = named_servers(arguments.servers, inputs.desired, wanted=None)
    hosts = hosts_in_reach(servers, inputs, arguments.limit)
    if not arguments.no_save:
        for path in save_state(inputs.documents, arguments.servers, inputs.desired, state):
            note(f"wrote state: {state.value} to {path}")
    inputs = replace(inputs, desired=with_state(inputs.desired, servers, state))
    need = Need.ALL if state is DesiredState.RUNNING else Need.NONE
    with prepared(inputs, reach_of(arguments, hosts, need)) as ready:
        scope = Scope(only=servers, actions=actions)
        return carry_out(arguments, ready, scope, Agreement(arguments, ready))

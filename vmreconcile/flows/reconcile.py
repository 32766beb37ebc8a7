"""load → validate → resolve → observe → diff → plan → execute → observe again → report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vmreconcile.core.fingerprints import digest
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.flows.execute import execute
from vmreconcile.flows.prepare import Prepared
from vmreconcile.flows.run import Reporter, Run
from vmreconcile.model.desired import DesiredFleet
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView
from vmreconcile.model.outcome import Outcome
from vmreconcile.model.plan import Action, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which servers, and what beyond mending drift was asked for."""

    prune: bool = False
    only: frozenset[ServerId] | None = None
    restart: frozenset[ServerId] = frozenset()
    actions: frozenset[Action] | None = None


EVERYTHING = Scope()

REACHED_BY = ("ansible_connection", "ansible_host", "ansible_port", "vllm_state_dir")


def observe_and_plan(prepared: Prepared, scope: Scope = EVERYTHING, *, once: bool = False) -> tuple[FleetView, Plan]:
    """Look at every selected host and plan; changes nothing anywhere. `once`: no host is asked again afterwards."""
    view = prepared.fleet.observe(prepared.hosts, once=once)
    options = Options(
        known=prepared.known, prune=scope.prune, only=scope.only, restart=scope.restart, actions=scope.actions
    )
    return view, make_plan(within(prepared), view, options)


def within(prepared: Prepared) -> DesiredFleet:
    """What is wanted on the selected hosts: `--limit` narrows what is acted on."""
    hosts = frozenset(prepared.hosts)
    desired = prepared.inputs.desired
    return replace(desired, servers=tuple(server for server in desired.servers if server.id.host in hosts))


def reconcile(
    prepared: Prepared,
    scope: Scope,
    reporter: Reporter,
    agreed: Callable[[Plan], Plan | None],
) -> tuple[Plan, Outcome | None]:
    """Make it so. `agreed` sees the plan first and gives back what may be carried out, or None."""
    _, plan = observe_and_plan(prepared, scope)
    approved = agreed(plan)
    if approved is None:
        return plan, None
    return plan, execute(approved, run_of(prepared, reporter))


def run_of(prepared: Prepared, reporter: Reporter) -> Run:
    """What an execution over this fleet needs."""
    return Run(
        fleet=prepared.fleet,
        desired={server.id: server for server in prepared.inputs.desired.servers},
        known=prepared.known,
        secrets=prepared.secrets,
        reporter=reporter,
    )


def inventory_digest(prepared: Prepared) -> str:
    """A digest of where the selected hosts are, so that a plan is not carried out on others."""
    lines = []
    for host in prepared.hosts:
        variables = prepared.inputs.inventory.hosts[host].variables
        reached = [f"{name}={variables[name].value}" for name in REACHED_BY if name in variables]
        lines.append(" ".join([host, *reached]))
    return digest("\n".join(lines))

"""load → validate → resolve → observe → diff → plan → execute → observe again → report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from vmreconcile.core.access import OWN_ENDPOINT, block_by, elsewhere, questions_about, unreachable_notes
from vmreconcile.core.fingerprints import digest, shown
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.core.rollout.course import Limits
from vmreconcile.core.rollout.waves import in_waves, waves_of
from vmreconcile.core.selection import on_hosts
from vmreconcile.core.token_sources import token_sources
from vmreconcile.effects.hooks import Controller, without_secrets
from vmreconcile.errors import Diagnostic, Place, Severity
from vmreconcile.flows.execute import execute
from vmreconcile.flows.inputs import connections
from vmreconcile.flows.model_files import ModelFiles, read_model_files
from vmreconcile.flows.prepare import Prepared
from vmreconcile.flows.run import Reporter, Run
from vmreconcile.model.desired import DesiredFleet, DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView
from vmreconcile.model.outcome import Outcome
from vmreconcile.model.plan import Action, Block, Change, Plan, Reason
from vmreconcile.model.secret import HIDDEN, Secret
from vmreconcile.model.tokens import SourceKind
from vmreconcile.vllm.memory.stored import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which servers, and what beyond mending drift was asked for."""

    prune: bool = False
    only: frozenset[ServerId] | None = None
    restart: frozenset[ServerId] = frozenset()
    back: frozenset[ServerId] = frozenset()
    """Servers that are wanted as they ran before, in this run only."""
    actions: frozenset[Action] | None = None
    limits: Limits = field(default_factory=Limits)


EVERYTHING = Scope()

REACHED_BY = ("ansible_connection", "ansible_host", "ansible_port", "vllm_state_dir")


SHORTEST_KEY = 8
"""Letters of a secret that is looked for: "1" or "none" stand everywhere."""


def observe_and_plan(prepared: Prepared, scope: Scope = EVERYTHING, *, once: bool = False) -> tuple[FleetView, Plan]:
    """Look at every selected host and plan; changes nothing anywhere. `once`: no host is asked again afterwards.

    Whether servers do their work is looked at only where that decides something: not to stop or to restart one.
    """
    decides = scope.actions is None and not scope.restart
    view = prepared.fleet.observe(prepared.hosts, once=once, stalls=decides)
    return view, plan_of(prepared, scope, view, once=once)


def plan_of(
    prepared: Prepared,
    scope: Scope,
    view: FleetView,
    refused: Mapping[ServerId, Block] | None = None,
    *,
    once: bool = False,
) -> Plan:
    """Plan for hosts that were seen. The files of models are read only where their memory must be known for it."""
    options = Options(
        known=prepared.known,
        prune=scope.prune,
        only=scope.only,
        restart=scope.restart,
        actions=scope.actions,
        refused=refused or {},
    )
    desired = within(prepared)
    plan = make_plan(desired, view, options)
    if not plan.asks:
        return _going_back(plan, scope.back)
    files = _files_of([server for server in desired.servers if server.id in plan.asks], prepared, once=once)
    plan = make_plan(desired, view, replace(options, models=files.checkpoints, unread=files.reasons))
    return _going_back(plan, scope.back)


def _going_back(plan: Plan, servers: frozenset[ServerId]) -> Plan:
    """The plan, in which what replaces these servers says that this is a rollback."""

    def told(change: Change) -> Change:
        replaces = change.action in {Action.RETUNE, Action.RESTART} and change.disruptive
        if change.server not in servers or not replaces:
            return change
        return replace(change, action=Action.RETUNE, reason=Reason.ROLLED_BACK)

    return replace(plan, changes=tuple(map(told, plan.changes))) if servers else plan


def _files_of(servers: Iterable[DesiredServer], prepared: Prepared, *, once: bool) -> ModelFiles:
    """The files of the servers' models; those that this run has read already are not read again."""
    known = prepared.files
    servers = list(servers)
    missing = [server for server in servers if server.id not in known]
    found = read_model_files(missing, prepared.fleet, prepared.hub, once=once)
    known |= found.checkpoints
    mine = {server.id: known[server.id] for server in servers if server.id in known}
    return replace(found, checkpoints=mine)


def checked(prepared: Prepared, scope: Scope, view: FleetView, plan: Plan) -> Plan:
    """The plan as it may be carried out, in waves: what the Hub would refuse is blocked before anything stops for it.

    Asks nobody where no server is about to load its model; a Hub that cannot be reached is told, and refuses nothing.
    """
    desired = within(prepared)
    questions = questions_about(plan, desired, view, prepared.hub.asker)
    everyone, again = _everyone(prepared), functools.partial(plan_of, prepared, scope, view)
    if not questions:
        return in_waves(plan, again, everyone, scope.limits)
    verdicts = prepared.hub.verdicts(questions.values())
    refused = {server: block_by(question, verdicts[question]) for server, question in questions.items()}
    blocks = {server: block for server, block in refused.items() if block is not None}
    if blocks:
        plan = plan_of(prepared, scope, view, blocks)
    unchecked = map(_unchecked, unreachable_notes(verdicts.items()))
    loading = (server for server in desired.servers if server.id in questions)
    other = elsewhere(loading, prepared.hub.options.environ)
    notes = (*unchecked, *([_another_hub(other)] if other else []))
    plan = in_waves(plan, again, everyone, scope.limits, blocks)
    return replace(plan, diagnostics=(*plan.diagnostics, *notes))


def re_waved(prepared: Prepared, plan: Plan) -> Plan:
    """A plan read from a file with the waves that it takes now; what no wave could hold is skipped as it is reached."""
    return replace(plan, waves=waves_of(plan, _everyone(prepared), Limits())[0])


def _everyone(prepared: Prepared) -> dict[ServerId, DesiredServer]:
    """All that is wanted, by name, also on hosts that are not selected."""
    return {server.id: server for server in prepared.inputs.desired.servers}


def _another_hub(text: str) -> Diagnostic:
    return Diagnostic(
        place=Place(file="environment"),
        code="another-hub",
        summary=text,
        remedy=OWN_ENDPOINT,
        severity=Severity.WARNING,
    )


def _unchecked(text: str) -> Diagnostic:
    return Diagnostic(
        place=Place(file="Hugging Face Hub"),
        code="access-not-checked",
        summary=text,
        remedy="a server whose model is cached on its host may start all the same",
        severity=Severity.WARNING,
    )


def within(prepared: Prepared) -> DesiredFleet:
    """What is wanted on the selected hosts: `--limit` narrows what is acted on."""
    return on_hosts(prepared.inputs.desired, prepared.hosts)


def reconcile(
    prepared: Prepared,
    scope: Scope,
    reporter: Reporter,
    agreed: Callable[[Plan], Plan | None],
) -> tuple[Plan, Outcome | None]:
    """Make it so. `agreed` sees the plan first and gives back what may be carried out, or None."""
    view, plan = observe_and_plan(prepared, scope)
    plan = checked(prepared, scope, view, plan)
    approved = agreed(plan)
    if approved is None:
        return plan, None
    return plan, execute(approved, run_of(prepared, reporter, scope.limits))


def run_of(prepared: Prepared, reporter: Reporter, limits: Limits | None = None) -> Run:
    """What an execution over this fleet needs."""
    desired = _everyone(prepared)
    return Run(
        fleet=prepared.fleet,
        desired=desired,
        known=prepared.known,
        secrets=prepared.secrets,
        reporter=reporter,
        limits=replace(limits or Limits(), forks=prepared.fleet.forks),
        lock_timeout=prepared.lock_timeout,
        command=prepared.command,
        model_files=lambda server: _on_its_host(desired[server], prepared),
        author=prepared.author,
        note=prepared.note,
        controller=_controller_of(prepared),
    )


def _controller_of(prepared: Prepared) -> Controller:
    """What hooks are run in: the person's environment without tokens, whatever variables these are in."""
    inventory = prepared.inputs.inventory
    sources = token_sources(inventory).values()
    named = (source.words[0] for source in sources if source.kind is SourceKind.ENV)
    reached = connections(inventory, prepared.hosts)
    passwords = (each.become_password for each in reached.values() if each.become_password)
    known = (*prepared.secrets.values(), *passwords, *_keys_of(prepared.inputs.desired.servers))
    return Controller(
        environ=without_secrets(prepared.hub.options.environ, named, known),
        addresses={name: each.target for name, each in reached.items()},
        secrets=known,
    )


def _keys_of(servers: Iterable[DesiredServer]) -> Iterator[Secret]:
    """What stands in models' own environments and is secret, where it is long enough to be looked for."""
    for server in servers:
        for name, each in server.env.items():
            if len(str(each.value)) >= SHORTEST_KEY and shown(name, str(each.value)) == HIDDEN:
                yield Secret(str(each.value))


def _on_its_host(server: DesiredServer, prepared: Prepared) -> Checkpoint | None:
    """The files of a server's model as its host has them, once it has started; else those that were planned with."""
    found = read_model_files([server], prepared.fleet).checkpoints
    return found.get(server.id) or prepared.files.get(server.id)


def inventory_digest(prepared: Prepared) -> str:
    """A digest of where the selected hosts are, so that a plan is not carried out on others."""
    lines = []
    for host in prepared.hosts:
        variables = prepared.inputs.inventory.hosts[host].variables
        reached = [f"{name}={variables[name].value}" for name in REACHED_BY if name in variables]
        lines.append(" ".join([host, *reached]))
    return digest("\n".join(lines))

"""From wanted servers and observed hosts to a plan. Pure: the same input gives the same plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vmreconcile.core.actions import Decision, decide, decide_unclaimed, exists
from vmreconcile.core.blocks import block_of, cordoned
from vmreconcile.core.diff import Drift, Subject, drift_of
from vmreconcile.core.draining import with_drain
from vmreconcile.core.fingerprints import Known
from vmreconcile.core.gates import USUAL_TIMEOUT_S, gate_of, startup_timeout, weights_of
from vmreconcile.core.gpus.applied import with_placed
from vmreconcile.core.gpus.knowledge import Lore, lore_of
from vmreconcile.core.gpus.place import Fixed, Placing
from vmreconcile.core.launching import make_launch
from vmreconcile.core.notices import notices, shared_machines
from vmreconcile.core.ordering import in_turn
from vmreconcile.core.phases import phase_of
from vmreconcile.core.placing import making_room, placing_of
from vmreconcile.core.shadows import idle_note, shadow_of
from vmreconcile.core.staleness import digest_of
from vmreconcile.core.stepping import bringing_up, removal, stops_of, taking_down
from vmreconcile.core.tried import tried_note
from vmreconcile.core.tuning import tuned
from vmreconcile.model.desired import DesiredFleet, DesiredServer, DesiredState
from vmreconcile.model.gpus import Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, HostView, ObservedServer, Phase
from vmreconcile.model.plan import Action, Block, Change, Plan, Reason
from vmreconcile.runtimes.registry import choose
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.memory.stored import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller decides: whether unclaimed servers go, and what may be known of secrets."""

    known: Known
    prune: bool = False
    only: frozenset[ServerId] | None = None
    """Servers to act on; None means all. The others are not in the plan."""
    restart: frozenset[ServerId] = frozenset()
    """Servers to restart even where nothing differs."""
    actions: frozenset[Action] | None = None
    """Actions that may be planned for wanted servers; None means all. One that needs another is left as it is."""
    refused: Mapping[ServerId, Block] = field(default_factory=dict)
    """Servers that could not load their model, as the Hub says."""
    models: Mapping[ServerId, Checkpoint] = field(default_factory=dict)
    """What is known of the models whose memory must be predicted."""
    unread: Mapping[ServerId, str] = field(default_factory=dict)
    """Why the files of others could not be read."""


def make_plan(desired: DesiredFleet, view: FleetView, options: Options) -> Plan:
    """The plan for every host that was observed."""
    shared = shared_machines(view)
    lore = lore_of(view, options.models, options.unread)
    asks: set[ServerId] = set()
    by_host: dict[str, list[DesiredServer]] = {}
    for server in desired.servers:
        by_host.setdefault(server.id.host, []).append(server)
    changes: list[Change] = []
    for host in view.hosts:
        wanted = by_host.get(host.host, [])
        found, more = _plan_placed(wanted, host, lore, options, prune=host.host not in shared)
        changes += found
        asks |= more
    gone = {unreachable.host for unreachable in view.unreachable}
    return Plan(
        changes=tuple(sorted(changes, key=lambda change: change.server)),
        strangers=tuple(stranger for host in view.hosts for stranger in host.strangers),
        orphans=tuple(orphan for host in view.hosts for orphan in host.orphans),
        unreachable=view.unreachable,
        unreachable_servers=tuple(
            server.id for server in desired.servers if server.id.host in gone and _selected(server.id, options)
        ),
        diagnostics=(*desired.warnings, *shared.values(), *notices(view)),
        asks=frozenset(server for server in asks if _selected(server, options)),
        down=_down(desired, view),
    )


def _down(desired: DesiredFleet, view: FleetView) -> frozenset[ServerId]:
    """Servers wanted running that do not serve, or are on a host that could not be seen."""
    seen = {host.host: host for host in view.hosts}
    gone = {unreachable.host for unreachable in view.unreachable}
    return frozenset(
        server.id
        for server in desired.servers
        if server.state is DesiredState.RUNNING
        and (server.id.host in gone or (server.id.host in seen and not _serves(server.id, seen[server.id.host])))
    )


def _serves(server: ServerId, host: HostView) -> bool:
    """Whether it answers; until when one that does not is starting makes no difference to that."""
    return phase_of(host.server(server.slug), host.now, 0.0) is Phase.READY


def _selected(server: ServerId, options: Options) -> bool:
    return options.only is None or server in options.only


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """A wanted server with what is to be done to it, as long as nothing blocks that."""

    subject: Subject
    phase: Phase
    decision: Decision
    moves: bool
    """Whether it goes to another port."""
    shadow: Block | None = None
    """Why a new process would not get the environment that is wanted."""

    @property
    def starts(self) -> bool:
        return self.decision.action in {Action.START, Action.RESTART, Action.RETUNE}

    @property
    def loads(self) -> bool:
        """Whether a new process loads the model."""
        return self.decision.action is Action.START or self.decision.replaces

    @property
    def leaves(self) -> bool:
        """Whether it gives up the ports that it listens on."""
        return self.decision.action in {Action.STOP, Action.REMOVE} or (self.decision.disruptive and self.moves)


def _fixed(wanted: list[DesiredServer], host: HostView, options: Options, *, prune: bool) -> Fixed:
    """Which servers of a host this plan takes down for good, and which it leaves as they are whatever differs."""
    named = {server.id.slug: server for server in wanted}
    leaving = [
        each for each in host.servers if _leaves_for_good(each, named.get(each.slug), host, options, prune=prune)
    ]
    still = {
        server.id
        for server in wanted
        if not _selected(server.id, options)
        or server.id in options.refused
        or cordoned(server) is not None
        or not (options.actions is None or Action.RETUNE in options.actions)
    }
    barred = {
        server.id
        for server in wanted
        if host.server(server.id.slug).process is None and (server.id in options.refused or cordoned(server))
    }
    return Fixed(leaving=tuple(leaving), still=frozenset(still), barred=frozenset(barred))


def _leaves_for_good(
    observed: ObservedServer, server: DesiredServer | None, host: HostView, options: Options, *, prune: bool
) -> bool:
    """Whether a server is stopped or removed by this plan, so that others may have its GPUs."""
    if not _selected(ServerId.from_slug(observed.slug, host.host), options):
        return False
    if server is None:
        return options.prune and prune
    action = Action.STOP if server.state is DesiredState.STOPPED else Action.REMOVE
    return server.state is not DesiredState.RUNNING and (options.actions is None or action in options.actions)


def _plan_placed(
    wanted: list[DesiredServer], host: HostView, lore: Lore, options: Options, *, prune: bool
) -> tuple[list[Change], frozenset[ServerId]]:
    """The changes of a host, and whose model's files would have told more.

    A running server that must not be touched keeps what it has of its GPUs, so the others are placed anew beside it.
    """
    fixed = _fixed(wanted, host, options, prune=prune)
    while True:
        placing = placing_of(wanted, host, lore, fixed)
        changes = _plan_host(wanted, host, placing, options, unsafe_prune=not prune)
        blocked = {change.server: change for change in changes if change.action is Action.BLOCKED}
        stuck = {
            server: Block(reason=change.reason, note=change.note, remedy=change.remedy)
            for server, change in blocked.items()
            if server not in {*placing.blocks, *fixed.still} and host.server(server.slug).process
        }
        if not stuck:
            return changes, placing.asks
        options = replace(options, refused={**options.refused, **stuck})
        fixed = replace(fixed, still=fixed.still | stuck.keys())


def _plan_host(
    wanted: list[DesiredServer], host: HostView, placing: Placing, options: Options, *, unsafe_prune: bool
) -> list[Change]:
    subjects = [subject_of(server, host, options.known, placing.placed.get(server.id)) for server in wanted]
    judged = [_judge(each, options) for each in subjects if _selected(each.wanted.id, options)]
    slugs = {server.id.slug for server in wanted}
    unclaimed: list[Change] = []
    freed: dict[int, str] = {}
    for observed in host.servers:
        server = ServerId.from_slug(observed.slug, host.host)
        if observed.slug not in slugs and exists(observed) and _selected(server, options):
            change = _unclaimed(server, observed, host, prune=options.prune and not unsafe_prune)
            unclaimed.append(change)
            if change.pending:
                freed |= _ports(observed)
    blocks = _blocks(judged, freed, {**placing.blocks, **options.refused})
    changes = [_tried(_change(each, blocks.get(each.subject.wanted.id)), each) for each in judged]
    return [*unclaimed, *in_turn(making_room([_noted(change, placing) for change in changes], host), host)]


def _tried(change: Change, judged: _Judged) -> Change:
    """With what came of it, where the very same was tried before."""
    note = tried_note(judged.subject) if judged.loads and change.pending else ""
    return replace(change, note="; ".join(filter(None, (change.note, note)))) if note else change


def _noted(change: Change, placing: Placing) -> Change:
    """With what a person should know of the GPUs that it is about to get."""
    note = placing.notes.get(change.server, "")
    return replace(change, note=note) if note and not change.note and change.pending else change


def _ports(observed: ObservedServer) -> dict[int, str]:
    """The ports that a server of ours listens on, each with its slug."""
    return dict.fromkeys(observed.process.ports if observed.process else (), observed.slug)


def _blocks(
    judged: list[_Judged], freed: Mapping[int, str], refused: Mapping[ServerId, Block]
) -> dict[ServerId, Block]:
    """What keeps servers from starting. A blocked one keeps its port, which may block the next."""
    blocks: dict[ServerId, Block] = {}
    while True:
        leaving = dict(freed)
        for each in judged:
            if each.leaves and each.subject.wanted.id not in blocks:
                leaving |= _ports(each.subject.observed)
        found = {each.subject.wanted.id: block_of(each.subject, leaving) for each in judged if each.starts}
        now = {server: block for server, block in found.items() if block is not None}
        for each in judged:
            if not each.loads:
                continue
            name = each.subject.wanted.id
            for block in (cordoned(each.subject.wanted), each.shadow, refused.get(name)):
                if block is not None:
                    now.setdefault(name, block)
        if now.keys() == blocks.keys():
            return now
        blocks = now


def subject_of(server: DesiredServer, host: HostView, known: Known, placed: Placed | None = None) -> Subject:
    """A wanted server beside what was seen of it, with what was decided about its GPUs."""
    catalogue = catalogue_for(host.installed(server.executable).version)
    server, tuning = tuned(server, host, catalogue)
    server = with_drain(with_placed(server, placed), catalogue)
    token_known = server.token is not None and server.token in known.tokens
    return Subject(
        wanted=server,
        observed=host.server(server.id.slug),
        host=host,
        launch=make_launch(server, host, catalogue, token_known=token_known),
        runtime=choose(server.runtime, host),
        catalogue=catalogue,
        known=known,
        tuning=tuning,
        placed=placed,
    )


def decision_of(subject: Subject, drift: Drift) -> Decision:
    """The bare decision for a subject, before blocks: what is not in sync, and why."""
    return decide(subject.wanted.state, subject.observed, _phase(subject), drift)


def _phase(subject: Subject) -> Phase:
    timeout = startup_timeout(subject.wanted, weights_of(subject.observed, subject.placed))
    return phase_of(subject.observed, subject.host.now, timeout)


def _judge(subject: Subject, options: Options) -> _Judged:
    drift = drift_of(subject)
    decision = decision_of(subject, drift)
    if subject.wanted.id in options.restart and subject.observed.process and not decision.disruptive:
        decision = Decision(action=Action.RESTART, reason=Reason.REQUESTED, disruptive=True, fields=decision.fields)
    if options.actions is not None and decision.action not in {*options.actions, Action.NOOP}:
        decision = replace(decision, action=Action.NOOP, disruptive=False, note="differs: vmreconcile plan")
    moves = any(field.path == "port" for field in drift.settings)
    shadow = shadow_of(subject, drift, requested=subject.wanted.id in options.restart)
    if decision.reason is Reason.IN_SYNC and drift.shadows:
        note, remedy = (shadow.note, shadow.remedy) if shadow else idle_note(subject)
        decision = replace(decision, reason=Reason.ENV_SHADOWED, fields=drift.shadows, note=note, remedy=remedy)
    return _Judged(subject=subject, phase=_phase(subject), decision=decision, moves=moves, shadow=shadow)


def _change(judged: _Judged, block: Block | None) -> Change:
    subject, decision = judged.subject, judged.decision
    if block is not None:
        decision = Decision(
            action=Action.BLOCKED, reason=block.reason, fields=decision.fields, note=block.note, remedy=block.remedy
        )
    return Change(
        server=subject.wanted.id,
        action=decision.action,
        reason=decision.reason,
        phase=judged.phase,
        disruptive=decision.disruptive,
        fields=decision.fields,
        note=decision.note,
        remedy=decision.remedy,
        tuning=tuple(map(str, subject.tuning)),
        stops=taking_down(subject, decision),
        steps=bringing_up(subject, decision),
        placed=subject.placed,
        gate=gate_of(subject.wanted, subject.observed, subject.placed)
        if subject.wanted.state is DesiredState.RUNNING
        else None,
        digest=digest_of(subject.host, subject.observed),
    )


def _unclaimed(server: ServerId, observed: ObservedServer, host: HostView, *, prune: bool) -> Change:
    decision = decide_unclaimed(observed, prune=prune)
    return Change(
        server=server,
        action=decision.action,
        reason=decision.reason,
        phase=phase_of(observed, host.now, USUAL_TIMEOUT_S),
        disruptive=decision.disruptive,
        note=decision.note,
        remedy=decision.remedy,
        stops=stops_of(host, observed, decision),
        steps=removal(host, observed) if decision.action is Action.REMOVE else (),
        digest=digest_of(host, observed),
    )

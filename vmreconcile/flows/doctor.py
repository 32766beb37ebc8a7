"""The guide's troubleshooting as a program: the controller's side, then every host's. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from vmreconcile.core.access import block_by, endpoint_of, offline, told
from vmreconcile.core.checkup.hub import access_check, unasked_check
from vmreconcile.core.checkup.patient import Patient, judged, well
from vmreconcile.core.checkup.report import unreachable_check
from vmreconcile.core.checkup.whole import host_checks
from vmreconcile.core.selection import named_servers, on_hosts
from vmreconcile.effects.checkup import host_facts
from vmreconcile.effects.hub import reachable
from vmreconcile.effects.lost import reached
from vmreconcile.effects.parallel import for_each
from vmreconcile.errors import UsageError
from vmreconcile.flows.auth import NO_TOKEN, SourceStatus, check_access, source_statuses
from vmreconcile.flows.explaining import explanations
from vmreconcile.flows.inputs import Inputs
from vmreconcile.flows.prepare import Prepared, Reach, prepared
from vmreconcile.flows.reconcile import observe_and_plan
from vmreconcile.model.access import Access
from vmreconcile.model.checkup import Check, Clock, Health, HostFacts
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Unreachable
from vmreconcile.model.showing import masked
from vmreconcile.model.tokens import SourceKind

CHECKUP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What doctor was asked about: hosts, and the servers there (None: all of them)."""

    hosts: tuple[str, ...] | None = None
    servers: frozenset[ServerId] | None = None


def asked_about(names: Sequence[str], inputs: Inputs) -> Asked:
    """What the words of the command line mean: hosts of the inventory, or servers as `start` takes them.

    Raises:
        UsageError: a word is neither.
    """
    if not names:
        return Asked()
    hosts = {name for name in names if name in inputs.inventory.hosts}
    rest = [name for name in names if name not in hosts]
    try:
        servers = named_servers(rest, inputs.desired, wanted=None)
    except UsageError as error:
        raise UsageError(f"neither a host nor a server: {error}", remedy="vmreconcile status") from None
    servers |= {server.id for server in inputs.desired.servers if server.id.host in hosts}
    return Asked(hosts=tuple(sorted(hosts | {server.host for server in servers})), servers=servers)


def examine(inputs: Inputs, reach: Reach, asked: Asked) -> tuple[list[Check], tuple[Unreachable, ...]]:
    """Every check of what was asked about, and the hosts that could not be seen.

    `reach` needs tokens to compare only: a source that fails is a check that fails, and the rest goes on without it.

    Raises:
        InputError: a connection variable cannot be used.
    """
    inputs = _narrowed(inputs, asked)
    sources = source_statuses(inputs, reach)
    failing = frozenset(status.source.name for status in sources if status.problem and status.problem != NO_TOKEN)
    with prepared(inputs, reach) as ready:
        wanted = on_hosts(inputs.desired, ready.hosts).servers
        found, lost = _fleet_checks(ready, wanted)
    here = [*_token_checks(sources), _hub_check(reach)]
    access = _access_checks(_without(failing, inputs), reach, wanted, failing)
    checks = [*here, *access, *found, *map(unreachable_check, lost)]
    return sorted(checks, key=lambda check: check.host), lost


def _narrowed(inputs: Inputs, asked: Asked) -> Inputs:
    """Only the servers that were asked about, and none that is to go."""
    servers = tuple(
        server
        for server in inputs.desired.servers
        if server.state is not DesiredState.ABSENT and (asked.servers is None or server.id in asked.servers)
    )
    return replace(inputs, desired=replace(inputs.desired, servers=servers))


def _without(failing: frozenset[str], inputs: Inputs) -> Inputs:
    """The servers, without the token sources that give none."""
    servers = tuple(
        replace(server, token=None) if server.token in failing else server for server in inputs.desired.servers
    )
    return replace(inputs, desired=replace(inputs.desired, servers=servers))


def _token_checks(sources: Sequence[SourceStatus]) -> Iterator[Check]:
    """Each source that is in use: whether it gives a token, whose, and what else lies about."""
    for status in sources:
        name, place = status.source.name, status.source.place
        if status.problem and status.source.kind is SourceKind.PROMPT:
            summary = f"{name}: it is asked for where it is needed, and not here"
            yield Check(check="token", status=Health.SKIPPED, summary=summary)
        elif status.problem:
            named = status.problem if repr(name) in status.problem else f"{name}: {status.problem}"
            summary = f"{place}: {named}" if place else named
            bad = Health.WARN if status.problem == NO_TOKEN else Health.FAIL
            yield judged("token", good=False, summary=summary, remedy=status.remedy, bad=bad)
        elif status.identity is not None and status.identity.invalid:
            summary = f"{name}: the Hub does not accept the token in {status.found_in}"
            remedy = "vmreconcile auth login, or renew the source"
            yield judged("token", good=False, summary=summary, remedy=remedy)
        else:
            whose = f", of {status.identity.user}" if status.identity and status.identity.user else ""
            yield well("token", f"{name}: found in {status.found_in}{whose}")
        for text in status.warnings:
            remedy = "unset it, so that all programs agree"
            yield judged("token", good=False, summary=text, remedy=remedy, bad=Health.WARN)


def _hub_check(reach: Reach) -> Check:
    """The Hub, as seen from here."""
    environ = reach.options.environ
    if offline(environ):
        summary = "HF_HUB_OFFLINE is set: the Hub is not asked from here"
        return Check(check="hub", status=Health.SKIPPED, summary=summary)
    endpoint = endpoint_of(environ)
    problem = reachable(endpoint)
    summary = f"{masked(endpoint)} {'cannot be reached: ' + problem if problem else 'answers'}"
    remedy = "look at the network here, HTTPS_PROXY and HF_ENDPOINT"
    return judged("hub", not problem, summary, remedy, bad=Health.WARN)


def _access_checks(
    inputs: Inputs, reach: Reach, wanted: Sequence[DesiredServer], failing: frozenset[str]
) -> Iterator[Check]:
    """What the Hub says of each server's model, or why it was not asked."""
    unread = {server.id: server.token for server in wanted if server.token in failing}
    asked: set[ServerId] = set()
    for checked in check_access(inputs, reach, fresh=True):
        asked |= {*checked.servers}
        unknown = checked.verdict.access in {Access.OFFLINE, Access.HUB_UNREACHABLE}
        block, text = block_by(checked.question, checked.verdict), told(checked.question, checked.verdict)
        for server in checked.servers:
            if server in {each.id for each in wanted} and server not in unread:
                yield unasked_check(server, text) if unknown else access_check(server, block, text)
    for each in wanted:
        if each.id in unread:
            yield unasked_check(each.id, f"not asked: token source {unread[each.id]!r} gives no token")
        elif not each.from_hub:
            yield access_check(each.id, None, f"{each.model} is a path: the Hub is not asked")
        elif each.id not in asked:
            yield unasked_check(each.id, "not asked: HF_HUB_OFFLINE is set for this server")


def _fleet_checks(prepared: Prepared, wanted: Sequence[DesiredServer]) -> tuple[list[Check], tuple[Unreachable, ...]]:
    """Every check of every host, and the hosts that could not be seen."""
    view, plan = observe_and_plan(prepared)
    why = explanations(prepared, view, plan)
    phases = {change.server: change.phase for change in plan.changes}
    hosts = {host.host: host for host in view.hosts}
    servers = {name: tuple(server for server in wanted if server.id.host == name) for name in hosts}
    seen, lost = reached(
        for_each(hosts, lambda name: _looked_at(name, servers[name], prepared), prepared.fleet.forks),
        before=view.unreachable,
    )
    found: list[Check] = []
    for name, (facts, clock) in seen.items():
        patient = Patient(
            host=hosts[name],
            facts=facts,
            known=prepared.known,
            wanted=servers[name],
            phases=phases,
            why=why,
            clock=clock,
        )
        found += host_checks(patient)
    return found, lost


def _looked_at(host: str, wanted: Sequence[DesiredServer], prepared: Prepared) -> tuple[HostFacts, Clock | None]:
    """What is on one host, and its clock beside ours."""
    models = [{"slug": server.id.slug, "model": server.model, "env": server.cache_variables} for server in wanted]
    environments = [{name: str(each.value) for name, each in server.env.items()} for server in wanted] or [{}]
    endpoints = sorted({endpoint_of(environ) for environ in environments if not offline(environ)})
    payload: dict[str, object] = {"do": "checkup", "models": models, "endpoints": endpoints}
    sent = time.time()
    answer = prepared.fleet.request(host, payload, timeout=CHECKUP_TIMEOUT_S)
    heard = time.time()
    facts = host_facts(answer)
    return facts, Clock.measured(sent, heard, facts.times) if facts.times else None

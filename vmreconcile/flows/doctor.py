"""The guide's troubleshooting as a program: the controller's side, then every host's. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vmreconcile.core.access import block_by, endpoint_of, offline, told
from vmreconcile.core.checkup import Patient, access_check, host_checks
from vmreconcile.core.selection import named_servers
from vmreconcile.effects.checkup import host_facts
from vmreconcile.effects.hub import reachable
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import InputError, UnreachableError, UsageError
from vmreconcile.flows.auth import check_access, source_statuses
from vmreconcile.flows.explaining import explanations
from vmreconcile.flows.inputs import Inputs
from vmreconcile.flows.prepare import Prepared, Reach
from vmreconcile.flows.reconcile import observe_and_plan
from vmreconcile.model.access import Access
from vmreconcile.model.checkup import Check, Health, HostFacts
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, Unreachable

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


def controller_checks(inputs: Inputs, reach: Reach) -> Iterator[Check]:
    """Tokens and the Hub, as seen from here."""
    try:
        for status in source_statuses(inputs, reach):
            name = status.source.name
            if status.problem:
                bad = Health.WARN if not status.found_in and name == "default" else Health.FAIL
                yield Check(check="token", status=bad, summary=f"{name}: {status.problem}", remedy=status.remedy)
            elif status.identity is not None and status.identity.invalid:
                remedy = "vmreconcile auth login, or renew the source"
                summary = f"{name}: the Hub does not accept the token in {status.found_in}"
                yield Check(check="token", status=Health.FAIL, summary=summary, remedy=remedy)
            else:
                whose = f", of {status.identity.user}" if status.identity and status.identity.user else ""
                yield Check(check="token", status=Health.OK, summary=f"{name}: found in {status.found_in}{whose}")
            for text in status.warnings:
                remedy = "unset it, so that all programs agree"
                yield Check(check="token", status=Health.WARN, summary=text, remedy=remedy)
    except InputError as error:
        yield Check(check="token", status=Health.FAIL, summary=str(error), remedy=error.remedy or "")
    environ = reach.options.environ
    if offline(environ):
        summary = "HF_HUB_OFFLINE is set: the Hub is not asked from here"
        yield Check(check="hub", status=Health.SKIPPED, summary=summary)
        return
    endpoint = endpoint_of(environ)
    problem = reachable(endpoint)
    summary = f"{endpoint} {'cannot be reached: ' + problem if problem else 'answers'}"
    remedy = "look at the network here, HTTPS_PROXY and HF_ENDPOINT" if problem else ""
    yield Check(check="hub", status=Health.WARN if problem else Health.OK, summary=summary, remedy=remedy)


def access_checks(inputs: Inputs, reach: Reach, asked: Asked) -> Iterator[Check]:
    """What the Hub says of each server's model; nothing where nobody can be asked."""
    for checked in check_access(inputs, reach, fresh=True):
        if checked.verdict.access in {Access.OFFLINE, Access.HUB_UNREACHABLE}:
            continue
        block = block_by(checked.question, checked.verdict)
        for server in checked.servers:
            if asked.servers is None or server in asked.servers:
                yield access_check(server, block, told(checked.question, checked.verdict))


def fleet_checks(prepared: Prepared, asked: Asked) -> tuple[list[Check], tuple[Unreachable, ...]]:
    """Every check of every host, and the hosts that could not be seen."""
    before = time.time()
    view, plan = observe_and_plan(prepared)
    now = (before + time.time()) / 2
    why = explanations(prepared, view, plan)
    wanted: dict[str, list[DesiredServer]] = {}
    for server in prepared.inputs.desired.servers:
        if asked.servers is None or server.id in asked.servers:
            wanted.setdefault(server.id.host, []).append(server)
    phases = {change.server: change.phase for change in plan.changes}
    found: list[Check] = []
    lost = [*view.unreachable]
    hosts = {host.host: host for host in view.hosts}
    for name, facts in for_each(
        hosts, lambda name: _facts(hosts[name], wanted.get(name, []), prepared), prepared.fleet.forks
    ):
        if isinstance(facts, UnreachableError):
            lost.append(Unreachable(host=name, reason=facts.reason, remedy=facts.remedy))
        elif isinstance(facts, AgentError):
            lost.append(Unreachable(host=name, reason=f"the agent failed: {facts}"))
        elif isinstance(facts, Exception):
            raise facts
        else:
            host = hosts[name]
            took = (time.time() - before) / 2
            offset = host.now - now
            found += host_checks(
                Patient(
                    host=host,
                    facts=facts,
                    wanted=tuple(wanted.get(name, [])),
                    phases=phases,
                    why=why,
                    offset=offset if abs(offset) > took else 0.0,
                )
            )
    return found, tuple(sorted(lost))


def _facts(host: HostView, wanted: list[DesiredServer], prepared: Prepared) -> HostFacts:
    models = [
        {
            "slug": server.id.slug,
            "model": server.model,
            "env": server.cache_variables,
        }
        for server in wanted
    ]
    environments = [{name: str(each.value) for name, each in server.env.items()} for server in wanted]
    endpoints = sorted({endpoint_of(environ) for environ in environments if not offline(environ)})
    payload: dict[str, object] = {"do": "checkup", "models": models, "endpoints": endpoints}
    return host_facts(prepared.fleet.request(host.host, payload, timeout=CHECKUP_TIMEOUT_S))

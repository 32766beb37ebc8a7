"""Tokens and access as they stand: which source gives whose token to which servers, and what the Hub says of models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from vmreconcile.core.access import (
    OWN_ENDPOINT,
    elsewhere,
    endpoint_of,
    questions_not_asked,
    questions_of,
    without_offline,
)
from vmreconcile.core.resolve import unplaced
from vmreconcile.core.selection import on_hosts
from vmreconcile.core.token_sources import token_sources
from vmreconcile.effects.hub import whoami
from vmreconcile.errors import InputError
from vmreconcile.flows.access import Hub
from vmreconcile.flows.inputs import Inputs, hosts_of
from vmreconcile.flows.prepare import Reach
from vmreconcile.flows.tokens import find_tokens, sources_in_use
from vmreconcile.model.access import CHOSEN, Access, Identity, Question, Verdict
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.tokens import DEFAULT_SOURCE, TokenSource
from vmreconcile.vllm.catalogue import catalogue_for

NO_TOKEN = "there is no token"  # noqa: S105 - what is said of a source, where that is no mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """One source in use: where its token was found ("" for nowhere), whose it is, who has it, why it gives none."""

    source: TokenSource
    found_in: str = ""
    identity: Identity | None = None
    servers: tuple[ServerId, ...] = ()
    warnings: tuple[str, ...] = ()
    problem: str = ""
    remedy: str = ""


def source_statuses(inputs: Inputs, reach: Reach) -> tuple[SourceStatus, ...]:
    """Every source that servers on the selected hosts have, by name; each token's owner is asked of the Hub.

    Where no server has one yet, `default`, which new models get.
    """
    hosts = hosts_of(inputs.inventory, reach.limit)
    sources = token_sources(inputs.inventory)
    return tuple(
        _status(sources[name], inputs, reach) for name in sources_in_use(inputs.desired, hosts) or (DEFAULT_SOURCE,)
    )


def _status(source: TokenSource, inputs: Inputs, reach: Reach) -> SourceStatus:
    hosts = frozenset(hosts_of(inputs.inventory, reach.limit))
    servers = tuple(
        server.id for server in inputs.desired.servers if server.token == source.name and server.id.host in hosts
    )
    try:
        token = find_tokens(inputs, [source.name], reach.tokens)[source.name]
    except InputError as error:
        problem = error.diagnostics[0]
        return SourceStatus(source=source, servers=servers, problem=problem.summary, remedy=problem.remedy)
    if token is None:
        remedy = "vmreconcile auth login, or set HF_TOKEN"
        return SourceStatus(source=source, servers=servers, problem=NO_TOKEN, remedy=remedy)
    hub = Hub(options=reach.options)
    identity = None if hub.offline else whoami(token.secret, endpoint_of(reach.options.environ))
    return SourceStatus(
        source=source, found_in=token.source, identity=identity, servers=servers, warnings=token.warnings
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One question, the Hub's verdict, and the servers that it is about: none for a model of no host."""

    question: Question
    verdict: Verdict
    servers: tuple[ServerId, ...]


def check_access(inputs: Inputs, reach: Reach, *, fresh: bool) -> tuple[Checked, ...]:
    """Every model of the servers on the selected hosts, asked with the token that they get.

    Without a limit also the models that no host has yet; servers that chose to be offline are told of and not asked
    about.

    Raises:
        InputError: a token source fails.
    """
    servers = on_hosts(inputs.desired, hosts_of(inputs.inventory, reach.limit)).servers
    if reach.limit is None:
        servers = (*servers, *_unplaced(inputs))
    wanted = {server.token for server in servers if server.token and server.state is not DesiredState.ABSENT}
    found = find_tokens(inputs, sorted(wanted), reach.tokens)
    tokens = {name: token.secret for name, token in found.items() if token}
    hub = Hub(options=reach.options, secrets=tokens, forks=reach.forks)
    asker = replace(hub.asker, environ=without_offline(reach.options.environ))
    questions, silent = questions_of(servers, asker), questions_not_asked(servers, asker)
    verdicts: Mapping[Question, Verdict] = dict.fromkeys(questions, Verdict(access=Access.OFFLINE))
    if not hub.offline:
        verdicts = hub.verdicts(questions, fresh=fresh)
    checks = [Checked(question=each, verdict=verdicts[each], servers=tuple(ids)) for each, ids in questions.items()]
    checks += [Checked(question=each, verdict=CHOSEN, servers=tuple(ids)) for each, ids in silent.items()]
    return tuple(sorted(checks, key=lambda check: check.question))


def another_hub(inputs: Inputs, reach: Reach) -> str:
    """What is to be said where servers of the selected hosts would ask another Hub than `check_access` does, or ""."""
    servers = on_hosts(inputs.desired, hosts_of(inputs.inventory, reach.limit)).servers
    said = elsewhere(servers, reach.options.environ)
    return said and f"{said}; {OWN_ENDPOINT}"


def _unplaced(inputs: Inputs) -> Iterator[DesiredServer]:
    """The models of no host; one whose source only hosts could define, where there are none, is asked about without."""
    sources = token_sources(inputs.inventory)
    for server in unplaced(inputs.documents, inputs.inventory, catalogue=catalogue_for(None)):
        yield server if server.token is None or server.token in sources else replace(server, token=None)


def refused(checks: Iterable[Checked]) -> bool:
    """Whether some server could not load its model, or should have been asked about and could not be."""
    return any(check.verdict.failed for check in checks)


def counted(checks: Iterable[Checked]) -> Mapping[Access, int]:
    """How many questions ended in which verdict."""
    found: dict[Access, int] = {}
    for check in checks:
        found[check.verdict.access] = found.get(check.verdict.access, 0) + 1
    return found

"""From checked files to a fleet that can be asked: connections, this run's salt, and the tokens that are needed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from vmreconcile.core.access import question_of
from vmreconcile.core.fingerprints import Known, fingerprint
from vmreconcile.core.launching import TOKEN_VARIABLE
from vmreconcile.core.token_sources import token_sources
from vmreconcile.effects.fleet import Fleet, Look, LookedFor, Session
from vmreconcile.effects.token import TokenFound
from vmreconcile.effects.token_sources import Surroundings, read_source
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.errors import Diagnostic, InputError
from vmreconcile.flows.access import Hub
from vmreconcile.flows.inputs import Inputs, connections, hosts_of, refuse
from vmreconcile.model.connection import Connection
from vmreconcile.model.desired import DesiredFleet, DesiredState
from vmreconcile.model.secret import Secret
from vmreconcile.model.tokens import DEFAULT_SOURCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far and how wide to reach: a host pattern or just these hosts, threads, and the transport's options."""

    limit: str | None = None
    hosts: tuple[str, ...] | None = None
    """Names, which as a pattern may mean something else (one with a blank in it, say)."""
    forks: int = 20
    options: TransportOptions
    ask: Callable[[str], str] | None = None
    """Asks a question whose answer does not show; None where nobody is at a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run before it looks at any host."""

    inputs: Inputs
    hosts: tuple[str, ...]
    fleet: Fleet
    known: Known
    secrets: Mapping[str, Secret]
    hub: Hub
    notes: tuple[str, ...] = ()


@contextmanager
def prepared(
    inputs: Inputs, reach: Reach, open_host: Callable[[Connection], Session] | None = None
) -> Iterator[Prepared]:
    """A fleet with every selected host's connection known; its sessions end with the block.

    Raises:
        InputError: a connection variable or the token cannot be used.
    """
    hosts = hosts_of(inputs.inventory, reach.limit) if reach.hosts is None else reach.hosts
    reached = connections(inputs.inventory, hosts)
    salt = secrets.token_hex(16)
    tokens, notes = _secrets(inputs, hosts, reach)
    hub = Hub(options=reach.options, secrets=tokens)
    inputs = replace(inputs, desired=with_architectures(inputs.desired, hosts, hub))
    opener = open_host or _real_opener(reach.options)
    fleet = Fleet(
        open_host=lambda host: opener(reached[host]),
        looks=_looks(inputs.desired, reached),
        salt=salt,
        forks=reach.forks,
    )
    known = Known(
        salt=salt, tokens={name: fingerprint(salt, TOKEN_VARIABLE, token.reveal()) for name, token in tokens.items()}
    )
    try:
        yield Prepared(inputs=inputs, hosts=hosts, fleet=fleet, known=known, secrets=tokens, hub=hub, notes=notes)
    finally:
        fleet.close()


def _real_opener(options: TransportOptions) -> Callable[[Connection], Session]:
    from vmreconcile.effects.session import open_session  # noqa: PLC0415 - kept out of a quick start

    return lambda connection: open_session(connection, options)


def _secrets(inputs: Inputs, hosts: tuple[str, ...], reach: Reach) -> tuple[dict[str, Secret], tuple[str, ...]]:
    """The token of each source that some server on these hosts needs, and what the person should know about them."""
    found = find_tokens(inputs, sources_in_use(inputs.desired, hosts), reach)
    notes = [text for token in found.values() if token for text in token.warnings]
    if found.get(DEFAULT_SOURCE, True) is None:
        notes.append("no Hugging Face token on this controller: tokens that hosts have are left as they are")
    return {name: token.secret for name, token in found.items() if token}, tuple(notes)


def on_hosts(desired: DesiredFleet, hosts: Iterable[str]) -> DesiredFleet:
    """What is wanted on these hosts: `--limit` narrows what is acted on."""
    selected = frozenset(hosts)
    return replace(desired, servers=tuple(server for server in desired.servers if server.id.host in selected))


def sources_in_use(desired: DesiredFleet, hosts: Iterable[str]) -> tuple[str, ...]:
    """The names of the sources that servers on these hosts have; a server that is to go needs none."""
    wanted = (server for server in on_hosts(desired, hosts).servers if server.state is not DesiredState.ABSENT)
    return tuple(sorted({server.token for server in wanted if server.token}))


def find_tokens(inputs: Inputs, names: Iterable[str], reach: Reach) -> dict[str, TokenFound | None]:
    """Read each source once; None where the Hub's own places hold no token.

    Raises:
        InputError: with every source that fails.
    """
    sources = token_sources(inputs.inventory)
    around = Surroundings(environ=reach.options.environ, home=reach.options.home, ask=reach.ask)
    found: dict[str, TokenFound | None] = {}
    problems: list[Diagnostic] = []
    for name in names:
        try:
            found[name] = read_source(sources[name], around)
        except InputError as error:
            problems += error.diagnostics
    refuse(problems)
    return found


def with_architectures(desired: DesiredFleet, hosts: Iterable[str], hub: Hub) -> DesiredFleet:
    """What is wanted, with what the Hub says of models whose architecture a tuning rule asks for.

    Asks nobody where there is no such rule; a model that the Hub does not show is left to the file on its host.
    """
    asked = {
        server.id: question
        for server in on_hosts(desired, hosts).servers
        if server.asks_architecture and (question := question_of(server, hub.asker)) is not None
    }
    if not asked:
        return desired
    verdicts = hub.verdicts(asked.values())
    named = {server: verdicts[question].architectures for server, question in asked.items()}
    return replace(
        desired,
        servers=tuple(replace(each, architectures=named.get(each.id, ())) for each in desired.servers),
    )


def _looks(desired: DesiredFleet, reached: Mapping[str, Connection]) -> dict[str, Look]:
    executables: dict[str, set[str]] = {}
    ports: dict[str, set[int]] = {}
    models: dict[str, list[LookedFor]] = {}
    for server in desired.servers:
        executables.setdefault(server.id.host, set()).add(server.executable)
        ports.setdefault(server.id.host, set()).add(server.port)
        if server.asks_architecture:
            looked_for = LookedFor(
                slug=server.id.slug, model=server.model, revision=server.revision or "", env=server.cache_variables
            )
            models.setdefault(server.id.host, []).append(looked_for)
    return {
        name: Look(
            executables=tuple(sorted(executables.get(name, {connection.vllm_executable}))),
            ports=tuple(sorted(ports.get(name, ()))),
            models=tuple(models.get(name, ())),
            folders=_folders(connection.vllm_state_dir),
        )
        for name, connection in reached.items()
    }


def _folders(state_dir: str) -> dict[str, str] | None:
    return {"config": f"{state_dir}/config", "state": f"{state_dir}/state"} if state_dir else None

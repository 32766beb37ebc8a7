"""From checked files to a fleet that can be asked: connections, this run's salt, and the tokens that are needed."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from vmreconcile.core.access import question_of
from vmreconcile.core.fingerprints import Known, fingerprint
from vmreconcile.core.launching import TOKEN_VARIABLE
from vmreconcile.core.selection import on_hosts
from vmreconcile.effects.author import author_of
from vmreconcile.effects.fleet import Fleet, Session
from vmreconcile.effects.locks import RENEW_S
from vmreconcile.effects.looks import Look, LookedFor
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.flows.access import Hub
from vmreconcile.flows.inputs import Inputs, connections, hosts_of
from vmreconcile.flows.tokens import TokenReader, secrets_for
from vmreconcile.model.connection import Connection
from vmreconcile.model.desired import DesiredFleet
from vmreconcile.model.names import ServerId
from vmreconcile.model.revision import Author
from vmreconcile.model.secret import Secret
from vmreconcile.model.tokens import Need
from vmreconcile.vllm.memory.stored import Checkpoint

PATIENCE = 5.0
"""How many times --timeout a host that was lost in mid-run is tried again: 50 s, after 30 s of silence, by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far and how wide to reach: a host pattern or just these hosts, threads, the transport's options, tokens."""

    limit: str | None = None
    hosts: tuple[str, ...] | None = None
    """Names, which as a pattern may mean something else (one with a blank in it, say)."""
    forks: int = 20
    options: TransportOptions
    tokens: TokenReader
    need: Need = Need.ALL
    lock_timeout: float = 0.0
    """Seconds to wait for a host that another run holds."""
    command: str = ""
    """The command as it was typed, which is shown to whoever is refused a host that this run holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run before it looks at any host."""

    inputs: Inputs
    hosts: tuple[str, ...]
    fleet: Fleet
    known: Known
    secrets: Mapping[str, Secret]
    hub: Hub
    author: Callable[[], Author] = Author
    """Who changes servers in this run, and from which commit."""
    note: str = ""
    """Why, for the history that hosts keep; "" for an apply."""
    notes: tuple[str, ...] = ()
    lock_timeout: float = 0.0
    command: str = ""
    files: dict[ServerId, Checkpoint] = field(default_factory=dict)
    """Files of models that this run has read; it grows."""


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
    tokens, notes = secrets_for(inputs, hosts, reach.tokens, reach.need)
    hub = Hub(options=reach.options, secrets=tokens, forks=reach.forks)
    inputs = replace(inputs, desired=with_architectures(inputs.desired, hosts, hub))
    opener = open_host or _real_opener(reach.options)
    fleet = Fleet(
        open_host=lambda host: opener(reached[host]),
        looks=_looks(inputs.desired, reached),
        salt=salt,
        forks=reach.forks,
        renew=RENEW_S,
        patience=PATIENCE * reach.options.connect_timeout,
    )
    known = Known(
        salt=salt, tokens={name: fingerprint(salt, TOKEN_VARIABLE, token.reveal()) for name, token in tokens.items()}
    )
    try:
        yield Prepared(
            inputs=inputs,
            hosts=hosts,
            fleet=fleet,
            known=known,
            secrets=tokens,
            hub=hub,
            author=functools.cache(lambda: author_of(inputs.models, reach.options.environ)),
            notes=notes,
            lock_timeout=reach.lock_timeout,
            command=reach.command,
        )
    finally:
        fleet.close()


def _real_opener(options: TransportOptions) -> Callable[[Connection], Session]:
    from vmreconcile.effects.session import open_session  # noqa: PLC0415 - kept out of a quick start

    return lambda connection: open_session(connection, options)


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

"""From checked files to a fleet that can be asked: connections, this run's salt, and the tokens that are needed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from vmreconcile.core.fingerprints import Known, fingerprint
from vmreconcile.core.launching import TOKEN_VARIABLE
from vmreconcile.effects.fleet import Fleet, Look, Session
from vmreconcile.effects.token import find_token
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.flows.inputs import Inputs, connections, hosts_of
from vmreconcile.model.connection import Connection
from vmreconcile.model.desired import DesiredFleet, DesiredState
from vmreconcile.model.secret import Secret

DEFAULT_SOURCE = "default"
"""The token source that the Hub's own cache file, then the environment, stands behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far and how wide to reach: a host pattern or just these hosts, threads, and the transport's options."""

    limit: str | None = None
    hosts: tuple[str, ...] | None = None
    """Names, which as a pattern may mean something else (one with a blank in it, say)."""
    forks: int = 20
    options: TransportOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A run before it looks at any host."""

    inputs: Inputs
    hosts: tuple[str, ...]
    fleet: Fleet
    known: Known
    secrets: Mapping[str, Secret]
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
    tokens, notes = _tokens(inputs.desired, reach)
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
        yield Prepared(inputs=inputs, hosts=hosts, fleet=fleet, known=known, secrets=tokens, notes=notes)
    finally:
        fleet.close()


def _real_opener(options: TransportOptions) -> Callable[[Connection], Session]:
    from vmreconcile.effects.session import open_session  # noqa: PLC0415 - kept out of a quick start

    return lambda connection: open_session(connection, options)


def _tokens(desired: DesiredFleet, reach: Reach) -> tuple[dict[str, Secret], tuple[str, ...]]:
    """The token of each source that some server needs, looked up once a run."""
    wanted = {server.token for server in desired.servers if server.state is not DesiredState.ABSENT}
    if DEFAULT_SOURCE not in wanted:
        return {}, ()
    found = find_token(reach.options.environ, reach.options.home)
    if found is None:
        return {}, ("no Hugging Face token on this controller: tokens that hosts have are left as they are",)
    return {DEFAULT_SOURCE: found.secret}, found.warnings


def _looks(desired: DesiredFleet, reached: Mapping[str, Connection]) -> dict[str, Look]:
    executables: dict[str, set[str]] = {}
    ports: dict[str, set[int]] = {}
    for server in desired.servers:
        executables.setdefault(server.id.host, set()).add(server.executable)
        ports.setdefault(server.id.host, set()).add(server.port)
    return {
        name: Look(
            executables=tuple(sorted(executables.get(name, {connection.vllm_executable}))),
            ports=tuple(sorted(ports.get(name, ()))),
            folders=_folders(connection.vllm_state_dir),
        )
        for name, connection in reached.items()
    }


def _folders(state_dir: str) -> dict[str, str] | None:
    return {"config": f"{state_dir}/config", "state": f"{state_dir}/state"} if state_dir else None

"""Ports: two servers on one port of one host, and replicas past the last port. Pure, one pass over all servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vmreconcile.core.checks.source import Finding
from vmreconcile.core.placement import Placement
from vmreconcile.errors import Diagnostic
from vmreconcile.model.document import Document, Path
from vmreconcile.model.values import JsonValue

LAST_PORT = 65_535


class _Claim(NamedTuple):
    """One server's wish for a port: which document says so, where in it, and for which replica."""

    document: int
    path: Path
    replica: int


def check_ports(documents: Sequence[Document], placement: Placement) -> Iterator[Diagnostic]:
    """Report each pair of models that meets on a port once, with the number of hosts; absent servers claim nothing."""
    claims: dict[str, dict[int, _Claim]] = {}
    clashes: dict[tuple[_Claim, _Claim], list[tuple[str, int]]] = {}
    past: dict[tuple[int, Path], Finding] = {}
    for index, document in enumerate(documents):
        for host, port, replicas, path in _servers(document, placement):
            taken = claims.setdefault(host, {})
            for replica in range(replicas):
                if port + replica > LAST_PORT:
                    past.setdefault((index, path), _past_the_last(path, port, replicas))
                    break
                claim = _Claim(index, path, replica)
                first = taken.setdefault(port + replica, claim)
                if first is not claim:
                    clashes.setdefault((first, claim), []).append((host, port + replica))
    for (index, _), finding in past.items():
        yield finding.located(documents[index])
    reported: set[tuple[int, Path, int, Path]] = set()
    for (first, second), where in clashes.items():
        pair = (first.document, first.path, second.document, second.path)
        if pair not in reported:
            reported.add(pair)
            yield _clash(documents, first, second, where)


def _servers(document: Document, placement: Placement) -> Iterator[tuple[str, int, int, Path]]:
    """(host, first port, replicas, path of the port) for every host where the model claims ports."""
    overrides = placement.overrides(document)
    base = _ports(document, ())
    cache: dict[tuple[str, ...], tuple[int, int, Path] | None] = {(): base}
    for host in placement.hosts(document.get("hosts")):
        keys = overrides.get(host, ())
        if keys not in cache:
            cache[keys] = _ports(document, keys)
        found = cache[keys]
        if found is not None:
            yield (host, *found)


def _ports(document: Document, keys: tuple[str, ...]) -> tuple[int, int, Path] | None:
    """(port, replicas, path of the port) with these overrides; None where no port is claimed or none can be read."""
    layers: list[tuple[Path, JsonValue]] = [((), document.get())]
    layers += [(("overrides", key), document.get("overrides", key)) for key in keys]
    port, replicas, state = 0, 1, "running"
    path: Path = ("port",)
    for at, layer in layers:
        if isinstance(layer, Mapping):
            own_port, own_replicas = layer.get("port"), layer.get("replicas")
            if isinstance(own_port, int) and not isinstance(own_port, bool):
                port, path = own_port, (*at, "port")
            if isinstance(own_replicas, int) and not isinstance(own_replicas, bool):
                replicas = own_replicas
            state = str(layer.get("state", state))
    fits = 0 < port <= LAST_PORT and 0 < replicas <= 1024 and state != "absent"
    return (port, replicas, path) if fits else None


def _past_the_last(path: Path, port: int, replicas: int) -> Finding:
    return Finding(
        path=path,
        code="port-range",
        summary=f"{replicas} replicas from port {port} would end at port {port + replicas - 1}.",
        why=f"Replica n listens on port + n, and {LAST_PORT} is the last port.",
        remedy=f"Begin at {LAST_PORT - replicas + 1} or below.",
    )


def _clash(
    documents: Sequence[Document], first: _Claim, second: _Claim, where: Sequence[tuple[str, int]]
) -> Diagnostic:
    one, other = documents[first.document], documents[second.document]
    host, port = where[0]
    hosts = dict.fromkeys(host for host, _ in where)
    more = f" and {len(hosts) - 1} more hosts" if len(hosts) > 2 else " and one more host" if len(hosts) == 2 else ""
    mine, theirs = _called(other, second.replica), _called(one, first.replica)
    into = first.replica > 0 or second.replica > 0
    return Finding(
        path=second.path,
        code="port-taken",
        summary=f"Port {port} on {host}{more} is wanted by both {theirs} and {mine}.",
        why=f"The other one: {one.place(*first.path)}."
        + (" Replica n listens on port + n." if into else " A port takes one server."),
        remedy="Give one of them another port" + (", clear of the other's replicas." if into else "."),
    ).located(other)


def _called(document: Document, replica: int) -> str:
    name = document.get("name")
    text = name if isinstance(name, str) else document.file
    return f"{text}/{replica}" if replica else text

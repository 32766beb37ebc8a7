"""What hosts keep of their servers: read, beside what runs. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmreconcile.core.revisions import changed_fields, newest_good, running
from vmreconcile.effects.lost import reached
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.session import AgentError
from vmreconcile.flows.keeping import REVISIONS_TIMEOUT_S, read_revisions
from vmreconcile.flows.prepare import Prepared
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import ObservedServer, Unreachable
from vmreconcile.model.plan import Field
from vmreconcile.model.revision import Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The revisions of one server, oldest first; `problem` says why they cannot be read."""

    server: ServerId
    observed: ObservedServer
    revisions: tuple[Revision, ...] = ()
    problem: str = ""

    @property
    def running(self) -> Revision | None:
        """The one that runs now."""
        return running(self.revisions, self.observed)

    def fields(self, revision: Revision) -> tuple[Field, ...]:
        """What it changed: what differs from the last good one before it; nothing for the first that is kept."""
        before = newest_good(self.revisions[: self.revisions.index(revision)])
        return changed_fields(before.kept, revision.kept) if before else ()


def histories(servers: Iterable[ServerId], prepared: Prepared) -> tuple[tuple[History, ...], tuple[Unreachable, ...]]:
    """The histories of servers, sorted by name, and the hosts that could not be asked."""
    by_host: dict[str, list[ServerId]] = {}
    for server in sorted(servers):
        by_host.setdefault(server.host, []).append(server)
    results = for_each(by_host, lambda host: _of_host(host, by_host[host], prepared), prepared.fleet.forks)
    found, lost = reached(results)
    return tuple(sorted((each for rows in found.values() for each in rows), key=lambda each: each.server)), lost


def _of_host(host: str, servers: list[ServerId], prepared: Prepared) -> list[History]:
    """Those of one host.

    Raises:
        AgentError: the agent could not answer.
        UnreachableError: the host was lost.
    """
    payload: dict[str, object] = {"do": "revisions", "slugs": [server.slug for server in servers]}
    rows = prepared.fleet.request(host, payload, timeout=REVISIONS_TIMEOUT_S).get("servers")
    kept = {str(row.get("slug")): row for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}
    if not kept:
        raise AgentError("agent-bug", "it names no history")
    view = prepared.fleet.observe_host(host, servers[0].slug if len(servers) == 1 else None)
    return [
        History(
            server=server,
            observed=view.server(server.slug),
            revisions=read_revisions(kept.get(server.slug, {}).get("revisions")),
            problem=str(kept.get(server.slug, {}).get("problem") or ""),
        )
        for server in servers
    ]

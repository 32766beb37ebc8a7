"""How many servers may be down at once: of a model, among hosts, in the whole run. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Plan

Share = int | str
"""A count, or a percentage such as '25%'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """At most `limit` of `servers` may be down at once. `setting` is where a person would change that."""

    name: str
    servers: frozenset[ServerId]
    limit: int
    setting: str


Budgets = Mapping[ServerId, tuple[Budget, ...]]
"""Every budget that a server counts in."""


def budgets_of(servers: Iterable[DesiredServer], whole: Share | None = None) -> Budgets:
    """The budgets of servers that are wanted running; `whole` is the limit for all of them together."""
    running = [server for server in servers if server.state is DesiredState.RUNNING]
    found = [*_of_models(running), *_of_hosts(running)]
    if whole is not None and running:
        everyone = frozenset(server.id for server in running)
        limit = limit_of(whole, len(everyone))
        found.append(Budget(name="the fleet", servers=everyone, limit=limit, setting="--max-unavailable"))
    by_server: dict[ServerId, list[Budget]] = {server.id: [] for server in running}
    for budget in found:
        for server in budget.servers:
            by_server[server].append(budget)
    return {server: tuple(budgets) for server, budgets in by_server.items()}


def limit_of(share: Share, total: int) -> int:
    """How many of `total` that is: a percentage is rounded down, and at least one may always go.

    Where there are several they never go all at once, whatever the file says.
    """
    count = math.floor(total * int(share.removesuffix("%")) / 100) if isinstance(share, str) else share
    return max(1, min(count, total - 1))


def usual_changes(plan: Plan) -> int:
    """How many servers may be taken down in one go without anybody saying so: a third of all, at least 3."""
    return max(3, (len(plan.changes) + len(plan.unreachable_servers)) // 3)


def _of_models(running: Iterable[DesiredServer]) -> Iterable[Budget]:
    models: dict[str, list[DesiredServer]] = {}
    for server in running:
        models.setdefault(server.id.model, []).append(server)
    for name, servers in models.items():
        yield Budget(
            name=name,
            servers=frozenset(server.id for server in servers),
            limit=limit_of(servers[0].rollout.max_unavailable, len(servers)),
            setting="rollout.max_unavailable",
        )


def _of_hosts(running: Iterable[DesiredServer]) -> Iterable[Budget]:
    places: dict[str, list[DesiredServer]] = {}
    for server in running:
        if server.host_limit is not None:
            places.setdefault(server.host_limit.place, []).append(server)
    for place, servers in places.items():
        limit = servers[0].host_limit
        if limit is not None:
            yield Budget(
                name=f"the hosts of {place}",
                servers=frozenset(server.id for server in servers),
                limit=limit_of(limit.max_unavailable, len(servers)),
                setting="vllm_max_unavailable",
            )

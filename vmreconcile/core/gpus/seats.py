"""Which server is on which GPUs while a host is being placed, and how much of each GPU is spoken for. Pure.

A seat counts what its server takes at least: the number that somebody wrote, the one it runs with as long as that may
stay, else what it needs. What is left over is shared out later (`share`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vmreconcile.core.gpus.demand import GIVEN, Demand
from vmreconcile.core.gpus.ground import Ground
from vmreconcile.core.gpus.tenants import Tenant
from vmreconcile.model.names import ServerId
from vmreconcile.vllm.memory.predict import CONTEXT


@dataclass(slots=True)
class Seats:
    """Servers on the GPUs of one host. Grows while servers are placed; one that is there stays."""

    ground: Ground
    taken: dict[ServerId, tuple[str, ...]] = field(default_factory=dict)
    tenants: dict[ServerId, Tenant] = field(default_factory=dict)

    def put(self, tenant: Tenant, devices: tuple[str, ...]) -> None:
        """Give a server its GPUs."""
        self.taken[tenant.id] = devices
        self.tenants[tenant.id] = tenant

    def leave(self, tenant: Tenant) -> None:
        """Take a server's GPUs back."""
        del self.taken[tenant.id], self.tenants[tenant.id]

    def on(self, uuid: str) -> tuple[Tenant, ...]:
        """The servers on one GPU, by rank."""
        found = [self.tenants[server] for server, devices in self.taken.items() if uuid in devices]
        return tuple(sorted(found, key=lambda tenant: tenant.rank))

    def moves(self, tenant: Tenant) -> bool:
        """Whether a running server gets other GPUs than it is on."""
        return bool(tenant.now) and set(tenant.now) != set(self.taken[tenant.id])

    def beside(self, tenant: Tenant) -> tuple[Tenant, ...]:
        """The servers that share a GPU with one."""
        found = {each.id: each for uuid in self.taken.get(tenant.id, ()) for each in self.on(uuid)}
        return tuple(each for server, each in sorted(found.items()) if server != tenant.id)

    def takes(self, tenant: Tenant, number: float, uuid: str) -> float:
        """Bytes that a server with a seat takes; for one that is alone what a person wrote stands, not an estimate."""
        if tenant.number is not None and len(self.on(uuid)) == 1:
            return number * self.ground.cards[uuid].total
        return takes(tenant, number, uuid, self.ground)

    def is_free(self, uuid: str, share: float) -> bool:
        """Whether nobody of ours is on a GPU, and others leave `share` of it.

        Where nobody holds anything, CUDA's context is not counted: on a small GPU it takes less than is estimated.
        """
        if self.on(uuid):
            return False
        total = self.ground.cards[uuid].total
        empty = not self.ground.others[uuid] and total > CONTEXT
        return empty or self.ground.room(uuid, 1) >= share * total

    def left(self, uuid: str, *, shrunk: bool) -> int | None:
        """Bytes of a GPU for one server more; None where nobody can say what those on it need.

        `shrunk`: with those that run at what they need, instead of at what they have.
        """
        tenants = self.on(uuid)
        room = self.ground.room(uuid, len(tenants) + 1)
        for tenant in tenants:
            least = least_of(tenant, uuid, self.ground, shrunk=shrunk)
            if least is None:
                return None
            room -= least
        return room

    def has_room(self, tenant: Tenant, uuid: str) -> bool:
        """Whether one server more fits beside those on a GPU, at least once they shrink to what they need."""
        left, least = self.left(uuid, shrunk=True), least_of(tenant, uuid, self.ground, shrunk=True)
        return left is not None and least is not None and least <= left


def takes(tenant: Tenant, number: float, uuid: str, ground: Ground) -> float:
    """Bytes of a GPU that a server takes which is started with a utilization.

    With a KV cache of its own size, vLLM looks at the utilization only to see that so much is free.
    """
    size = number * ground.cards[uuid].total
    demand = tenant.hint(uuid) if GIVEN in tenant.server.settings else ""
    return size if isinstance(demand, str) else max(size, demand.total)


def least_of(tenant: Tenant, uuid: str, ground: Ground, *, shrunk: bool) -> int | None:
    """Bytes of a GPU that a server takes at least, None where nobody can say."""
    total = ground.cards[uuid].total
    if tenant.number is not None:
        return int(takes(tenant, tenant.number, uuid, ground))
    if not shrunk and tenant.runs and tenant.chosen and tenant.runs_with is not None:
        return int(tenant.runs_with * total)
    demand = tenant.demand(uuid)
    if isinstance(demand, str):
        return None
    return max(demand.total, int(tenant.floor * total))


def unknown_on(seats: Seats, uuid: str) -> Iterator[tuple[Tenant, str]]:
    """The servers on a GPU of which nobody can say what they need, each with the reason."""
    for tenant in seats.on(uuid):
        if tenant.number is None and isinstance(reason := tenant.demand(uuid), str):
            yield tenant, reason


def demands(tenant: Tenant, devices: tuple[str, ...]) -> Mapping[str, Demand | str]:
    """What a server needs of each of some GPUs."""
    return {uuid: tenant.demand(uuid) for uuid in devices}

"""What is known of models' memory: their files, and what vLLM measured on any host of the fleet. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vmreconcile.core.gpus.demand import LENGTH, UNREAD, Demand, demand_of
from vmreconcile.core.gpus.ground import Ground
from vmreconcile.core.gpus.keys import memory_key
from vmreconcile.core.gpus.tenants import Tenant
from vmreconcile.model.gpus import Measured
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView
from vmreconcile.vllm.memory.stored import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Lore:
    """What is known of models' memory: their files by server, and what was measured on any host of the fleet."""

    models: Mapping[ServerId, Checkpoint] = field(default_factory=dict)
    unread: Mapping[ServerId, str] = field(default_factory=dict)
    measured: Mapping[tuple[str, str, str], Measured] = field(default_factory=dict)
    """By key, name of the GPU and version of vLLM."""
    reckoned: dict[object, Demand | str] = field(default_factory=dict, compare=False, repr=False)
    """What was worked out for one host: a fleet has the same few models on many hosts."""


def lore_of(
    view: FleetView, models: Mapping[ServerId, Checkpoint], unread: Mapping[ServerId, str] | None = None
) -> Lore:
    """What the hosts' records say; of several alike the one that left least for the KV cache."""
    found: dict[tuple[str, str, str], Measured] = {}
    for host in view.hosts:
        for server in host.servers:
            measured = server.record.measured if server.record else None
            if measured is None or not measured.figures.beside:
                continue
            key = (measured.key, measured.gpu, measured.vllm_version)
            before = found.get(key)
            if before is None or (before.figures.beside or 0) < measured.figures.beside:
                found[key] = measured
    return Lore(models=models, unread=unread or {}, measured=found)


class Knowledge:
    """What servers need of GPUs, each worked out once; remembers whose files would be wanted."""

    def __init__(self, ground: Ground, lore: Lore) -> None:
        """Remember the GPUs and what is known."""
        self.asks: set[ServerId] = set()
        self._ground = ground
        self._lore = lore
        self._known: dict[tuple[ServerId, str, int], Demand | str] = {}

    def given_to(self, tenant: Tenant) -> Tenant:
        """The server with a way to ask."""

        def hint(uuid: str) -> Demand | str:
            card = self._ground.cards[uuid]
            at = (tenant.id, card.name, card.total)
            if at not in self._known:
                key = (memory_key(tenant.server), card.name, tenant.version)
                checkpoint, measured = self._lore.models.get(tenant.id), self._lore.measured.get(key)
                length = tenant.server.settings.get(LENGTH)
                alike = (key, card, str(length and length.value), tenant.server.needs, id(checkpoint))
                found = self._lore.reckoned.get(alike) or demand_of(
                    tenant.server, card, tenant.version, checkpoint, measured
                )
                self._lore.reckoned[alike] = found
                self._known[at] = self._lore.unread.get(tenant.id, found) if found == UNREAD else found
            return self._known[at]

        def ask(uuid: str) -> Demand | str:
            found = hint(uuid)
            if found == UNREAD:
                self.asks.add(tenant.id)
            return found

        return replace(tenant, demand=ask, hint=hint)

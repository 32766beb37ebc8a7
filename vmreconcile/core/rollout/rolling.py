"""How one model's servers are gone through: canaries first, then wave after wave, until too many failed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vmreconcile.core.gpus.lanes import Wanted, starts
from vmreconcile.core.rollout.units import Unit
from vmreconcile.model.desired import Rollout
from vmreconcile.model.names import ServerId


@dataclass(slots=True)
class Rolling:
    """One model on its way. A wave may be joined until the first of it is done; then it ends before the next begins."""

    model: str
    rollout: Rollout
    canaries: int = 0
    """How many are still to be proven before any other begins."""
    tried: set[ServerId] = field(default_factory=set)
    """Canaries at work: whoever may begin first is one."""
    wave: set[ServerId] = field(default_factory=set)
    """Servers that serve no more, and are not done yet."""
    closed: bool = False
    resumes: float = 0.0
    """When the pause after the last wave ends."""
    failed: list[ServerId] = field(default_factory=list)
    broken: bool = False
    """Whether a canary failed."""

    @classmethod
    def of(cls, model: str, units: Sequence[Unit], wanted: Wanted) -> Rolling:
        """As the model's file says of the servers that these units start."""
        changes = [change for unit in units for change in unit.changes]
        servers = [change.server for change in changes if change.server.model == model and starts(change)]
        known = next((server for each in servers if (server := wanted.get(each)) is not None), None)
        rollout = known.rollout if known else Rollout()
        return cls(model=model, rollout=rollout, canaries=min(rollout.canary, len(servers)))

    @property
    def stopped(self) -> bool:
        """Whether nothing more of it begins, because too many failed."""
        return self.broken or len(self.failed) > self.rollout.max_failures

    @property
    def told(self) -> str:
        """Who failed, for a person."""
        names = ", ".join(map(str, self.failed[:3])) + (" …" if len(self.failed) > 3 else "")
        if self.broken:
            return f"{names} failed, and a canary must be ready before others are touched"
        return f"{names} failed, and rollout.max_failures is {self.rollout.max_failures}"

    def admits(self, takes_down: frozenset[ServerId], now: float) -> bool:
        """Whether a unit may begin: canaries before all others, after a pause, and what serves only within a wave."""
        if self.canaries and len(self.tried) >= self.canaries:
            return False
        if now < self.resumes:
            return False
        return not self.closed or not any(server.model == self.model for server in takes_down)

    def begins(self, servers: frozenset[ServerId], takes_down: frozenset[ServerId]) -> None:
        """A unit of these servers begins, which takes some of them down."""
        if self.canaries:
            self.tried |= {server for server in servers if server.model == self.model}
        self.wave |= {server for server in takes_down if server.model == self.model}

    def ends(self, server: ServerId, *, well: bool, failed: bool, now: float) -> None:
        """A server is done. The last one of a wave, or of the canaries, begins the pause."""
        canary = server in self.tried
        self.tried.discard(server)
        if failed:
            self.failed.append(server)
            self.broken = self.broken or canary
        elif canary and well:
            self.canaries = max(0, self.canaries - 1)
        if server in self.wave:
            self.wave.discard(server)
            self.closed = bool(self.wave)
        elif not (canary and not self.canaries):
            return
        if not self.wave:
            self.resumes = max(self.resumes, now + self.rollout.pause)

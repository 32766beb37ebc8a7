"""A start that failed for memory as `mending` looks at it, and what was decided once its numbers are others. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from vmreconcile.core.gpus.demand import GIVEN, LENGTH, SHARE, is_open
from vmreconcile.core.gpus.ground import Ground, ground_of
from vmreconcile.core.gpus.lanes import starts
from vmreconcile.core.gpus.mending import Attempt, Mend
from vmreconcile.core.gpus.tenants import Tenant
from vmreconcile.model.gpus import Gpu, Placed
from vmreconcile.model.observed import HostView
from vmreconcile.model.plan import Change
from vmreconcile.vllm.memory.predict import CONTEXT
from vmreconcile.vllm.shortage import Lack

ABOUT_SHARES = frozenset({Lack.USED, Lack.MOVED})
"""Failures that are about what vLLM asks for at first, not about its KV cache."""


def attempt_of(tenant: Tenant, placed: Placed, host: HostView, later: Iterable[Change]) -> Attempt | None:
    """The start of a server as it was decided, on its host as it is after that start failed.

    `later` are changes that are still to be carried out: memory that they are to get is not free. None where a GPU of
    the server is not seen, or nothing is known of its memory.
    """
    ground, later = ground_of(host, (), ()), tuple(later)
    if not placed.devices or any(uuid not in ground.cards for uuid in placed.devices):
        return None
    share = placed.settings.get(SHARE, tenant.default if tenant.number is None else tenant.number)
    return Attempt(
        share=float(share) if isinstance(share, int | float) else tenant.default,
        total=min(ground.cards[uuid].total for uuid in placed.devices),
        room=min(_room(ground.gpus[uuid], host, later) for uuid in placed.devices),
        least=placed.least,
        floor=tenant.floor,
    )


def _room(gpu: Gpu, host: HostView, later: tuple[Change, ...]) -> int:
    """What a start may take of a GPU for itself."""
    return gpu.memory_free - CONTEXT - sum(_to_come(change, gpu, host) for change in later if starts(change))


def _to_come(change: Change, gpu: Gpu, host: HostView) -> int:
    """What a server that is still to be started will take of a GPU, beside what it holds now and gives up first."""
    placed = change.placed
    if placed is None or gpu.uuid not in placed.devices or not placed.requested:
        return 0
    asked = placed.requested[placed.devices.index(gpu.uuid)] + CONTEXT
    mine = host.server(change.server.slug).pids
    return max(0, asked - sum(size or 0 for pid, size in gpu.processes if pid in mine))


def left_to_us(tenant: Tenant) -> frozenset[str]:
    """The numbers that nobody wrote for a server, and no rule sets."""
    share = {SHARE} if tenant.number is None else set()
    return frozenset(share | ({LENGTH} if is_open(tenant.server) else set()))


def is_about_given_bytes(tenant: Tenant, lack: Lack) -> bool:
    """Whether it failed with a size of the KV cache that somebody wrote, which no share changes."""
    return GIVEN in tenant.server.settings and lack not in ABOUT_SHARES


def mended(placed: Placed, way: Mend, host: HostView) -> Placed:
    """What was decided, with these numbers instead."""
    if not way.settings:
        return placed
    reasons = [reason for reason in placed.reasons if reason.partition(" ")[0] not in way.settings]
    return replace(
        placed,
        settings={**placed.settings, **way.settings},
        requested=_requested(placed, way.settings, ground_of(host, (), ())),
        reasons=(*reasons, f"{way}: {way.why}"),
    )


def _requested(placed: Placed, settings: Mapping[str, object], ground: Ground) -> tuple[int, ...]:
    share = settings.get(SHARE)
    if not isinstance(share, int | float):
        return placed.requested
    return tuple(math.ceil(share * ground.cards[uuid].total) for uuid in placed.devices)

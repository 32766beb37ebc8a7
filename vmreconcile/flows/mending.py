"""A start that failed for memory is tried once more, with numbers that do, where they were left to the tool."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vmreconcile.core.gpus.attempts import attempt_of, is_about_given_bytes, left_to_us, mended
from vmreconcile.core.gpus.lanes import starts
from vmreconcile.core.gpus.mending import Mends, mends
from vmreconcile.core.placing import tenant_on
from vmreconcile.core.planning import subject_of
from vmreconcile.effects.session import AgentError
from vmreconcile.flows.failing import NotReady
from vmreconcile.flows.run import Run
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Change
from vmreconcile.vllm.shortage import shortage_of

PAUSE_S = 0.5
LONGEST_WAIT_S = 10.0
"""The memory of a start that ended is given back by then."""

MOVING = 1 << 26
"""Bytes by which free memory may grow from one look to the next and still counts as settled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """The second try: the change with other numbers, and how it is told."""

    change: Change
    told: str


def second_try(change: Change, first: NotReady, run: Run, later: Iterable[Change]) -> Again:
    """What to try after a start failed; `later` are the changes that come after it on the same GPUs.

    Raises:
        NotReady: `first`, where nothing may be tried; with the numbers that would do, or why none do.
        UnreachableError: the host was lost.
    """
    wanted, placed = run.desired.get(change.server), change.placed
    shortage = shortage_of(first.failure.kind, first.lines) if first.lines else None
    if shortage is None or wanted is None or placed is None or not starts(change) or run.stopping.is_set():
        raise first
    try:
        host = settled(change.server, placed, run)
    except AgentError:
        raise first from None
    tenant = tenant_on(wanted, host)
    attempt = attempt_of(tenant, placed, host, later)
    if attempt is None or is_about_given_bytes(tenant, shortage.lack):
        raise first
    found, ours = mends(shortage, attempt), left_to_us(tenant)
    way = next((way for way in found.ways if way.settings.keys() <= ours), None)
    if way is None:
        raise NotReady(_told(first.failure, found)) from first
    decided = mended(placed, way, host)
    told = f"second try, with {way}; the first, with {attempt.share:g}, ended with {shortage.lack}"
    return Again(change=_anew(change, wanted, decided, host, run), told=f"{told}: {way.why}")


def _anew(change: Change, wanted: DesiredServer, placed: Placed, host: HostView, run: Run) -> Change:
    """The change of a server that does not run any more, with what is decided now."""
    subject = subject_of(wanted, host, run.known, placed)
    steps = subject.runtime.start(subject.launch)
    return replace(change, placed=placed, stops=(), steps=steps, early=False, digest={})


def settled(server: ServerId, placed: Placed, run: Run) -> HostView:
    """The host once the memory of the failed start was given back: its GPUs look twice the same."""
    begun, before = time.monotonic(), _free(server, placed, run)
    while time.monotonic() - begun < LONGEST_WAIT_S:
        time.sleep(PAUSE_S)
        now = _free(server, placed, run)
        if now <= before + MOVING:
            break
        before = now
    return run.fleet.observe_host(server.host)


def _free(server: ServerId, placed: Placed, run: Run) -> int:
    host = run.fleet.observe_gpus(server.host)
    return sum(gpu.memory_free for gpu in host.gpus if gpu.uuid in placed.devices)


def _told(failure: Failure, found: Mends) -> Failure:
    """The failure with the numbers: what would do and is not ours to write, or why nothing does."""
    against = f"; {found.against}" if found.against else ""
    would_do = " or ".join(f"{way} would do ({way.why})" for way in found.ways if way.settings)
    remedy = f"{would_do}; {failure.remedy}" if would_do else failure.remedy
    return replace(failure, summary=f"{failure.summary}{against}", remedy=remedy)

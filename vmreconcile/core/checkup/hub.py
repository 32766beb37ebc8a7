"""The Hub as a host reaches it, and what it says of a server's model."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checkup.patient import Patient, judged
from vmreconcile.model.checkup import Check, Health
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Block
from vmreconcile.model.showing import masked

REMEDY = "look at the host's network, or at HTTPS_PROXY and HF_ENDPOINT under env; models on the host still start"


def hub_checks(patient: Patient) -> Iterator[Check]:
    """Every endpoint that the host's servers ask."""
    if not patient.facts.hubs:
        summary = "not asked: HF_HUB_OFFLINE is set for every server here"
        yield Check(check="hub", status=Health.SKIPPED, summary=summary)
    for hub in patient.facts.hubs:
        told = f"cannot be reached: {hub.problem}" if hub.problem else f"answers ({hub.seconds:.1f} s)"
        yield judged("hub", not hub.problem, f"{masked(hub.endpoint)} {told}", REMEDY, bad=Health.WARN)


def access_check(server: ServerId, block: Block | None, told: str) -> Check:
    """What the Hub says of a server's model, as a check."""
    status = Health.OK if block is None else Health.FAIL
    remedy = block.remedy if block else ""
    return Check(check="access", status=status, summary=told, remedy=remedy, host=server.host, server=str(server))


def unasked_check(server: ServerId, why: str) -> Check:
    """A server's model that the Hub was not asked about."""
    return Check(check="access", status=Health.SKIPPED, summary=why, host=server.host, server=str(server))

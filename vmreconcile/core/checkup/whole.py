"""Every check of one host, in the order in which a person would look."""

from __future__ import annotations

from dataclasses import replace

from vmreconcile.core.checkup.engine import vllm_checks
from vmreconcile.core.checkup.gpus import gpu_checks
from vmreconcile.core.checkup.ground import ground_checks
from vmreconcile.core.checkup.hub import hub_checks
from vmreconcile.core.checkup.limits import limit_checks
from vmreconcile.core.checkup.others import other_checks
from vmreconcile.core.checkup.patient import Patient
from vmreconcile.core.checkup.servers import server_checks
from vmreconcile.core.checkup.space import space_checks
from vmreconcile.model.checkup import Check

ROOMS = (
    ground_checks,
    vllm_checks,
    gpu_checks,
    space_checks,
    limit_checks,
    hub_checks,
    server_checks,
    other_checks,
)


def host_checks(patient: Patient) -> tuple[Check, ...]:
    """One line a check, each with its host."""
    return tuple(replace(check, host=patient.host.host) for room in ROOMS for check in room(patient))

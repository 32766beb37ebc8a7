"""What vmreconcile itself stands on: Python, its folders, the clock, a runtime, lingering."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checkup.patient import Patient, judged, well
from vmreconcile.model.checkup import Check, Clock, Health

CLOCK_S = 30.0
"""Seconds that a host's clock may be off: TLS and the Hub's signed links bear more, logs beside each other do not."""


def ground_checks(patient: Patient) -> Iterator[Check]:
    """A host without a Python new enough is not among those that were seen: `report.unreachable_check` says so."""
    host = patient.host
    yield well("python", f"Python {host.python}, user {host.user}")
    yield judged(
        "folders",
        not host.folder_problem,
        host.folder_problem or f"{host.config_dir} and {host.state_dir} can be written",
        f"let {host.user}, and nobody else, write there, or set vllm_state_dir",
    )
    if patient.clock is not None:
        yield _clock(patient.clock)
    for runtime in patient.runtimes:
        trouble = runtime.problem(host)
        with_version = f", systemd {host.systemd.version}" if host.systemd.version else ""
        yield judged(
            "runtime",
            not trouble,
            f"runtime {runtime.name}: {trouble}" if trouble else f"runtime {runtime.name}{with_version}",
            "set vllm_runtime: process for this host, or mend systemd there",
        )
    yield _lingering(patient)


def _clock(clock: Clock) -> Check:
    """Off by more than is borne, whatever the way of the question and its answer hides."""
    off, within = abs(clock.offset), f"(± {clock.tolerance:.2f} s)"
    side = "ahead of" if clock.offset > 0 else "behind"
    agrees = off <= max(clock.tolerance, 0.005)
    return judged(
        "clock",
        off - clock.tolerance <= CLOCK_S,
        f"the clock agrees with the one here {within}" if agrees else f"{off:.2f} s {side} the clock here {within}",
        "let the host keep its clock with NTP (timedatectl set-ntp true)",
        bad=Health.WARN,
    )


def _lingering(patient: Patient) -> Check:
    """Only a user's own units end with the login."""
    host = patient.host
    if host.systemd.scope != "user":
        return well("lingering", "not needed: the units are the system's")
    if all(runtime.name != "systemd" for runtime in patient.runtimes):
        return well("lingering", "not needed: no server is a unit")
    return judged(
        "lingering",
        host.systemd.lingering is True,
        f"units of {host.user} {'outlive' if host.systemd.lingering else 'end with'} the login",
        f"loginctl enable-linger {host.user} (apply does so at the first start, where it is allowed to)",
        bad=Health.WARN,
    )

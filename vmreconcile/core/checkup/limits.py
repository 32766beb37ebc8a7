"""Limits as a server gets them: what its runtime asks for, within what starts it. Never those of a login alone.

Locked memory is not judged: vLLM locks none itself, what CUDA pins does not count, and only RDMA between hosts would.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checkup.patient import Patient, judged, well
from vmreconcile.model.checkup import Check, Health, Limit, Limits
from vmreconcile.runtimes.base import Runtime

LEAST_FILES = 65_535
"""What vLLM raises its own limit to, or warns of 'Too many open files' (set_ulimit in vllm/utils/system_utils.py)."""

LEAST_PROCESSES = 4096
"""Threads count too (setrlimit(2)), and each of a server's processes may start one a core in each of its pools: eight
GPUs on 128 cores are beyond a thousand. As many as Red Hat gives a user (/etc/security/limits.d/20-nproc.conf)."""


def limit_checks(patient: Patient) -> Iterator[Check]:
    """Open files and processes, for each runtime in use."""
    for runtime in patient.runtimes:
        limits = _inherited(runtime, patient)
        if limits is None:
            summary = f"{runtime.name}: {runtime.open_files} asked for; what {_whose(patient)} allows cannot be seen"
            yield Check(check="open files", status=Health.SKIPPED, summary=summary)
            continue
        if limits.open_files is not None:
            yield _files(runtime, limits.open_files, patient)
        if patient.host.uid == 0:
            yield well("processes", f"{runtime.name}: no limit holds for root")
        elif limits.processes is not None:
            yield _processes(runtime, limits.processes, patient)


def _inherited(runtime: Runtime, patient: Patient) -> Limits | None:
    """Limits of what starts a server: the login for a process, systemd for a unit (None: not to be seen)."""
    return patient.facts.systemd if runtime.name == "systemd" else patient.facts.login


def _whose(patient: Patient) -> str:
    return f"systemd of {patient.host.user}" if patient.host.systemd.scope == "user" else "systemd"


def _files(runtime: Runtime, inherited: Limit, patient: Patient) -> Check:
    """A unit gets what it asks for as far as its manager may give it; a process raises its own as far as it may."""
    asked, most = runtime.open_files, inherited.hard
    if asked is not None:
        gets = asked if most < 0 else min(asked, most)
        whose = "" if gets == asked else f", for {_whose(patient)} may give no more"
        summary = f"{runtime.name}: {gets} open files of {asked} that a unit asks for{whose}"
        return judged("open files", gets >= LEAST_FILES, summary, _raise(runtime, "NOFILE", patient), bad=Health.WARN)
    summary = f"{runtime.name}: {_count(inherited.soft)} open files, {_count(most)} at most"
    good = most < 0 or most >= LEAST_FILES
    return judged("open files", good, summary, _raise(runtime, "NOFILE", patient), bad=Health.WARN)


def _processes(runtime: Runtime, inherited: Limit, patient: Patient) -> Check:
    """The soft limit counts: nobody raises it."""
    good = inherited.soft < 0 or inherited.soft >= LEAST_PROCESSES
    summary = f"{runtime.name}: {_count(inherited.soft)} processes and threads of {patient.host.user}"
    return judged("processes", good, summary, _raise(runtime, "NPROC", patient), bad=Health.WARN)


def _raise(runtime: Runtime, name: str, patient: Patient) -> str:
    least = LEAST_FILES if name == "NOFILE" else LEAST_PROCESSES
    if runtime.name != "systemd":
        return f"{name.lower()} of {least} or more in /etc/security/limits.conf, then log in anew"
    if patient.host.systemd.scope == "user":
        return f"systemctl edit user@.service: [Service] Limit{name}={least} or more; then log in anew"
    return "systemd itself is limited, as in a container: raise it where that is started"


def _count(limit: int) -> str:
    return "any number of" if limit < 0 else str(limit)

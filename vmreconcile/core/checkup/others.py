"""What is on a host beside wanted servers: orphans, strangers, leftovers, tokens of logins, bad records."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checkup.patient import GIB, Patient, judged, well
from vmreconcile.model.checkup import Check, Health, Leftover

NAMED = 4
"""Leftovers that are named; the others are counted."""


def other_checks(patient: Patient) -> Iterator[Check]:
    """One line for each thing found, or one that nothing of its kind was."""
    for name, checks, none in (
        ("orphan", _orphans(patient), "no worker without its server"),
        ("stranger", _strangers(patient), "no vLLM but ours"),
        ("leftover", _leftovers(patient), "nothing of a killed vLLM in /dev/shm and /tmp"),
        ("token", _token_files(patient), "no login file names one"),
        ("record", _records(patient), "every record of ours can be read"),
    ):
        yield from [*checks] or [well(name, none)]


def _orphans(patient: Patient) -> Iterator[Check]:
    for orphan in patient.host.orphans:
        remedy = "vm cleanup ends it" if orphan.server else "not ours: look whose it is before you end it"
        summary = f"pid {orphan.pid} {orphan.title}{_held(orphan.gpu_memory_bytes)}"
        yield judged("orphan", good=False, summary=summary, remedy=remedy, bad=Health.WARN)


def _strangers(patient: Patient) -> Iterator[Check]:
    for stranger in patient.host.strangers:
        held = _held(stranger.gpu_memory_bytes)
        yield well("stranger", f"pid {stranger.pid}, {stranger.user}{held}: left alone, not ours")


def _held(memory: int | None) -> str:
    return f", {memory / GIB:.1f} GiB of GPU memory" if memory else ""


def _leftovers(patient: Patient) -> Iterator[Check]:
    """One line a folder: a killed vLLM leaves many."""
    folders: dict[str, list[Leftover]] = {}
    for left in patient.facts.leftovers:
        folders.setdefault(left.path.rpartition("/")[0], []).append(left)
    for folder, found in folders.items():
        names = ", ".join(left.path.rpartition("/")[2] for left in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        size = sum(left.size for left in found) / (1 << 20)
        oldest = _age(max(left.age for left in found))
        yield judged(
            "leftover",
            good=False,
            summary=f"{folder}: {size:.0f} MiB that no process uses: {names}{more}; up to {oldest} old",
            remedy="left by killed servers: look at them on the host, and delete them there",
            bad=Health.WARN,
        )


def _age(seconds: float) -> str:
    for unit, letter in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {letter}"
    return f"{seconds:.0f} s"


def _token_files(patient: Patient) -> Iterator[Check]:
    for variable, path, line in patient.facts.token_files:
        yield well("token", f"{variable} in {path}:{line} is for logins; no server of ours gets it")


def _records(patient: Patient) -> Iterator[Check]:
    for server in patient.host.servers:
        for problem in server.problems:
            remedy = "mend or remove it on the host"
            yield judged("record", good=False, summary=problem, remedy=remedy, bad=Health.WARN)

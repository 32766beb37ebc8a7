"""Ending servers of ours: the stop sequences for runtime `process` and for orphans.

vLLM swallows one TERM while it starts, and its workers outlive a root that is killed; so: TERM, wait, TERM, wait, KILL,
and then whatever is left of the session. Every signal follows a fresh judgement by `classify`.
"""

from __future__ import annotations

import os

from . import proc, signals, survey
from .classify import Known, classify, owner, worker_of
from .problems import Problem
from .signals import KILL, TERM, Pinned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .folders import Folders

AGAIN_S = 10.0  # after the second TERM; vLLM needs 2 to 8 s
WORKERS_S = 10.0  # an orphaned engine ends within 6 s of a TERM
DYING_S = 0.5  # a process that is being killed loses its environment shortly before it is gone
KILL_S = 10.0  # a process in an uninterruptible driver call may need seconds


def known_now(folders: Folders, *, with_units: bool) -> Known:
    """What is ours on this host at this moment."""
    seen = survey.Survey(folders)
    if with_units:
        seen.read_units()
    return seen.known()


def session(slug: str, known: Known) -> list[Pinned]:
    """Every process that the recorded root of a server started and that is proven ours; the root not among them."""
    root = known.root_of(slug)
    if root is None:
        return []
    alive = {}
    for pid in proc.pids():
        seen = proc.stat(pid)
        if seen is not None and seen.session == root[0]:
            full = proc.load(pid)
            if full is not None:
                alive[pid] = full
    proven = (process for process in alive.values() if worker_of(process, alive, known) == slug)
    return [Pinned(process.pid, process.start_ticks) for process in proven if process.pid != root[0]]


def recorded_runs(slug: str, record: dict[str, Any]) -> bool:
    """Whether the process that a record names is there at this moment."""
    root = Known(proc.boot_id(), {slug: record}, {}, {}, uid=os.getuid()).root_of(slug)
    pinned = Pinned(*root) if root is not None else None
    if pinned is None:
        return False
    pinned.close()
    return pinned.alive()


def stop_process(step: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """End a server of runtime `process` and all that it started; `grace_s` is how long the first TERM may take.

    Raises:
        Problem: `not-ours` where the process is not proven ours, `stop-timeout` where something outlives KILL.
    """
    slug, pid, ticks = step["slug"], step["pid"], step["start_ticks"]
    known = known_now(folders, with_units=False)
    if step["boot_id"] != known.boot_id:
        return {"changed": False, "signals": []}
    if known.root_of(slug) != (pid, ticks):
        raise Problem("not-ours", "{}: our record does not name pid {} started at {}".format(slug, pid, ticks))
    sent: list[str] = []
    root = Pinned(pid, ticks)
    try:
        if root.alive():
            prove(root, slug, known)
            _end_root(root, float(step["grace_s"]), sent)
        left = _end_rest(slug, known, root, sent)
    finally:
        root.close()
    if left:
        raise Problem("stop-timeout", "{}: pid {} outlives KILL".format(slug, ", ".join(map(str, left))))
    return {"changed": bool(sent), "signals": sent}


def prove(root: Pinned, slug: str, known: Known) -> None:
    """Make sure that a root is ours, marker included, at this moment.

    Raises:
        Problem: `not-ours`, saying why.
    """
    seen = proc.load(root.pid)
    found, why = owner(seen, known) if seen is not None else ("", "it is gone")
    if found != slug and signals.wait([root], DYING_S):
        raise Problem("not-ours", "pid {}: {}".format(root.pid, why or "it is not {}".format(slug)))


def _end_root(root: Pinned, grace: float, sent: list[str]) -> None:
    """TERM, wait, TERM, wait. KILL comes with the whole session."""
    for seconds in (grace, AGAIN_S):
        if root.signal(TERM):
            sent.append("TERM")
        if not signals.wait([root], seconds):
            return


def _end_rest(slug: str, known: Known, root: Pinned, sent: list[str]) -> list[int]:
    """End what is left of the session: it may go by itself, else TERM, else KILL. Return the pids of survivors."""
    if not root.alive():
        left = signals.wait(session(slug, known), WORKERS_S / 4)
        if signals.send(left, TERM):
            sent.append("TERM workers")
            left = signals.wait(left, WORKERS_S)
        signals.close(left)
        if not session(slug, known):
            return []
    for _ in range(3):  # a process may have forked between the look and the signal
        members = [root, *session(slug, known)]
        if signals.send(members, KILL):
            sent.append("KILL")
        left = signals.wait(members, KILL_S)
        signals.close(members[1:])
        if not left and not session(slug, known):
            return []
    return [process.pid for process in (root, *session(slug, known)) if process.alive()]


def end_orphans(step: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """End workers of ours whose root is gone: TERM, `grace_s`, KILL. Those already gone are no error.

    Raises:
        Problem: `not-ours` where one is not proven to be an orphan of this server; nothing is signalled then.
    """
    slug = step["slug"]
    known = known_now(folders, with_units=True)
    verdict = classify(survey.processes(known), known)
    ours = {(process.pid, process.start_ticks) for process in verdict.orphans.get(slug, [])}
    pinned = [Pinned(pid, ticks) for pid, ticks in step["processes"]]
    try:
        for process in pinned:
            if process.alive() and (process.pid, process.start_ticks) not in ours:
                raise Problem("not-ours", "pid {} is no orphan of {}".format(process.pid, slug))
        sent = []
        left = pinned
        for number, name, seconds in ((TERM, "TERM", float(step["grace_s"])), (KILL, "KILL", KILL_S)):
            if signals.send(left, number):
                sent.append(name)
            left = signals.wait(left, seconds)
    finally:
        signals.close(pinned)
    if left:
        raise Problem("stop-timeout", "pid {} outlives KILL".format(", ".join(str(process.pid) for process in left)))
    return {"changed": bool(sent), "signals": sent}

"""The steps that go through systemd: systemctl on units of ours only, and the stop sequence of a unit."""

from __future__ import annotations

import time

from . import command, proc, units
from .classify import within
from .folders import slug_of_unit
from .problems import Problem
from .signals import TERM, Pinned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .folders import Folders

VERBS = ("daemon-reload", "enable", "disable", "start", "restart", "stop", "reset-failed")
CALL_S = 90.0
MARGIN_S = 10.0
LOOK_S = 0.2
DEFAULT_STOP_S = 90.0
SPANS = (("us", 1e-6), ("ms", 1e-3), ("min", 60.0), ("month", 2629800.0), ("s", 1.0), ("h", 3600.0), ("d", 86400.0))


def call(words: list[str], folders: Folders, timeout: float = CALL_S) -> str:
    """Run systemctl in the user's scope.

    Raises:
        Problem: `systemctl-failed` with what systemctl said.
    """
    scope = units.scope(folders.uid)
    argv = ["systemctl", *units.arguments(scope), "--no-ask-password", *words]
    status, said = command.run(argv, timeout, units.surroundings(scope, folders.uid))
    if status:
        raise Problem("systemctl-failed", "systemctl {}: {}".format(" ".join(words), said.strip()[-2000:] or status))
    return said


def unit_of(step: dict[str, Any], folders: Folders) -> str:
    """The step's unit, if it is one of ours and in our scope.

    Raises:
        Problem: `not-ours`.
    """
    unit = step.get("unit")
    if not isinstance(unit, str) or not slug_of_unit(unit):
        raise Problem("not-ours", "{!r} is no unit of ours".format(str(unit)[:80]))
    if step.get("scope") not in (None, units.scope(folders.uid)):
        raise Problem("bad-request", "uid {} has no scope {}".format(folders.uid, step["scope"]))
    return unit


def show(unit: str, folders: Folders) -> dict[str, str]:
    """A unit's properties."""
    return units.show([unit], folders.uid).get(unit, {})


def systemctl(step: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """One of systemctl's verbs; `changed` is false where the unit was so already."""
    verb = step["verb"]
    if verb not in VERBS:
        raise Problem("bad-request", "systemctl {!r} is not among our verbs".format(verb[:40]))
    if verb == "daemon-reload":
        call([verb], folders)
        return {"changed": True}
    unit = unit_of(step, folders)
    seen = show(unit, folders)
    already = {
        "enable": seen.get("UnitFileState") == "enabled",
        "disable": seen.get("UnitFileState") in ("disabled", ""),
        "start": seen.get("ActiveState") == "active",
        "stop": seen.get("ActiveState") in ("inactive", "failed"),
    }
    if already.get(verb, False):
        return {"changed": False}
    if verb == "reset-failed":
        return {"changed": _reset(unit, seen, folders)}
    call([verb, "--", unit], folders)
    return {"changed": True}


def _reset(unit: str, seen: dict[str, str], folders: Folders) -> bool:
    """Forget failures and the starts counted against the start limit; a unit that is not loaded has neither."""
    try:
        call(["reset-failed", "--", unit], folders)
    except Problem as problem:
        if "not loaded" not in str(problem):
            raise
    return seen.get("ActiveState") == "failed"


def seconds(span: str) -> float:
    """Read a time span as systemctl shows it: `1min 30s`, `500ms`, `infinity`."""
    total = 0.0
    for word in span.split():
        digits = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        factor = dict(SPANS).get(word[len(digits) :])
        try:
            total += float(digits) * (factor or 0.0)
        except ValueError:
            return DEFAULT_STOP_S
    return total or DEFAULT_STOP_S


def members(cgroup: str) -> list[Pinned]:
    """The processes of a unit's cgroup, each checked to be in it."""
    found = []
    for pid in proc.pids() if cgroup else ():
        if within(proc.parse_cgroup(proc.read("/proc/{}/cgroup".format(pid), 1 << 16) or b""), cgroup):
            seen = proc.stat(pid)
            if seen is not None and not seen.gone:
                found.append(Pinned(pid, seen.start_ticks))
    return found


def stop_unit(step: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """Stop a unit: systemd's TERM, ours after `grace_s` (a starting vLLM swallows one), systemd's KILL at its timeout.

    Raises:
        Problem: `stop-timeout` where it is not inactive then, or its cgroup not empty.
    """
    unit = unit_of(step, folders)
    seen = show(unit, folders)
    cgroup = seen.get("ControlGroup", "")
    if seen.get("LoadState") == "not-found" and not cgroup:
        return {"changed": False}
    if seen.get("ActiveState") in ("inactive", "failed") and not members(cgroup):
        return {"changed": False}
    call(["stop", "--no-block", "--", unit], folders)
    begun = time.monotonic()
    limit = begun + max(seconds(seen.get("TimeoutStopUSec", "")), float(step["grace_s"])) + MARGIN_S
    again = begun + float(step["grace_s"])
    pause = LOOK_S / 4
    while time.monotonic() < limit:
        time.sleep(pause)
        pause = min(pause * 1.5, LOOK_S * 5)
        seen = show(unit, folders)
        if seen.get("ActiveState") in ("inactive", "failed"):
            break
        if time.monotonic() >= again:
            again = limit
            _again(seen)
    else:
        raise Problem("stop-timeout", "{} is still {}".format(unit, seen.get("ActiveState", "?")))
    return _emptied(unit, cgroup, folders)


def _again(seen: dict[str, str]) -> None:
    """The second TERM, to the main process, or to all where systemd knows none."""
    main = units.number(seen.get("MainPID"))
    for process in members(seen.get("ControlGroup", "")):
        if main in (0, process.pid):
            process.signal(TERM)
        process.close()


def _emptied(unit: str, cgroup: str, folders: Folders) -> dict[str, Any]:
    """Nothing may be left in the cgroup of a unit that has stopped."""
    until = time.monotonic() + MARGIN_S
    left = members(cgroup)
    if left:
        call(["kill", "--signal=KILL", "--", unit], folders)
    while left and time.monotonic() < until:
        for process in left:
            process.close()
        time.sleep(LOOK_S)
        left = members(cgroup)
    if left:
        raise Problem("stop-timeout", "{}: pid {} is left".format(unit, left[0].pid))
    return {"changed": True}


def enable_linger(step: dict[str, Any], folders: Folders) -> dict[str, Any]:
    """Let the user's manager run without a login, so that its units survive one and a reboot."""
    del step
    if folders.uid == 0 or units.lingering(folders.user):
        return {"changed": False}
    status, said = command.run(["loginctl", "--no-ask-password", "enable-linger", folders.user], 30)
    if status or not units.lingering(folders.user):
        why = "its units would end with the login ({})".format(said.strip()[-300:])
        raise Problem("linger-refused", "{0}: {1}; have root do: loginctl enable-linger {0}".format(folders.user, why))
    until = time.monotonic() + MARGIN_S
    while not units.has_manager(folders.uid) and time.monotonic() < until:
        time.sleep(LOOK_S)
    return {"changed": True}

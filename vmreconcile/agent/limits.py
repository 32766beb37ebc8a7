"""Limits of what servers are started by: the agent itself, and the systemd that its units belong to. Only reads.

Of open files and processes, which keep a vLLM from running. Not of locked memory: vLLM locks none itself, and what CUDA
pins does not count; only RDMA between hosts would, and no server here spans hosts.
"""

from __future__ import annotations

import os
import resource

from . import command, proc, units
from .problems import Problem

OWN = (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
ROWS = (("nofile", "Max open files"), ("nproc", "Max processes"))


def observe(uid: int) -> dict[str, dict[str, list[int]] | None]:
    """`login` is what runtime process hands on; `systemd` what units inherit, None where that cannot be seen."""
    return {"login": {name: list(resource.getrlimit(number)) for name, number in OWN}, "systemd": _systemd(uid)}


def _systemd(uid: int) -> dict[str, list[int]] | None:
    """The limits of process 1, or of the user's own systemd."""
    if not os.path.isdir(units.BOOTED):
        return None
    pid = 1
    if uid:
        argv = ["systemctl", "show", "--property=MainPID", "--value", "--", "user@{}.service".format(uid)]
        try:
            pid = units.number(command.run(argv, 10)[1].strip())
        except Problem:
            return None
    return parse(proc.text(proc.read("/proc/{}/limits".format(pid)) or b"")) if pid else None


def parse(text: str) -> dict[str, list[int]] | None:
    """Read /proc/PID/limits (proc(5)): soft and hard by name, -1 for none; None where there is nothing of it."""
    found = {}
    for name, row in ROWS:
        for line in text.splitlines():
            cells = line[len(row) :].split()[:2] if line.startswith(row) else []
            if len(cells) == 2 and all(cell.isdigit() or cell == "unlimited" for cell in cells):
                found[name] = [int(cell) if cell.isdigit() else -1 for cell in cells]
    return found or None

"""The GPUs of the controller itself, as nvidia-smi tells them. Only reads; hosts are looked at by the agent.

Its total is NVML's, of which the agent tells: 81559 MiB of an H100 are 85,520,809,984 bytes there.
"""

from __future__ import annotations

import subprocess

FIELDS = ("name", "memory.total")
SPLIT = "mig.mode.current"
"""Not known to every nvidia-smi."""

TIMEOUT_S = 20.0
MIB = 1 << 20


def read_local_gpus() -> tuple[tuple[str, int], ...]:
    """The name of each and its memory in bytes; none where there is no nvidia-smi, or it fails.

    A GPU that is split (MIG) is left out: no program gets the whole of it. So is one that is lost, and tells no memory.
    """
    said = _ask(*FIELDS, SPLIT) or _ask(*FIELDS)
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return tuple(
        (name, int(size) * MIB)
        for name, size, *split in (row for row in rows if len(row) > 1)
        if size.isdecimal() and split != ["Enabled"]
    )


def _ask(*fields: str) -> str:
    query = ("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603 - no shell
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""

"""The GPUs of the controller itself, as nvidia-smi tells them. Only reads; hosts are looked at by the agent."""

from __future__ import annotations

import subprocess

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
TIMEOUT_S = 20.0
MIB = 1 << 20


def read_local_gpus() -> tuple[tuple[str, int], ...]:
    """The name of each and its memory in bytes; none where there is no nvidia-smi, or it fails."""
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603 - no shell
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ()
    if done.returncode:
        return ()
    rows = [line.rpartition(",") for line in done.stdout.splitlines()]
    return tuple((name.strip(), int(size) * MIB) for name, _, size in rows if size.strip().isdigit())

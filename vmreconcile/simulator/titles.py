"""Process titles as setproctitle leaves them: a new title, and argv and environment gone from `/proc`.

Owns the overwriting of a process's own argument and environment area. Must not be called in the root process:
a real vLLM's root keeps both. Linux only.
"""

from __future__ import annotations

import os
from pathlib import Path

_FIELD_ARG_START = 48 - 3
_FIELD_ENV_END = 51 - 3
_COMM_MAX = 15


def set_title(title: str) -> None:
    """Give this process the title `title` and wipe what `/proc/self/cmdline` and `environ` showed.

    The area is found through fields 48 to 51 of `/proc/self/stat` (proc_pid_stat(5)) and written through
    `/proc/self/mem`, which spares the start-up time of ctypes. Children that were forked share the area's
    addresses but not its pages, so the parent's argv and environment stay.
    """
    fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    start, end = int(fields[_FIELD_ARG_START]), int(fields[_FIELD_ENV_END])
    text = title.encode()[: end - start - 1]
    memory = os.open("/proc/self/mem", os.O_RDWR)
    try:
        os.pwrite(memory, text + bytes(end - start - len(text)), start)
    finally:
        os.close(memory)
    Path("/proc/self/comm").write_text(title[:_COMM_MAX], encoding="ascii")

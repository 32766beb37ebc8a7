"""The GPUs of a host and who holds their memory: NVML through the shipped pynvml, else nvidia-smi, else plainly none.

Nothing is loaded on a host without an NVIDIA driver. Only reads; never changes a setting of a device. Owns the order
in which it is tried; how each is read is `nvml`'s, `nvidia_smi`'s and `kernel_log`'s.
"""

from __future__ import annotations

import os

from . import command
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
LIBRARY = "libnvidia-ml.so.1"


def observe() -> dict[str, Any]:
    """The observation's `gpus`: `problem` says why `devices` may be empty or lacks some. Memory in bytes."""
    found: dict[str, Any] = {"problem": None, "driver": None, "cuda": None, "devices": []}
    if not _has_driver():
        found["problem"] = "no NVIDIA driver on this host"
        return found
    unusable = _through_nvml(found) if _loadable() else ""
    if unusable is not None:
        from .nvidia_smi import fill  # noqa: PLC0415 - only where NVML cannot be used

        problem = _through_smi(found, fill)
        found["problem"] = problem if found["devices"] else problem and (unusable or problem)
    _add_xids(found)
    return found


def _has_driver() -> bool:
    """Whether there is a sign of a driver: its devices, or its library in a folder that LD_LIBRARY_PATH names.

    Some containers and clusters keep the library in such a folder; so does a test, whose driver is only pretended. A
    library elsewhere is no sign: it is often installed where no GPU is.
    """
    if any(map(os.path.exists, SIGNS)):
        return True
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return any(os.path.exists(folder + "/" + LIBRARY) for folder in folders if folder)


def _loadable() -> bool:
    """Whether the driver's library can be loaded here."""
    try:
        import ctypes  # noqa: PLC0415 - 5 ms, only with a driver

        ctypes.CDLL(LIBRARY)
    except (ImportError, OSError):
        return False
    return True


def _through_nvml(found: dict[str, Any]) -> str | None:
    """Fill `found` from NVML; return why it cannot be used at all."""
    try:
        import pynvml  # noqa: PLC0415 - shipped with us, loaded only where a driver is
    except ImportError:
        return "pynvml was not shipped"
    from .nvml import fill  # noqa: PLC0415 - only with a driver

    return fill(found, pynvml)


def _through_smi(found: dict[str, Any], fill: Callable[[dict[str, Any], Any], str | None]) -> str | None:
    """Fill `found` from nvidia-smi; return what went wrong."""
    try:
        return fill(found, command.run)
    except Problem as problem:
        return "there is an NVIDIA driver, but neither {} nor nvidia-smi can be used: {}".format(LIBRARY, problem)


def _add_xids(found: dict[str, Any]) -> None:
    """Add to each device what the kernel tells of it, and to `problem` what it tells of those that are not listed."""
    from . import kernel_log  # noqa: PLC0415 - only with a driver

    told = kernel_log.xids()
    for device in found["devices"]:
        device["xids"] = told.get(kernel_log.place_of(device["pci"]), [])
    listed = {kernel_log.place_of(device["pci"]) for device in found["devices"]}
    if found["problem"] is not None:
        for place in sorted(set(told) - listed):
            numbers = ", ".join(map(str, told[place]))
            found["problem"] += "; the kernel tells of Xid {} at PCI {}".format(numbers, kernel_log.written(place))


def memory_by_pid(found: dict[str, Any] | None) -> dict[int, int]:
    """Bytes held by each process over all devices; those that the driver does not tell are left out.

    A process on an instance counts there alone: the row of the split GPU does not have it.
    """
    held: dict[int, int] = {}
    for device in (found or {}).get("devices", ()):
        for row in device["processes"]:
            if row["memory_bytes"] is not None:
                held[row["pid"]] = held.get(row["pid"], 0) + row["memory_bytes"]
    return held

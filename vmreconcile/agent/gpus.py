"""The GPUs of a host and who holds their memory: NVML through the shipped pynvml, else nvidia-smi, else plainly none.

Nothing is loaded on a host without an NVIDIA driver. Only reads; never changes a setting of a device.
"""

from __future__ import annotations

import os

from . import command
from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
LIBRARY = "libnvidia-ml.so.1"
MIB = 1 << 20


def observe() -> dict[str, Any]:
    """The observation's `gpus`: `problem` says why `devices` may be empty. Memory in bytes."""
    found: dict[str, Any] = {"problem": None, "driver": None, "cuda": None, "devices": []}
    if not any(map(os.path.exists, SIGNS)):
        found["problem"] = "no NVIDIA driver on this host"
        return found
    if _loadable():
        found["problem"] = _through_nvml(found)
        if found["problem"] is None:
            return found
    problem = _through_smi(found)
    found["problem"] = None if problem is None else found["problem"] or problem
    return found


def _loadable() -> bool:
    """Whether the driver's library can be loaded here."""
    try:
        import ctypes  # noqa: PLC0415 - 5 ms, only with a driver

        ctypes.CDLL(LIBRARY)
    except (ImportError, OSError):
        return False
    return True


def _through_nvml(found: dict[str, Any]) -> str | None:
    """Fill `found` from NVML; return what went wrong."""
    try:
        import pynvml  # noqa: PLC0415 - shipped with us, loaded only where a driver is
    except ImportError:
        return "pynvml was not shipped"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return "NVML: {}".format(error)
    try:
        found["driver"] = _text(pynvml.nvmlSystemGetDriverVersion())
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        found["cuda"] = "{}.{}".format(cuda // 1000, cuda % 1000 // 10)
        found["devices"] = [_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        return "NVML: {}".format(error)
    finally:
        pynvml.nvmlShutdown()
    return None


def _text(value: bytes | str) -> str:
    """Older bindings return bytes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value


def _device(pynvml: Any, index: int) -> dict[str, Any]:  # noqa: ANN401 - the module itself, it has no stubs
    """One GPU with its processes."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    held: dict[int, int | None] = {}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            rows = ask(handle)
        except pynvml.NVMLError:
            continue  # no graphics on most data-centre devices
        for row in rows:
            held[row.pid] = row.usedGpuMemory if held.get(row.pid) is None else held[row.pid]
    return {
        "index": index,
        "uuid": _text(pynvml.nvmlDeviceGetUUID(handle)),
        "name": _text(pynvml.nvmlDeviceGetName(handle)),
        "memory_total": memory.total,
        "memory_used": memory.used,
        "memory_free": memory.free,
        "processes": [{"pid": pid, "memory_bytes": used} for pid, used in sorted(held.items())],
    }


def _through_smi(found: dict[str, Any]) -> str | None:
    """Fill `found` from nvidia-smi; return what went wrong."""
    fields = "index,uuid,name,memory.total,memory.used,memory.free,driver_version"
    try:
        status, cards = command.run(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits"], 20)
        if status:
            return "nvidia-smi: " + (cards.strip().splitlines() or ["exit status {}".format(status)])[0][:200]
        apps = "--query-compute-apps=gpu_uuid,pid,used_memory"
        held = command.run(["nvidia-smi", apps, "--format=csv,noheader,nounits"], 20)[1]
    except Problem as problem:
        return "there is an NVIDIA driver, but neither {} nor nvidia-smi can be used: {}".format(LIBRARY, problem)
    found["driver"], found["devices"] = parse_smi(cards, held)
    return None


def parse_smi(cards: str, held: str) -> tuple[str | None, list[dict[str, Any]]]:
    """Read nvidia-smi's two CSV tables (MiB): the driver's version and the devices. What is not a number is None."""
    driver = None
    devices = []
    for line in cards.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 7 or not cells[0].isdigit():
            continue
        driver = cells[6]
        total, used, free = (int(cell) * MIB if cell.isdigit() else 0 for cell in cells[3:6])
        rows = [[cell.strip() for cell in row.split(",")] for row in held.splitlines()]
        processes = [
            {"pid": int(row[1]), "memory_bytes": int(row[2]) * MIB if row[2].isdigit() else None}
            for row in rows
            if len(row) == 3 and row[0] == cells[1] and row[1].isdigit()
        ]
        device = {"index": int(cells[0]), "uuid": cells[1], "name": cells[2]}
        memory = {"memory_total": total, "memory_used": used, "memory_free": free}
        devices.append({**device, **memory, "processes": sorted(processes, key=lambda row: row["pid"] or 0)})
    return driver, sorted(devices, key=lambda device: int(str(device["index"])))


def memory_by_pid(found: dict[str, Any] | None) -> dict[int, int]:
    """Bytes held by each process over all devices; those that the driver does not tell are left out."""
    held: dict[int, int] = {}
    for device in (found or {}).get("devices", ()):
        for row in device["processes"]:
            if row["memory_bytes"] is not None:
                held[row["pid"]] = held.get(row["pid"], 0) + row["memory_bytes"]
    return held

"""GPUs through nvidia-smi, for where NVML itself cannot be used. Instances of split GPUs are not told by it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

MIB = 1 << 20
BASIC = ("index", "uuid", "name", "memory.total", "memory.used", "memory.free", "driver_version")
FIELDS = (*BASIC, "compute_mode", "mig.mode.current", "pci.bus_id", "ecc.errors.uncorrected.volatile.total")
"""`nvidia-smi --help-query-gpu`; an older one that does not know a field refuses all, and is asked for the first."""

MODES = {
    "Default": "default",
    "Exclusive_Thread": "exclusive_process",
    "Exclusive_Process": "exclusive_process",
    "Prohibited": "prohibited",
}
TIMEOUT_S = 20.0


def fill(found: dict[str, Any], run: Callable[[list[str], float], tuple[int, str]]) -> str | None:
    """Fill `found`, running programs by `run`; return what went wrong. Raises what `run` raises.

    It fails where a GPU is lost, and may still tell of the others: then there are both devices and a problem.
    """
    for fields in (FIELDS, BASIC):
        status, cards = run(_argv("--query-gpu=" + ",".join(fields)), TIMEOUT_S)
        if not status or parse(cards, "")[1]:
            break
    else:
        return _words(cards, status)
    held = run(_argv("--query-compute-apps=gpu_uuid,pid,used_memory"), TIMEOUT_S)[1]
    found["driver"], found["devices"] = parse(cards, held)
    return _words(cards, status) if status else None


def _words(said: str, status: int) -> str:
    """The first line that is about no GPU, else the exit status."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.partition(",")[0].isdigit()]
    return "nvidia-smi: " + (lines or ["exit status {}".format(status)])[0][:200]


def _argv(query: str) -> list[str]:
    return ["nvidia-smi", query, "--format=csv,noheader,nounits"]


def parse(cards: str, held: str) -> tuple[str | None, list[dict[str, Any]]]:
    """Read its two CSV tables (MiB): the driver's version and the devices. What is not told is None, 0 or ""."""
    driver = None
    devices = []
    holders = [[cell.strip() for cell in row.split(",")] for row in held.splitlines()]
    for line in cards.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) not in (len(BASIC), len(FIELDS)) or not cells[0].isdigit():
            continue
        row = dict(zip(FIELDS, cells))
        driver = row["driver_version"]
        processes = [
            {"pid": int(pid), "memory_bytes": _number(used, MIB)}
            for uuid, pid, used in (holder for holder in holders if len(holder) == 3)
            if uuid == row["uuid"] and pid.isdigit()
        ]
        devices.append({**_device(row), "processes": sorted(processes, key=lambda one: one["pid"] or 0)})
    return driver, sorted(devices, key=lambda device: int(str(device["index"])))


def _device(row: dict[str, str]) -> dict[str, Any]:
    """One line of the table. What is used counts what the driver keeps, as NVML has it; nvidia-smi leaves that out."""
    total, used, free = (_number(row["memory." + part], MIB) for part in ("total", "used", "free"))
    return {
        "index": int(row["index"]),
        "uuid": row["uuid"],
        "name": row["name"],
        "memory_total": total or 0,
        "memory_used": (used or 0) if total is None or free is None else total - free,
        "memory_free": free or 0,
        "pci": _pci(row.get("pci.bus_id", "")),
        "split": row.get("mig.mode.current") == "Enabled",
        "parent": "",
        "instance": None,
        "compute_mode": MODES.get(row.get("compute_mode", ""), ""),
        "ecc_errors": _number(row.get("ecc.errors.uncorrected.volatile.total", "")),
        "remapping_failed": False,
    }


def _number(cell: str, unit: int = 1) -> int | None:
    return int(cell) * unit if cell.isdigit() else None


def _pci(text: str) -> str:
    """'00000000:C1:00.0' as the kernel writes it: '0000:c1:00.0'."""
    domain, colon, rest = text.lower().partition(":")
    try:
        return "{:04x}:{}".format(int(domain, 16), rest) if colon else ""
    except ValueError:
        return ""

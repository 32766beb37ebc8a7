#!/usr/bin/env python3
"""Compares what the agent says of this machine's GPUs with what nvidia-smi says, field by field.

    benchmarks/gpu/agent.py OUT.json [--pynvml FILE] [--hold MIB]

Runs the real agent here, as it runs on a host, with the pynvml of this interpreter or with FILE; needs Python 3.10 and
nothing else. Memory is compared to the MiB, as nvidia-smi rounds it; what is used and free may move by 64 MiB between
the two. With `--hold`, a program of its own takes so much of the first GPU meanwhile, through CUDA's driver library.
Prints a table; OUT.json has both sides. Exit status 1 where they differ, 2 where there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.agent.driver import Agent, build_archive  # noqa: E402 - the path comes first

MIB = 1 << 20
ROUNDING = MIB
MOVES = 64 * MIB
FIELDS = (
    *("index", "uuid", "name", "pci.bus_id", "memory.total", "memory.used", "memory.free", "memory.reserved"),
    *("compute_mode", "mig.mode.current", "ecc.errors.uncorrected.volatile.total", "driver_version"),
)
HOLDER = """
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
made, device, at = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint64()
for name, *arguments in (
    ("cuInit", 0), ("cuDeviceGet", ctypes.byref(device), 0), ("cuCtxCreate_v2", ctypes.byref(made), 0, device),
    ("cuMemAlloc_v2", ctypes.byref(at), ctypes.c_size_t(int(sys.argv[1]) << 20)),
):
    code = getattr(cuda, name)(*arguments)
    if code:
        sys.exit("%s: error %d" % (name, code))
print("holds", flush=True)
sys.stdin.read()
"""
"""A program that takes memory by CUDA's driver API (CUresult 0 is success) until its standard input ends."""


def main() -> int:
    """Compare and tell."""
    options = read_options()
    with holding(options.hold):
        agent = observed(options.pynvml)
        smi = told()
    rows = list(compare(agent, smi))
    options.out.write_text(json.dumps({"agent": agent, "nvidia_smi": smi, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{'ok' if row['same'] else 'DIFFERS':8} {row['field']:34} {row['agent']!s:44} {row['nvidia_smi']!s}")
    wrong = sum(not row["same"] for row in rows)
    print(f"{len(rows)} fields of {len(agent['devices'])} devices compared, {wrong} differ")
    return 1 if wrong else 0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pynvml", type=Path, help="the module's file, where this interpreter does not have it")
    parser.add_argument("--hold", type=int, default=0, metavar="MIB")
    return parser.parse_args()


@contextmanager
def holding(size: int) -> Iterator[None]:
    """Hold so many MiB of the first GPU meanwhile; none for 0."""
    if not size:
        yield
        return
    argv = [sys.executable, "-c", HOLDER, str(size)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        if program.stdout.readline().strip() != "holds":
            give_up("the program that is to hold memory could not take it")
        yield
        program.stdin.close()


def give_up(why: str) -> None:
    """There is nothing to compare."""
    print(f"agent.py: {why}", file=sys.stderr)
    raise SystemExit(2)


def observed(pynvml: Path | None) -> dict[str, Any]:
    """The real agent's `gpus` (docs/wire.md), with how long the whole observation took in `seconds`."""
    if pynvml is not None:
        sys.path.insert(0, str(pynvml.resolve().parent))
    with tempfile.TemporaryDirectory() as folder:
        try:
            archive = build_archive(pynvml=True)
        except AssertionError:
            give_up("there is no pynvml here; name its file with --pynvml")
        kept = [f"{name}={os.environ[name]}" for name in ("LD_LIBRARY_PATH",) if name in os.environ]
        agent = Agent(Path(folder), archive=archive, prefix=("env", *kept))
        agent.observe(gpus=False)
        begun = time.monotonic()
        found: dict[str, Any] = agent.observe(gpus=True)["gpus"]
        found["seconds"] = round(time.monotonic() - begun, 3)
        agent.close()
    if not found["devices"]:
        give_up(f"the agent sees no GPU: {found['problem']}")
    return found


def told() -> dict[str, Any]:
    """What nvidia-smi says: rows by UUID, holders, instances and rows that could not be remapped."""
    rows = [dict(zip(FIELDS, cells, strict=True)) for cells in table(f"--query-gpu={','.join(FIELDS)}")]
    cuda = re.search(r"CUDA Version\s*:\s*([\d.]+)", smi("-q"))
    return {
        "cuda": cuda[1] if cuda else None,
        "gpus": {row["uuid"]: row for row in rows},
        "held": table("--query-compute-apps=gpu_uuid,pid,used_memory"),
        "instances": re.findall(r"UUID: (MIG-[^)]+)\)", smi("-L")),
        "remapping": dict(table("--query-remapped-rows=gpu_uuid,remapped_rows.failure")),
    }


def smi(*words: str) -> str:
    """What it prints.

    Raises:
        SystemExit: it is not there, or fails.
    """
    try:
        return subprocess.run(["nvidia-smi", *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        give_up(f"nvidia-smi {' '.join(words)}: {error}")
        raise


def table(query: str) -> list[list[str]]:
    """One of its tables without units."""
    lines = smi(query, "--format=csv,noheader,nounits").splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]


def compare(agent: dict[str, Any], smi: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Field by field, the agent's first."""
    whole = {device["uuid"]: device for device in agent["devices"] if not device["parent"]}
    yield judged("GPUs", sorted(whole), sorted(smi["gpus"]))
    yield judged("cuda", agent["cuda"], smi["cuda"])
    yield judged("instances", sorted(set(uuids(agent)) - set(whole)), sorted(smi["instances"]))
    for uuid in sorted(set(whole) & set(smi["gpus"]), key=lambda each: whole[each]["index"]):
        row = smi["gpus"][uuid]
        yield judged("driver", agent["driver"], row["driver_version"])
        for name, ours, theirs, by in fields(whole[uuid], row, smi["remapping"].get(uuid)):
            yield judged(f"GPU {row['index']} {name}", ours, theirs, by)
        yield from compare_holders(agent, smi, uuid)


def compare_holders(agent: dict[str, Any], smi: dict[str, Any], uuid: str) -> Iterator[dict[str, Any]]:
    """The processes of a GPU and its instances. nvidia-smi names only those of CUDA."""
    devices = [device for device in agent["devices"] if uuid in (device["uuid"], device["parent"])]
    held = {row["pid"]: row["memory_bytes"] for device in devices for row in device["processes"]}
    uuids = {device["uuid"] for device in devices}
    for _, pid, used in (row for row in smi["held"] if row[0] in uuids):
        size = number(used)
        theirs = None if size is None else size * MIB
        yield judged(f"GPU {devices[0]['index']} process {pid}", held.get(int(pid), "missing"), theirs, MOVES)


def uuids(agent: dict[str, Any]) -> list[str]:
    """Of all devices."""
    return [device["uuid"] for device in agent["devices"]]


def fields(
    device: dict[str, Any], row: dict[str, str], remapping: str | None
) -> Iterator[tuple[str, object, object, int]]:
    """Name, both sides, and by how much they may differ. nvidia-smi counts what the driver reserves by itself."""
    memory = {name: (number(row[f"memory.{name}"]) or 0) * MIB for name in ("total", "used", "free", "reserved")}
    mode = {"Exclusive_Thread": "exclusive_process"}.get(row["compute_mode"], row["compute_mode"].lower())
    yield "index", device["index"], int(row["index"]), 0
    yield "name", device["name"], row["name"], 0
    yield "pci", device["pci"], re.sub("^0000", "", row["pci.bus_id"].lower()), 0
    yield "memory total", device["memory_total"], memory["total"], ROUNDING
    yield "memory used", device["memory_used"], memory["used"] + memory["reserved"], MOVES
    yield "memory free", device["memory_free"], memory["free"], MOVES
    yield "compute mode", device["compute_mode"], mode, 0
    yield "split", device["split"], row["mig.mode.current"] == "Enabled", 0
    yield "ECC errors", device["ecc_errors"], number(row["ecc.errors.uncorrected.volatile.total"]), 0
    yield "remapping failed", device["remapping_failed"], remapping in ("Yes", "1"), 0


def number(cell: str) -> int | None:
    """A number of nvidia-smi's, None for [N/A] and the like."""
    return int(cell) if cell.isdigit() else None


def judged(field: str, ours: object, theirs: object, by: int = 0) -> dict[str, Any]:
    """A row of the table; numbers may differ by so much."""
    near = isinstance(ours, int) and isinstance(theirs, int) and abs(ours - theirs) <= by
    return {"field": field, "agent": ours, "nvidia_smi": theirs, "same": near or ours == theirs}


if __name__ == "__main__":
    sys.exit(main())

"""GPUs that the simulated servers of a host share: a folder that says which there are, and who holds how much.

`FOLDER/gpus` has one line a GPU, `index uuid total name`: bytes as NVML names them; a uuid that begins with 'MIG-' is
an instance of the GPU of that index. `FOLDER/held/PID` is one holder, with one line a GPU, `pid start uuid bytes`.
`start` is the process's start time in clock ticks since boot (field 22 of proc_pid_stat(5)): a holder that is gone, a
zombie, or another process by now holds nothing. Lines that begin with '#' are left out.

Owns that form and its lock. Must not decide which GPUs a server gets; that is `devices`'.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.simulator.devices import CONTEXT, Device, Group, StartError, check_free, requested, taken
from vmreconcile.simulator.failures import FAILURES
from vmreconcile.simulator.memory import GIB, OVERHEAD_GIB
from vmreconcile.simulator.options import Options

FOR_ALL = 0o1777
"""Servers of several users share GPUs: everybody may add a holder, nobody may take away another's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The GPUs of a start by rank, `world` of them for each engine; `kv_bytes` 0 means by utilization.

    `weights` are the bytes that loading takes of each, `beside` all that is not KV cache.
    """

    folder: str
    devices: tuple[Device, ...]
    world: int
    utilization: float
    kv_bytes: int
    weights: int
    beside: int

    @property
    def least(self) -> int:
        """Bytes of the smallest of them, as CUDA names them."""
        return min(device.total for device in self.devices)

    def take(self, engine: int, pids: Sequence[int]) -> None:
        """Let each process of an engine take its GPU's memory, all or none.

        Raises:
            StartError: less is free than vLLM wants, or than the weights take.
        """
        first = engine * self.world
        mine = tuple(enumerate(self.devices))[first : first + self.world]
        with _locked(self.folder):
            others = held(self.folder)
            for rank, device in mine:
                free = device.total - others.get(device.uuid, 0)
                check_free(rank, device, free, self.utilization)
                if free - CONTEXT < self.weights + self.kv_bytes:
                    raise StartError(FAILURES["out-of-memory"].text, in_engine=True)
            for pid, (_, device) in zip(pids, mine, strict=True):
                hold(self.folder, pid, {device.uuid: CONTEXT + self._share(device)})

    def _share(self, device: Device) -> int:
        """Bytes that vLLM takes beside its context."""
        return self.beside + self.kv_bytes if self.kv_bytes else requested(device.total, self.utilization)


def find_claims(options: Options, environ: Mapping[str, str], version: str, folder: str, weights_gib: float) -> Claims:
    """Work out on which GPUs of `folder` a start is to run, with so much of the weights on each.

    Raises:
        StartError: vLLM does not start on them.
        ValueError: the folder describes none that can be read.
    """
    group = Group(tensor=options.tensor_parallel, pipeline=options.pipeline_parallel, data=options.data_parallel)
    return Claims(
        folder=folder,
        devices=taken(read_gpus(folder), environ, version, group),
        world=group.world,
        utilization=options.utilization,
        kv_bytes=options.kv_bytes,
        weights=int(weights_gib * GIB),
        beside=int((weights_gib + OVERHEAD_GIB) * GIB),
    )


def read_gpus(folder: str) -> tuple[Device, ...]:
    """The GPUs that a folder describes, with their memory as CUDA names it.

    Raises:
        ValueError: it cannot be read, with path and line.
    """
    from vmreconcile.vllm.memory.gpus import seen_gpu  # noqa: PLC0415 - a server without shared GPUs starts faster

    path = Path(folder, "gpus")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as problem:
        raise ValueError(f"{path}: {problem.strerror or problem}") from None
    found = []
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=3)
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 4 or not words[0].isdecimal() or not words[2].isdecimal():
            raise ValueError(f"{path}:{number}: a GPU is described by: index uuid total name")
        total = seen_gpu(words[3], int(words[2])).total
        found.append(Device(index=int(words[0]), uuid=words[1], total=total, name=words[3]))
    return tuple(found)


def held(folder: str) -> dict[str, int]:
    """Bytes that living processes hold, by GPU; files of those that are gone are removed where that is allowed."""
    found: dict[str, int] = {}
    for path in sorted(Path(folder, "held").glob("[0-9]*")):
        rows = [line.split() for line in _text(path).splitlines() if line and not line.startswith("#")]
        living = [row for row in rows if len(row) == 4 and started(row[0]) == row[1]]
        for _, _, uuid, size in living:
            found[uuid] = found.get(uuid, 0) + (int(size) if size.isdecimal() else 0)
        if rows and not living:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def hold(folder: str, pid: int, sizes: Mapping[str, int]) -> None:
    """Write down what a living process holds, in bytes by GPU, in place of what it held before."""
    start = started(str(pid))
    path = Path(folder, "held", str(pid))
    fresh = path.with_name(f".{pid}")
    fresh.unlink(missing_ok=True)
    with fresh.open("x", encoding="ascii") as file:  # never through a link that somebody else put there
        file.writelines(f"{pid} {start} {uuid} {size}\n" for uuid, size in sizes.items())
    fresh.replace(path)


def started(pid: str) -> str:
    """The start time of a process in clock ticks since boot, "" for one that is gone or a zombie."""
    fields = _text(Path("/proc", pid, "stat")).rpartition(")")[2].split() if pid.isdecimal() else []
    return fields[22 - 3] if len(fields) > 22 - 3 and fields[0] not in {"Z", "X"} else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Be the only one who looks and takes; makes the folder of holders where it is not there."""
    holders = Path(folder, "held")
    with contextlib.suppress(FileExistsError):
        holders.mkdir()
        holders.chmod(FOR_ALL)
    descriptor = os.open(holders, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

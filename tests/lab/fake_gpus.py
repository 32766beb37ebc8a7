"""The GPUs of a machine in memory, as NVML tells them: who holds how much of each. Starts nothing.

What a vLLM takes of them is tests/lab/fake_starts.py's.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from vmreconcile.simulator.devices import Device
from vmreconcile.vllm.memory.gpus import seen_gpu

Json = dict[str, Any]
GIB = 1 << 30
MIB = 1 << 20
H100 = "NVIDIA H100 80GB HBM3"
H100_TOTAL = 81559 * MIB
"""As NVML names it; CUDA gives programs less (vmreconcile/vllm/memory/gpus.json)."""

BUSES = (0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB)
"""PCI buses of the GPUs of an HGX board, in their order; further ones count on from the last."""

TAKING = threading.RLock()
"""Looking and taking belong together, for several servers of a host may be started at once."""


@dataclass(slots=True, kw_only=True)
class Hold:
    """Memory that a process holds. `pid` None: of a process that cannot be seen from here (a container's).

    `ended` is when the process was gone, for the driver gives memory back a moment later.
    """

    gpu: str
    pid: int | None
    size: int
    ended: float | None = None


@dataclass(slots=True, kw_only=True)
class FakeGpu:
    """One GPU, or an instance of a split one, whose health is the whole's.

    Bytes as NVML tells them; a test may change what it likes.
    """

    index: int
    uuid: str
    name: str
    total: int
    pci: str
    split: bool = False
    parent: str = ""
    instance: int | None = None
    compute_mode: str = "default"
    ecc_errors: int | None = 0
    remapping_failed: bool = False
    xids: list[int] = field(default_factory=list)

    @property
    def cuda(self) -> int:
        """Bytes that CUDA gives to programs; the rest is the driver's."""
        return seen_gpu(self.name, self.total).total


class FakeGpus:
    """All GPUs of a machine. `alive` are the machine's processes, looked at anew each time."""

    def __init__(self, machine: str, alive: Collection[int]) -> None:
        """`machine` is what the UUIDs are made of: the same name gives the same ones."""
        self.machine = machine
        self.devices: list[FakeGpu] = []
        self.holds: list[Hold] = []
        self.others: dict[int, str] = {}
        """Programs that are no vLLM, by pid, with their command lines."""
        self.freed_after = 0.0
        """Seconds that the driver takes to give back the memory of a process that ended."""
        self._alive = alive

    def add(self, count: int, name: str, total: int) -> None:
        """Put in more GPUs of one kind."""
        for index in range(len(self.whole()), len(self.whole()) + count):
            bus = BUSES[index] if index < len(BUSES) else BUSES[-1] + index - len(BUSES) + 1
            device = FakeGpu(
                index=index, uuid=self._uuid("GPU", index), name=name, total=total, pci=f"0000:{bus:02x}:00.0"
            )
            self.devices.append(device)

    def split(self, index: int, parts: Iterable[tuple[str, float]]) -> tuple[FakeGpu, ...]:
        """Split a GPU into instances (MIG), each with its profile and GiB; what it was split into before is gone."""
        parent = self.whole()[index]
        self.devices = [each for each in self.devices if each.parent != parent.uuid]
        parent.split = True
        made = tuple(
            FakeGpu(
                index=index,
                uuid=self._uuid("MIG", index, number),
                name=f"{parent.name} MIG {profile}",
                total=int(gib * GIB),
                pci=parent.pci,
                parent=parent.uuid,
                instance=number,
            )
            for number, (profile, gib) in enumerate(parts)
        )
        at = self.devices.index(parent) + 1
        self.devices[at:at] = made
        return made

    def _uuid(self, kind: str, *place: int) -> str:
        text = "/".join(map(str, ("gpu", self.machine, *place)))
        return f"{kind}-{uuid.uuid5(uuid.NAMESPACE_DNS, text)}"

    def whole(self) -> list[FakeGpu]:
        """The GPUs without instances of them."""
        return [each for each in self.devices if not each.parent]

    def visible(self) -> tuple[Device, ...]:
        """What CUDA can use, as it names memory."""
        return tuple(
            Device(index=each.index, uuid=each.uuid, total=each.cuda, name=each.name)
            for each in self.devices
            if not each.split
        )

    # Memory

    def hold(self, gpu: str, pid: int | None, size: int) -> None:
        """A process takes memory of a GPU."""
        with TAKING:
            self.holds.append(Hold(gpu=gpu, pid=pid, size=size))

    def release(self, pid: int | None) -> None:
        """Give back what a process holds, at once."""
        with TAKING:
            self.holds = [each for each in self.holds if each.pid != pid]
            self.others.pop(pid or 0, None)

    def clear(self) -> None:
        """The machine was off."""
        self.holds, self.others = [], {}

    def settle(self, now: float) -> None:
        """Notice which processes are gone, and give back what was theirs once its time has come."""
        with TAKING:
            for each in self.holds:
                if each.ended is None and not self._lives(each):
                    each.ended = now
            self.holds = [each for each in self.holds if each.ended is None or now < each.ended + self.freed_after]

    def _lives(self, hold: Hold) -> bool:
        return hold.pid is None or hold.pid in self.others or hold.pid in self._alive

    def held(self, gpu: str) -> int:
        """Bytes that programs hold of a GPU and of its instances."""
        parts = {gpu, *(each.uuid for each in self.devices if each.parent == gpu)}
        return sum(each.size for each in self.holds if each.gpu in parts)

    def by_pid(self) -> dict[int, int]:
        """Bytes held by each process that can be seen, over all GPUs."""
        found: dict[int, int] = {}
        for each in self.holds:
            if each.pid is not None and self._lives(each):
                found[each.pid] = found.get(each.pid, 0) + each.size
        return found

    def rows(self) -> list[Json]:
        """The observation's `gpus.devices` (docs/wire.md)."""
        return [self._row(each) for each in self.devices]

    def _row(self, gpu: FakeGpu) -> Json:
        used = min(gpu.total, gpu.total - gpu.cuda + self.held(gpu.uuid))
        whole = next((each for each in self.devices if each.uuid == gpu.parent), gpu)
        pids = sorted({each.pid for each in self.holds if each.gpu == gpu.uuid and each.pid and self._lives(each)})
        return {
            "index": gpu.index,
            "uuid": gpu.uuid,
            "name": gpu.name,
            "memory_total": gpu.total,
            "memory_used": used,
            "memory_free": gpu.total - used,
            "processes": [
                {"pid": pid, "memory_bytes": self._of(pid, gpu), "what": self.others.get(pid, "")} for pid in pids
            ],
            "pci": gpu.pci,
            "split": gpu.split,
            "parent": gpu.parent,
            "instance": gpu.instance,
            "compute_mode": whole.compute_mode,
            "ecc_errors": whole.ecc_errors,
            "remapping_failed": whole.remapping_failed,
            "xids": list(whole.xids),
        }

    def _of(self, pid: int, gpu: FakeGpu) -> int:
        return sum(each.size for each in self.holds if each.pid == pid and each.gpu == gpu.uuid)

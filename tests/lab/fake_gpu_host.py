"""What a test does with the GPUs of a host in memory: put them in, split them, let others hold memory of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.lab.fake_gpus import GIB, H100, H100_TOTAL, FakeGpu
from tests.lab.fake_kernel import Kernel

Json = dict[str, Any]


class GpuHost:
    """The part of a host that has GPUs; `gpus` is what its agent says of them, as long as none are put in."""

    kernel: Kernel

    def __init__(self) -> None:
        """Without a driver."""
        self.gpus: Json = {"problem": "no NVIDIA driver on this host", "driver": None, "cuda": None, "devices": []}

    def add_gpus(self, count: int, name: str = H100, total: int = H100_TOTAL) -> None:
        """Put in more GPUs; `total` are the bytes that NVML names."""
        self.kernel.gpus.add(count, name, total)
        self.gpus |= {"problem": None, "driver": "595.71", "cuda": "13.2"}

    def gpu(self, index: int) -> FakeGpu:
        """A GPU by its index."""
        return self.kernel.gpus.whole()[index]

    def split(self, index: int, parts: Iterable[tuple[str, float]]) -> tuple[FakeGpu, ...]:
        """Split a GPU into instances (MIG), each with its profile and GiB: `[("1g.10gb", 9.75), …]`."""
        return self.kernel.gpus.split(index, parts)

    def hold(self, gpu: int | str, pid: int | None, gib: float, *, what: str = "python train.py") -> None:
        """A program takes memory of a GPU (its index, or a UUID). A `pid` of none: one that cannot be seen.

        A pid that is not of a process of this machine becomes one, which is no vLLM; `release` ends it.
        """
        gpus = self.kernel.gpus
        if pid is not None and pid not in self.kernel.processes:
            gpus.others[pid] = what
        gpus.hold(gpu if isinstance(gpu, str) else self.gpu(gpu).uuid, pid, round(gib * GIB))

    def release(self, pid: int | None) -> None:
        """A program gives back what it took by `hold`."""
        self.kernel.gpus.release(pid)

    @property
    def gpus_freed_after(self) -> float:
        """Seconds that the driver takes to give back the memory of a process that ended."""
        return self.kernel.gpus.freed_after

    @gpus_freed_after.setter
    def gpus_freed_after(self, seconds: float) -> None:
        self.kernel.gpus.freed_after = seconds

    def seen_gpus(self) -> Json:
        """The observation's `gpus`: what a test has set, else the GPUs as they are now."""
        if self.gpus["problem"] or self.gpus["devices"] or not self.kernel.gpus.devices:
            return self.gpus
        return {**self.gpus, "devices": self.kernel.gpus.rows()}

    def held(self, request: Json) -> dict[int, int]:
        """Bytes of GPUs by process, where GPUs are asked for."""
        return self.kernel.gpus.by_pid() if request.get("gpus") else {}

"""GPUs through NVML, as the driver's own library tells them by way of pynvml. Only asks, never sets.

Which questions may fail, and with what: NVIDIA, "NVML API Reference". A question that a GPU, a driver or a permission
does not answer leaves its own field unknown; a GPU that is lost does not hide the others.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MODES = {0: "default", 1: "exclusive_process", 2: "prohibited", 3: "exclusive_process"}
"""nvmlComputeMode_t; 1 is for one thread, which no driver of today offers."""

UNCORRECTED, VOLATILE = 1, 0
"""nvmlMemoryErrorType_t and nvmlEccCounterType_t: since the driver was loaded."""

VERSIONS = ("_v3", "_v2")
"""Of the questions for processes, the newest first: drivers before 510 know only the second, of the same form."""


def fill(found: dict[str, Any], pynvml: Any) -> str | None:  # noqa: ANN401 - the module itself, it has no stubs
    """Fill `found`; return why NVML cannot be used at all. `problem` names the GPUs that cannot be read."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return "NVML: {}".format(_words(pynvml, error))
    try:
        _Reader(pynvml).read(found)
    except pynvml.NVMLError as error:
        found["devices"] = []
        return "NVML: {}".format(_words(pynvml, error))
    finally:
        _end(pynvml)
    return None


def _end(pynvml: Any) -> None:  # noqa: ANN401 - the module itself
    """What was told stays told, also if a driver in trouble does not end well."""
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return


class _Reader:
    """One look through an NVML that is ready."""

    def __init__(self, pynvml: Any) -> None:  # noqa: ANN401 - the module itself
        self.pynvml = pynvml

    def read(self, found: dict[str, Any]) -> None:
        """Everything; raises NVMLError where not even the number of GPUs is told."""
        found["driver"] = self._maybe("nvmlSystemGetDriverVersion")
        cuda = self._maybe("nvmlSystemGetCudaDriverVersion_v2")
        found["cuda"] = None if cuda is None else "{}.{}".format(cuda // 1000, cuda % 1000 // 10)
        indices = range(self.pynvml.nvmlDeviceGetCount())
        problems = [problem for problem in (self._add(index, found["devices"]) for index in indices) if problem]
        found["problem"] = "; ".join(problems) or None

    def _add(self, index: int, devices: list[dict[str, Any]]) -> str:
        """Add one GPU with its instances; return why it cannot be read, "" where it can."""
        try:
            devices += self._gpu(index, self.pynvml.nvmlDeviceGetHandleByIndex(index))
        except self.pynvml.NVMLError as error:
            return "GPU {} does not answer: {}".format(index, _words(self.pynvml, error))
        return ""

    def _maybe(self, name: str, *arguments: Any) -> Any:  # noqa: ANN401 - whatever pynvml answers
        """An answer that may be missing: None. Only that the GPU is lost is told all the same."""
        try:
            answer = getattr(self.pynvml, name)(*arguments)
        except (self.pynvml.NVMLError_GpuIsLost, self.pynvml.NVMLError_ResetRequired):
            raise
        except (self.pynvml.NVMLError, ValueError):  # ValueError: a text that is no UTF-8
            return None
        return _text(answer) if isinstance(answer, bytes) else answer

    def _gpu(self, index: int, handle: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - a pointer of ctypes
        """One GPU, and behind it its instances where it is split."""
        gpu = self._device(handle)
        modes = self._maybe("nvmlDeviceGetMigMode", handle)
        mapped = self._maybe("nvmlDeviceGetRemappedRows", handle)
        gpu.update(
            index=index,
            pci=self._pci(handle),
            split=bool(modes and modes[0]),
            parent="",
            instance=None,
            compute_mode=MODES.get(self._maybe("nvmlDeviceGetComputeMode", handle), ""),
            ecc_errors=self._maybe("nvmlDeviceGetTotalEccErrors", handle, UNCORRECTED, VOLATILE),
            remapping_failed=bool(mapped and mapped[3]),
        )
        parts = self._instances(handle, gpu) if gpu["split"] else []
        theirs = {row["pid"] for part in parts for row in part["processes"]}
        gpu["processes"] = [row for row in gpu["processes"] if row["pid"] not in theirs]
        return [gpu, *parts]

    def _instances(self, handle: Any, gpu: dict[str, Any]) -> list[dict[str, Any]]:  # noqa: ANN401 - a pointer
        """The MIG devices of a GPU. What is known of its health holds for them: they are the same silicon."""
        found = []
        for number in range(self._maybe("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            part = self._maybe("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            own = None if part is None else self._instance(part)  # numbers are not always without gaps
            if own is not None:
                its = {"split": False, "parent": gpu["uuid"], "instance": number, "name": own["name"] or gpu["name"]}
                found.append({**gpu, **own, **its})
        return found

    def _instance(self, handle: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a pointer of ctypes
        """What is its own; None for one that was taken apart since its handle was given: that concerns no other."""
        try:
            return self._device(handle)
        except (self.pynvml.NVMLError_GpuIsLost, self.pynvml.NVMLError_ResetRequired):
            raise
        except self.pynvml.NVMLError:
            return None

    def _device(self, handle: Any) -> dict[str, Any]:  # noqa: ANN401 - a pointer of ctypes
        """What a GPU and an instance have alike. Without a UUID it is none that could be used: NVMLError."""
        return {
            "uuid": _text(self.pynvml.nvmlDeviceGetUUID(handle)),
            "name": self._maybe("nvmlDeviceGetName", handle) or "",
            **self._memory(handle),
            "processes": self._processes(handle),
        }

    def _memory(self, handle: Any) -> dict[str, int]:  # noqa: ANN401 - a pointer of ctypes
        """Bytes, 0 where they are not told: GPUs without memory of their own (GB10) have none to tell."""
        try:
            memory = self.pynvml.nvmlDeviceGetMemoryInfo(handle)
        except (
            self.pynvml.NVMLError_NotSupported,
            self.pynvml.NVMLError_FunctionNotFound,
            self.pynvml.NVMLError_NoPermission,
        ):
            return {"memory_total": 0, "memory_used": 0, "memory_free": 0}
        return {"memory_total": memory.total, "memory_used": memory.used, "memory_free": memory.free}

    def _pci(self, handle: Any) -> str:  # noqa: ANN401 - a pointer of ctypes
        """Where it sits, as the kernel writes it: '0000:c1:00.0'."""
        pci = self._maybe("nvmlDeviceGetPciInfo_v3", handle)
        return "" if pci is None else "{:04x}:{:02x}:{:02x}.0".format(pci.domain, pci.bus, pci.device)

    def _processes(self, handle: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - a pointer of ctypes
        """Each process once, with the most that any of the lists tells of it; None where the driver does not."""
        held: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics", "MPSCompute"):
            for row in self._running("nvmlDeviceGet{}RunningProcesses".format(kind), handle):
                sizes = [size for size in (held.get(row.pid), row.usedGpuMemory) if size is not None]
                held[row.pid] = max(sizes) if sizes else None
        return [{"pid": pid, "memory_bytes": size} for pid, size in sorted(held.items())]

    def _running(self, name: str, handle: Any) -> list[Any]:  # noqa: ANN401 - a pointer of ctypes
        for version in VERSIONS:
            rows = self._maybe(name + version, handle)
            if rows is not None:
                return list(rows)
        return []


def _words(pynvml: Any, error: Any) -> str:  # noqa: ANN401 - the module, and its error
    """What the library itself calls an error, as nvidia-smi does; pynvml has other words for some."""
    try:
        return _text(pynvml.nvmlErrorString(error.value)) or str(error)
    except pynvml.NVMLError:  # there is no library
        return str(error)


def _text(value: bytes | str) -> str:
    """Older bindings return bytes."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value

"""GPUs of a host as its driver tells them, and what was decided about them for a server. Memory in bytes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from vmreconcile.model.values import JsonValue

PROHIBITED = "prohibited"
"""The compute mode in which no program may use a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one instance of a GPU that is split (MIG).

    `processes` are (pid, bytes or None where the driver does not tell). `index` is NVML's, which counts by PCI bus;
    an instance has its parent's, as it has its health. `xids` are the driver's error numbers since boot where they can
    be read, each once, oldest first (NVIDIA, "XID Errors"); `ecc_errors` are uncorrected ones since the driver was
    loaded.
    """

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    memory_free: int
    processes: tuple[tuple[int, int | None], ...] = ()
    pci: str = ""
    split: bool = False
    """MIG is on: programs get its instances, never the whole."""
    parent: str = ""
    """The UUID of the GPU that this is an instance of; "" for a whole one."""
    instance: int | None = None
    """The number of a MIG device on its GPU."""
    compute_mode: str = ""
    """'default', 'exclusive_process' or 'prohibited'; "" where it is not known."""
    ecc_errors: int | None = None
    remapping_failed: bool = False
    xids: tuple[int, ...] = ()

    def held_by(self, pids: Container[int]) -> bool:
        """Whether one of these processes holds memory of it."""
        return any(pid in pids for pid, _ in self.processes)

    @property
    def label(self) -> str:
        """Render 'GPU 0', or 'GPU 0 instance 1' for a part of one."""
        return f"GPU {self.index}" + (f" instance {self.instance}" if self.instance is not None else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model asks of its KV cache, None for nothing said: tokens, or requests of the longest context at once."""

    kv_tokens: int | None = None
    concurrency: float | None = None

    @property
    def stated(self) -> bool:
        """Whether anything was said."""
        return self.kv_tokens is not None or self.concurrency is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What was decided for a server that is to run on a host that was seen.

    `devices` are UUIDs by rank; () leaves the choice to vLLM. `visible` is how `CUDA_VISIBLE_DEVICES` names them for
    the vLLM of that host. `settings` are numbers that were left to the tool; one that is not in it is vLLM's default.
    `requested` are the bytes that vLLM must find free when it starts, of each device. `least` is what the model takes
    of each at least (`beside` and `kv_bytes`), where that was known.
    """

    devices: tuple[str, ...] = ()
    visible: tuple[str, ...] = ()
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    requested: tuple[int, ...] = ()
    least: Figures | None = None
    reasons: tuple[str, ...] = ()
    """For a person: why these devices and these numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The memory of one start on one GPU, of the tightest pipeline stage; None for what is not known.

    `beside` is all that vLLM counts beside the KV cache: weights, activations, graphs and the rest.
    """

    weights: int | None = None
    beside: int | None = None
    graphs: int | None = None
    kv_bytes: int | None = None
    kv_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What vLLM measured at a start, beside what was predicted for it; kept on the host in the ownership record.

    `key` says for what it holds: model, revision and the settings that decide about memory (not the utilization, not
    the context). `gpu` is the kind, `gpu_memory` its bytes as CUDA tells them.
    """

    key: str
    gpu: str
    gpu_memory: int
    vllm_version: str
    utilization: float
    max_model_len: int | None = None
    figures: Figures = field(default_factory=Figures)
    predicted: Figures | None = None

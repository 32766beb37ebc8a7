"""Which GPUs a vLLM sees, and why it does not start on them: `CUDA_VISIBLE_DEVICES`, parallel sizes, free memory.

Owns the rules, pure; whoever pretends GPUs brings them along. Must not know where they come from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmreconcile.simulator.failures import FAILURES

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
GIB = 1 << 30
CONTEXT = GIB // 2
"""Bytes that CUDA takes for a process before vLLM looks at what is free: 0.51 GiB on an H100."""

INSTANCE = "MIG-"
UUIDS_SINCE = (0, 24)
"""The first vLLM that takes UUIDs in `CUDA_VISIBLE_DEVICES`; earlier ones do int() on each (vllm#41848)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or an instance of one that is split (MIG), whose `index` is then its parent's.

    `total` are the bytes that CUDA names. `uuid` begins with 'GPU-', that of an instance with 'MIG-'.
    """

    index: int
    uuid: str
    total: int
    name: str = ""

    @property
    def is_instance(self) -> bool:
        """Whether it is a part of a GPU."""
        return self.uuid.startswith(INSTANCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The GPUs that a start wants: those of one replica, and replicas."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def world(self) -> int:
        """GPUs of one replica."""
        return self.tensor * self.pipeline


class StartError(Exception):
    """A start fails, with the text of vLLM's own exception; `in_engine`: its engine meets it, not the API server."""

    def __init__(self, text: str, *, in_engine: bool) -> None:
        """Keep who meets it."""
        super().__init__(text)
        self.in_engine = in_engine


def taken(devices: Sequence[Device], environ: Mapping[str, str], version: str, group: Group) -> tuple[Device, ...]:
    """The GPUs on which the ranks of a start run, in the order of the ranks.

    vllm/config/parallel.py: ParallelConfig.__post_init__; vllm/v1/worker/gpu_worker.py: init_device (0.22.1).

    Raises:
        StartError: it names one that is not there, or wants more than it sees.
    """
    seen = visible(devices, environ, version)
    if group.world > max(1, len(seen)):
        text = FAILURES["not-enough-gpus"].text.format(wanted_gpus=group.world, there=len(seen))
        raise StartError(text, in_engine=False)
    if group.world * group.data > len(seen):
        raise StartError(f"AssertionError: DP adjusted local rank {len(seen)} is out of bounds. ", in_engine=True)
    return seen[: group.world * group.data]


def visible(devices: Sequence[Device], environ: Mapping[str, str], version: str) -> tuple[Device, ...]:
    """What CUDA shows to a process: all GPUs in its own order, or those that the environment names.

    CUDA programming guide, "CUDA environment variables": the first word that names nothing ends the list; several
    instances cannot be seen at once (MIG user guide). Of the first word vLLM asks NVML, which fails on its own.

    Raises:
        StartError: this vLLM cannot read the variable, or its first word names no GPU.
    """
    whole = _in_order(devices, environ)
    instances = [device for device in devices if device.is_instance]
    said = environ.get(VARIABLE)
    if said is None:
        return tuple(whole) or tuple(instances[:1])
    words = [word.strip() for word in said.split(",")] if said else []
    _refuse_words(words, version)
    seen: list[Device] = []
    for word in words:
        found = _named(word, whole, instances)
        if found is None or found in seen:
            break
        seen.append(found)
    if words and not seen:
        error = "InvalidArgument: Invalid Argument" if _is_index(words[0]) else "NotFound: Not Found"
        raise StartError(f"vllm.third_party.pynvml.NVMLError_{error}", in_engine=False)
    return tuple(seen[:1] if seen and seen[0].is_instance else [each for each in seen if not each.is_instance])


def _in_order(devices: Sequence[Device], environ: Mapping[str, str]) -> list[Device]:
    """The whole GPUs by index as CUDA counts them: the fastest first unless told otherwise. Large counts as fast."""
    split = {device.index for device in devices if device.is_instance}
    found = sorted((each for each in devices if each.index not in split), key=lambda each: each.index)
    if environ.get(ORDER) == "PCI_BUS_ID":
        return found
    return sorted(found, key=lambda each: -each.total)


def _refuse_words(words: Iterable[str], version: str) -> None:
    """Fail as a vLLM does that knows only numbers."""
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= UUIDS_SINCE:
        return
    for word in words:
        if not _is_index(word):
            raise StartError(f"ValueError: invalid literal for int() with base 10: {word!r}", in_engine=False)


def _named(word: str, whole: Sequence[Device], instances: Sequence[Device]) -> Device | None:
    """The GPU that a word means: a number in CUDA's order (of a split one: its first instance), a UUID or its start."""
    if _is_index(word):
        return whole[int(word)] if int(word) < len(whole) else None
    found = [each for each in (*whole, *instances) if each.uuid.startswith(word)]
    return found[0] if len(found) == 1 and word.startswith(("GPU-", INSTANCE)) else None


def _is_index(word: str) -> bool:
    return word.isascii() and word.isdigit()


def requested(total: int, utilization: float) -> int:
    """Bytes that vLLM wants for itself: vllm/v1/worker/utils.py: request_memory (0.22.1)."""
    return math.ceil(total * utilization)


def check_free(rank: int, device: Device, free: int, utilization: float) -> None:
    """Check what vLLM checks first; `free` are the bytes that were free before the process took its context.

    Raises:
        StartError: less is free than is wanted.
    """
    wanted, free = requested(device.total, utilization), free - CONTEXT
    if free >= wanted:
        return
    text = FAILURES["gpu-already-used"].text.format(
        rank=rank,
        free=in_gib(max(0, free)),
        total=in_gib(device.total),
        requested=in_gib(wanted),
        utilization=utilization,
    )
    raise StartError(text, in_engine=True)


def in_gib(size: int) -> float:
    """Bytes as vLLM writes them."""
    return round(size / GIB, 2)

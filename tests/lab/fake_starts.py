"""A vLLM that starts on the GPUs of a machine in memory: what it takes, what it logs, and with which words it fails.

The rules of devices and free memory are the simulator's (vmreconcile/simulator/devices.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.lab.fake_gpus import GIB, FakeGpus
from vmreconcile.model.values import JsonValue
from vmreconcile.simulator import devices
from vmreconcile.simulator.devices import CONTEXT, Device, Group, StartError, in_gib
from vmreconcile.simulator.failures import FAILURES, LAST_WORDS
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import parse_strict
from vmreconcile.vllm.memory.defaults import release

if TYPE_CHECKING:
    from tests.lab.fake_kernel import Behaviour, FakeProcess, Kernel

BLOCK = 16
WEIGHTS = 0.9
GRAPHS = 0.02
"""Which part of the memory beside the KV cache the weights and CUDA's graphs are, for a log's sake."""

ONE_LINE_SINCE = (0, 26)
"""The first vLLM that says tokens and concurrency in one line (tests/vllm/logs/ready-cpu.log; 0.22.1 says two)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a command line asks for. `length` None: the model's own context, -1: as long as fits."""

    utilization: float
    kv_bytes: int
    length: int | None
    eager: bool
    group: Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a start found for its KV cache: bytes on each GPU, tokens, and the context in tokens."""

    kv: int
    tokens: int
    length: int

    def cache_config(self, asked: Asked) -> dict[str, str]:
        """The labels of `vllm:cache_config_info` that a reader looks at, as vLLM writes them."""
        return {
            "block_size": str(BLOCK),
            "cache_dtype": "auto",
            "gpu_memory_utilization": str(asked.utilization),
            "kv_cache_max_concurrency": str(round(self.tokens / self.length, 2)),
            "kv_cache_memory_bytes": str(asked.kv_bytes or None),
            "kv_cache_size_tokens": str(self.tokens),
            "num_gpu_blocks": str(self.tokens // BLOCK),
        }


class _KvError(StartError):
    """A start that finds too little for its KV cache: `kv` bytes, below zero where the rest does not fit either."""

    def __init__(self, text: str, kv: int) -> None:
        super().__init__(text, in_engine=True)
        self.kv = kv


def start_on_gpus(kernel: Kernel, slug: str, root: FakeProcess) -> None:
    """Let a vLLM that was just started take its memory, or let it fail: its exit code is set then."""
    kernel.gpus.settle(kernel.now)
    version = root.version or ""
    settings = parse_strict(root.argv[3:], catalogue_for(version))[1]
    log = kernel.logs[slug]
    asked = asked_for(settings, version)
    try:
        found = devices.taken(kernel.gpus.visible(), root.env, version, asked.group)
        result = _take(kernel.gpus, found, asked, root.behaviour)
    except StartError as error:
        log += _failed(kernel, root, error)
        root.behaviour, root.port = replace(root.behaviour, exit_code=1), None
        return
    workers = kernel.workers(root)
    if len(found) > 1:
        workers = [kernel.add_worker(root, f"VLLM::Worker_TP{rank}") for rank in range(len(found))]
    for worker, device in zip(workers, found, strict=True):
        size = asked.kv_bytes + _bytes(root.behaviour.beside_gib)
        kernel.gpus.hold(
            device.uuid,
            worker.pid,
            CONTEXT + (size if asked.kv_bytes else devices.requested(device.total, asked.utilization)),
        )
    root.cache_config, root.length = result.cache_config(asked), result.length
    root.ready_log = _ready(kernel, root, asked, result)


def asked_for(settings: Mapping[str, JsonValue], version: str) -> Asked:
    """Read settings, defaults by the version's catalogue."""
    known = catalogue_for(version).arguments

    def value(name: str) -> JsonValue:
        return settings.get(name, known[name].default if name in known else None)

    def count(name: str) -> int:
        found = value(name)
        return found if isinstance(found, int) else 0

    share, length = value("gpu_memory_utilization"), value("max_model_len")
    return Asked(
        utilization=float(share) if isinstance(share, int | float) else 0.9,
        kv_bytes=count("kv_cache_memory_bytes"),
        length=-1 if length == "auto" else length if isinstance(length, int) else None,
        eager=bool(value("enforce_eager")),
        group=Group(
            tensor=count("tensor_parallel_size") or 1,
            pipeline=count("pipeline_parallel_size") or 1,
            data=count("data_parallel_size") or 1,
        ),
    )


def _take(gpus: FakeGpus, found: tuple[Device, ...], asked: Asked, behaviour: Behaviour) -> Taken:
    """Check every GPU as vLLM does; the tightest decides about the KV cache.

    Raises:
        StartError: with vLLM's words.
    """
    for rank, device in enumerate(found):
        if next(each for each in gpus.devices if each.uuid == device.uuid).compute_mode == "prohibited":
            text = "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"
            raise StartError(text, in_engine=True)
        free = device.total - gpus.held(device.uuid)
        devices.check_free(rank, device, free, asked.utilization)
        if free - CONTEXT < asked.kv_bytes + _bytes(behaviour.beside_gib * WEIGHTS):
            raise StartError(FAILURES["out-of-memory"].text, in_engine=True)
    least = min(devices.requested(device.total, asked.utilization) for device in found)
    return _fit(asked.kv_bytes or least - _bytes(behaviour.beside_gib), asked, behaviour)


def _fit(kv: int, asked: Asked, behaviour: Behaviour) -> Taken:
    """What fits into so many bytes of KV cache."""
    token = max(1, round(behaviour.needs_gib * GIB / behaviour.context))
    tokens = max(0, kv) // (token * BLOCK) * BLOCK
    if not tokens:
        raise _KvError(FAILURES["no-kv-memory"].text, kv)
    length = asked.length or behaviour.context
    if length < 0:
        length = min(behaviour.context, tokens)
    if tokens < length:
        text = FAILURES["kv-too-small"].text.format(
            max_model_len=length, needed=length * token / GIB, available=kv / GIB, estimate=tokens
        )
        raise _KvError(text, kv)
    return Taken(kv=kv, tokens=tokens, length=length)


def _failed(kernel: Kernel, root: FakeProcess, error: StartError) -> list[str]:
    """What a failed start leaves in the log."""
    if not error.in_engine:
        return ["Traceback (most recent call last):", *str(error).split("\n")]
    engine = kernel.workers(root)[0]
    found = _profiled(root, error.kv) if isinstance(error, _KvError) else []
    before = [_said(kernel, "EngineCore", engine.pid, source, text) for source, text in found]
    told = ["EngineCore failed to start.", "Traceback (most recent call last):", *str(error).split("\n")]
    lines = [_said(kernel, "EngineCore", engine.pid, "core.py:1165", line, level="ERROR") for line in told]
    return [*before, *lines, "Traceback (most recent call last):", LAST_WORDS]


def _profiled(root: FakeProcess, kv: int) -> list[tuple[str, str]]:
    """What a start says once it has measured its memory, whether it goes on or not."""
    weights = round(root.behaviour.beside_gib * WEIGHTS, 2)
    return [
        ("gpu_model_runner.py:5132", f"Model loading took {weights} GiB memory and 9.312 seconds"),
        ("gpu_worker.py:436", f"Available KV cache memory: {in_gib(kv)} GiB"),
    ]


def _ready(kernel: Kernel, root: FakeProcess, asked: Asked, taken: Taken) -> list[str]:
    """What a start has measured once it is ready."""
    beside = root.behaviour.beside_gib
    size = f"GPU KV cache size: {taken.tokens:,} tokens"
    most = f"Maximum concurrency for {taken.length:,} tokens per request: {taken.tokens / taken.length:.2f}x"
    sizes = [f"{size}, {most}"] if release(root.version) >= ONE_LINE_SINCE else [size, most]
    found = [
        *_profiled(root, taken.kv),
        *(("kv_cache_utils.py:1708", line) for line in sizes),
    ]
    if not asked.eager:
        graphs = round(beside * GRAPHS, 2)
        found.append(("gpu_model_runner.py:5890", f"Graph capturing finished in 5 secs, took {graphs} GiB"))
    engine = kernel.workers(root)[0]
    lines = [_said(kernel, "EngineCore", engine.pid, source, text) for source, text in found]
    return [*lines, f"(APIServer pid={root.pid}) INFO:     Application startup complete."]


def begun(kernel: Kernel, root: FakeProcess) -> str:
    """The line with which each start begins."""
    shown = {"model_tag": root.argv[3] if len(root.argv) > 3 else ""}
    return _said(kernel, "APIServer", root.pid, "utils.py:278", f"non-default args: {shown}")


def _said(kernel: Kernel, process: str, pid: int, source: str, text: str, *, level: str = "INFO") -> str:
    """A line as vLLM's logger writes it."""
    at = time.strftime("%m-%d %H:%M:%S", time.gmtime(kernel.now))
    return f"({process} pid={pid}) {level} {at} [{source}] {text}"


def _bytes(gib: float) -> int:
    return round(gib * GIB)

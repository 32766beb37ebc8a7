"""What vLLM measured at one start, from its own log lines and metrics, as `Figures` of its tightest worker. Pure.

Each worker, or only the first of a host, tells what it found (vllm/logger.py: info_once, 0.32.0); with several, the
one with the most weights and the least room for the KV cache decides what the server can do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from vmreconcile.model.gpus import Figures
from vmreconcile.vllm.log import after_ready, bare, latest_start
from vmreconcile.vllm.memory.sizes import GIB

_WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B\b|model weights take ([\d.]+)GiB")
"""v1/worker/gpu_model_runner.py: load_model ('GiB memory and' up to now, 'GiB and' before 0.12); worker/worker.py:
determine_num_available_blocks (engine V0, to 0.10)."""

_KV = re.compile(
    r"Available KV cache memory: (-?[\d.]+) GiB|model weights take .* reserved for KV Cache is (-?[\d.]+)GiB"
)
"""v1/worker/gpu_worker.py: determine_available_memory; V0 as above. Below zero where nothing is left."""

_USE = r"Free memory on device .* Current kv cache memory in use is (-?[\d.]+) "
_IN_USE, _IN_USE_BYTES = re.compile(_USE + "GiB"), re.compile(_USE + "bytes")
"""v1/worker/gpu_worker.py: compile_or_warm_up_model, which every worker logs: 0.10.2 in bytes, 0.32.0 in GiB; some
versions between only where they debug."""

_GIVEN = re.compile(r"Initial free memory .* reserved ([\d.]+) GiB memory for KV Cache as specified by ")
"""As above, where `kv_cache_memory_bytes` decides and nothing is profiled."""

_REQUESTED = re.compile(
    r"Free memory on device .* Desired GPU memory utilization is \([\d.]+, ([\d.]+) GiB\)"
    r"|Initial free memory: .* Requested memory: [\d.]+ \(util\), ([\d.]+) GiB"
    r"|the current vLLM instance can use total_gpu_memory .* = ([\d.]+)GiB"
)
"""The share of the GPU as vLLM worked it out: with `_IN_USE`, in the debug log, and by V0."""

_TOKENS = re.compile(r"[A-Z]+(?: \+ host)? KV cache size: (\d[\d,]*) tokens")
"""v1/core/kv_cache_utils.py: 'GPU', or the name of another kind of device in 0.32.0; once a worker before 0.11."""

_GRAPHS = re.compile(r"Graph capturing finished in \d+ secs, took (-?[\d.]+) GiB")
"""v1/worker/gpu_model_runner.py: capture_model."""


def figures_of(
    lines: Sequence[str], cache_config: Mapping[str, str], *, requested: int | None = None, engines: int = 1
) -> Figures:
    """What the latest start in `lines` measured; None for what is not found.

    `cache_config` holds the labels of `vllm:cache_config_info`. `requested` are the bytes that vLLM may take of a GPU
    (`memory.serving.requested_bytes`), for versions that do not log them. `engines` counts the replicas of the engine
    (`data_parallel_size`), whose blocks the metric adds up. Of a pipeline, versions that let only the first worker tell
    its KV cache may have a tighter one. Lines win over metrics, which have no bytes but those that somebody gave.
    """
    said = _of_start(lines)
    given = _count(cache_config, "kv_cache_memory_bytes") or min(_gib(_GIVEN, said), default=None)
    used = [*map(int, _numbers(_IN_USE_BYTES, said)), *_gib(_IN_USE, said)]
    room = min(used or _gib(_KV, said), default=None)
    taken = min(_gib(_REQUESTED, said), default=requested)
    return Figures(
        weights=max(_gib(_WEIGHTS, said), default=None),
        beside=taken - room if given is None and taken is not None and room is not None else None,
        graphs=max(_gib(_GRAPHS, said), default=None),
        kv_bytes=room if given is None else given,
        kv_tokens=min(map(int, _numbers(_TOKENS, said)), default=None) or _tokens(cache_config, engines),
    )


def _of_start(lines: Sequence[str]) -> list[str]:
    """The bare lines from the latest start's beginning until it was ready: what comes later is the users' doing.

    Ray puts a second name before a line.
    """
    begin = latest_start(lines)
    return [bare(bare(line)) for line in lines[begin : after_ready(lines, begin)]]


def _numbers(pattern: re.Pattern[str], lines: Iterable[str]) -> list[str]:
    """The number of each line that a pattern fits from its beginning on, without commas.

    One of a size that no memory has is left out: a log holds whatever any program printed.
    """
    found = [match[match.lastindex or 0].replace(",", "") for line in lines if (match := pattern.match(line))]
    return [number for number in found if re.fullmatch(r"-?\d{1,15}(?:\.\d{0,15})?", number, re.ASCII)]


def _gib(pattern: re.Pattern[str], lines: Iterable[str]) -> list[int]:
    """Those numbers, GiB, in bytes."""
    return [round(float(number) * GIB) for number in _numbers(pattern, lines)]


def _tokens(cache_config: Mapping[str, str], engines: int) -> int | None:
    """Tokens of the KV cache as the metric tells them (v1/engine/core_client.py, 0.32.0).

    Versions that do not have them tell blocks, which are as good only where every layer keeps everything.
    """
    told = _count(cache_config, "kv_cache_size_tokens")
    uneven = any(cache_config.get(name, "None") != "None" for name in ("sliding_window", "mamba_block_size"))
    blocks, size = _count(cache_config, "num_gpu_blocks"), _count(cache_config, "block_size")
    if told or "kv_cache_size_tokens" in cache_config or uneven or blocks is None or size is None:
        return told
    return blocks // max(1, engines) * size


def _count(cache_config: Mapping[str, str], name: str) -> int | None:
    """A whole number above 0 of the metric's labels, which are as Python prints them; None for anything else."""
    text = cache_config.get(name, "")
    return int(text) or None if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None

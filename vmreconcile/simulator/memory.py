"""The GPU that the simulator pretends to have: how much KV cache a start finds, and when it finds too little.

Owns the arithmetic, pure. Follows what vLLM does: requested = total * utilization, and the KV cache gets what weights
and overhead leave of it. The constants are those of Qwen2.5-7B on an H100, where they were measured; weights count
0.9 GiB unless told otherwise, for a demo's sake.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30
OVERHEAD_GIB = 2.81
GRAPHS_GIB = 0.58
BYTES_PER_TOKEN = 57344
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What decides the memory of a start; `kv_bytes` 0 means by utilization, `max_model_len` counts tokens."""

    total_gib: float
    weights_gib: float
    utilization: float
    kv_bytes: int
    max_model_len: int
    eager: bool
    bytes_per_token: int = BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What profiling finds: GiB of weights and of KV cache, its tokens and blocks, and how many full requests fit.

    `failure` names the class in `failures.FAILURES` that ends the start, "" for none.
    """

    weights_gib: float
    kv_gib: float
    tokens: int
    blocks: int
    concurrency: float
    failure: str = ""


def profile(wanted: Wanted) -> Found:
    """Work out the KV cache that a start with these settings gets on the pretended GPU."""
    kv_gib = wanted.kv_bytes / GIB
    if not wanted.kv_bytes:
        graphs = 0.0 if wanted.eager else GRAPHS_GIB
        kv_gib = wanted.total_gib * wanted.utilization - wanted.weights_gib - OVERHEAD_GIB - graphs
    blocks = max(0, int(kv_gib * GIB)) // (wanted.bytes_per_token * BLOCK_SIZE)
    tokens = blocks * BLOCK_SIZE
    failure = ""
    if kv_gib <= 0 or blocks == 0:
        failure = "no-kv-memory"
    elif tokens < wanted.max_model_len:
        failure = "kv-too-small"
    concurrency = tokens / wanted.max_model_len
    return Found(
        weights_gib=wanted.weights_gib,
        kv_gib=kv_gib,
        tokens=tokens,
        blocks=blocks,
        concurrency=concurrency,
        failure=failure,
    )

"""How a model is to be served: the arguments of vLLM that decide about memory, with every default filled in. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vmreconcile.vllm.memory.sizes import over

BLOCK = 16
"""Tokens a block of the KV cache (vllm/config/cache.py: DEFAULT_BLOCK_SIZE, 0.22.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One vLLM. Lengths in tokens, sizes in bytes.

    `total` is the GPU's memory as CUDA tells it. `kv_itemsize` is that of the KV cache. `in_flight` tokens are
    scheduled at once at most. `kv_bytes` is set where the KV cache has a given size (`--kv-cache-memory-bytes`).
    `expert_parallel` experts are spread whole. `hybrid` False: layers with a window keep everything.
    """

    total: int
    utilization: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    in_flight: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_itemsize: float = 2.0
    block: int = BLOCK
    eager: bool = False
    expert_parallel: bool = False
    hybrid: bool = True
    kv_bytes: int | None = None
    capture_sizes: tuple[int, ...] = ()

    @property
    def requested(self) -> int:
        """Bytes that vLLM may take."""
        return requested_bytes(self.total, self.utilization)

    @property
    def sampled(self) -> int:
        """Requests that are sampled at once in the profiling run."""
        return min(self.max_num_seqs, self.max_num_batched_tokens)

    def share(self, count: int) -> int:
        """What one GPU of the tensor-parallel group has of `count` things that are split; at least one."""
        return max(1, over(count, self.tensor_parallel))


def requested_bytes(total: int, utilization: float) -> int:
    """What vLLM may take of a GPU: ceil(total * utilization) bytes (v1/worker/utils.py: request_memory, 0.22.1)."""
    exact = total * utilization
    return int(exact) if exact == int(exact) else int(exact) + 1

"""Units and roundings that several modules share. Pure."""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30

_SMALL = MIB
_MEDIUM = 10 * MIB
_GRAIN = 2 * MIB
_LEAST = 512


def over(dividend: int, divisor: int) -> int:
    """Division that rounds up."""
    return -(-dividend // divisor)


def allocated(size: float) -> int:
    """Bytes that PyTorch's caching allocator counts for one tensor of `size` bytes.

    From 10 MiB on memory comes in steps of 2 MiB, and a rest of up to 1 MiB is not split off (PyTorch 2.11,
    c10/cuda/CUDACachingAllocator.cpp: get_allocation_size, should_split).
    """
    exact = over(int(-(-size // 1)), _LEAST) * _LEAST
    if exact < _MEDIUM:
        return exact
    whole = over(exact, _GRAIN) * _GRAIN
    return whole if whole - exact <= _SMALL else exact


def split(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage (vllm/distributed/utils.py: get_pp_indices, 0.22.1): the last gets no extra one."""
    counts = [layers // stages] * stages
    for back in range(layers % stages):
        counts[-(back + 2) % stages] += 1
    return tuple(counts)

"""GPUs by name, by size, and as hosts tell them."""

from __future__ import annotations

import pytest

from vmreconcile.vllm.memory.gpus import UnknownGpuError, gpu_of, known_gpus, seen_gpu

GIB = 1 << 30
H100 = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("text", ["H100", "h100-80gb", H100, "85520809984", "81559MiB", " nvidia h100 80GB HBM3 "])
def test_an_h100_by_any_name(text: str) -> None:
    """By what NVML says of it, too."""
    assert (gpu_of(text).name, round(gpu_of(text).total / GIB, 2)) == (H100, 79.18)


@pytest.mark.parametrize(
    ("text", "total"),
    [("80GiB", 80 * GIB), ("24GB", 24 * 10**9), ("12.5 gib", 25 * GIB // 2), ("17179869184", 16 * GIB)],
)
def test_a_size_is_taken_as_it_is(text: str, total: int) -> None:
    """Unless NVML says it of a GPU that is known."""
    assert (gpu_of(text).total, gpu_of(text).name) == (total, "")


@pytest.mark.parametrize(
    ("text", "near"), [("h10", "h100"), ("rtx 409", "rtx 4090"), ("", ""), ("80", ""), ("1e99", "")]
)
def test_what_is_neither_is_an_error(text: str, near: str) -> None:
    """With the name it may have been meant for; a number of GiB without its unit is one too."""
    with pytest.raises(UnknownGpuError) as error:
        gpu_of(text)
    assert error.value.near == near


def test_a_host_tells_more_than_cuda_gives() -> None:
    """What the driver keeps is known for known GPUs, and estimated for others."""
    assert round(seen_gpu(H100, 85520809984).total / GIB, 2) == 79.18
    other = seen_gpu("NVIDIA Something New", 100 * GIB + 5)
    assert 0 < other.uncertainty < 100 * GIB + 5 - other.total < GIB


def test_every_gpu_gives_less_than_it_has() -> None:
    """Between 0.2 and 4 %, and each is found by each of its names."""
    assert len(known_gpus()) > 20
    for gpu in known_gpus():
        assert 0.002 < 1 - gpu.cuda / gpu.nvml < 0.045, gpu.name
        assert all(gpu_of(name).name == gpu.name for name in (gpu.name, *gpu.aliases))

"""Memory of GPUs by name or by what NVML says, as CUDA gives it to programs. Pure; reads only its own gpus.json.

vLLM shares out the total that CUDA names; nvidia-smi names some hundred MiB more, which the driver keeps.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from dataclasses import dataclass
from importlib import resources

from vmreconcile.vllm.memory.arguments import Gpu
from vmreconcile.vllm.memory.sizes import GIB, MIB

RESERVED, RESERVED_UNCERTAINTY = GIB * 11 // 20, GIB // 4
"""What the driver keeps of a GPU that is not known here; 0.4 to 0.8 GiB of those that are."""

CLOSE = 2 * MIB
UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": MIB, "gib": GIB, "tib": 1 << 40, "k": 1000, "m": 10**6, "g": 10**9}
UNITS |= {"kb": 1000, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
LEAST = 256 * MIB
"""A GPU with less is a mistake: a number of GiB without its unit, most likely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One kind of GPU. Bytes as NVML and as CUDA tell them."""

    name: str
    aliases: tuple[str, ...]
    nvml: int
    cuda: int


class UnknownGpuError(ValueError):
    """A text that is neither a size nor a known GPU; `near` is a name that it may have been meant for, or ""."""

    def __init__(self, message: str, near: str = "") -> None:
        """Keep both."""
        super().__init__(message)
        self.near = near


@functools.cache
def known_gpus() -> tuple[Known, ...]:
    """Every GPU of gpus.json, in its order."""
    text = (resources.files("vmreconcile.vllm.memory") / "gpus.json").read_text(encoding="utf-8")
    return tuple(
        Known(
            name=row["name"],
            aliases=tuple(row["aliases"]),
            nvml=row["nvml_mib"] * MIB,
            cuda=row["cuda_mib"] * MIB,
        )
        for row in json.loads(text)["gpus"]
    )


def gpu_of(text: str) -> Gpu:
    """What `--gpu-memory` means: a name, or a size in bytes or with a unit (`80GiB`).

    A size that NVML says of a known GPU is taken as that GPU.

    Raises:
        UnknownGpuError: it is neither.
    """
    wanted = _plain(text)
    named = {_plain(name): gpu for gpu in known_gpus() for name in (gpu.name, *gpu.aliases)}
    if wanted in named:
        return Gpu(total=named[wanted].cuda, name=named[wanted].name)
    size = _SIZE.fullmatch(text.strip())
    unit = size[2].lower() if size else ""
    if size and unit in UNITS:
        total = int(float(size[1]) * UNITS[unit])
        if total < LEAST or total >= 1 << 50:
            raise UnknownGpuError(f"{text} is no GPU's memory: give bytes, or a size such as 80GiB")
        return _same_total(total) or Gpu(total=total)
    aliases = [gpu.aliases[0] for gpu in known_gpus()]
    near = difflib.get_close_matches(text.lower(), aliases, n=1)
    raise UnknownGpuError(f"{text!r} is neither a size nor a GPU known here", near[0] if near else "")


def seen_gpu(name: str, total: int) -> Gpu:
    """A GPU as NVML names it on a host, with its total in bytes."""
    alike = [gpu for gpu in known_gpus() if abs(gpu.nvml - total) <= CLOSE]
    exact = [gpu for gpu in alike if _plain(gpu.name) == _plain(name)] or alike
    if exact:
        return Gpu(total=exact[0].cuda, name=name)
    return Gpu(total=max(1, total - RESERVED), name=name, uncertainty=RESERVED_UNCERTAINTY)  # a share is of something


def _same_total(total: int) -> Gpu | None:
    """The GPU whose total NVML says so, the first of several; round numbers of GiB are nobody's in particular."""
    alike = [gpu for gpu in known_gpus() if abs(gpu.nvml - total) <= CLOSE and total % GIB]
    return Gpu(total=alike[0].cuda, name=alike[0].name) if alike else None


def _plain(name: str) -> str:
    """A name without its maker, its blanks and its dashes."""
    words = re.sub(r"[\s_-]+", " ", name.lower()).split()
    return " ".join(word for word in words if word not in {"nvidia", "tesla", "geforce"})

"""How the GPUs of a server are named to its vLLM in CUDA_VISIBLE_DEVICES. Pure.

vLLM before 0.24.0 takes each entry for a number and ends with "invalid literal for int()" on a UUID
(vllm/platforms/interface.py: device_id_to_physical_device_id of 0.22.1 and 0.23.0; vllm#41848). There the index does,
as long as CUDA counts like NVML, by PCI bus (CUDA programming guide: CUDA_DEVICE_ORDER).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vmreconcile.model.gpus import Gpu
from vmreconcile.model.observed import EnvValue
from vmreconcile.vllm.memory.defaults import release

READS_UUIDS = (0, 24)
VISIBLE, ORDER, BY_BUS = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"


def reads_uuids(version: str) -> bool:
    """Whether a vLLM can be told a GPU by its UUID; an unknown one can."""
    return release(version) >= READS_UUIDS


def words_for(devices: Iterable[Gpu], version: str) -> tuple[str, ...]:
    """What goes into CUDA_VISIBLE_DEVICES."""
    return tuple(gpu.uuid if reads_uuids(version) else str(gpu.index) for gpu in devices)


def named(word: str, gpus: Iterable[Gpu]) -> str | None:
    """The UUID that a word of CUDA_VISIBLE_DEVICES means: an index, or as much of a UUID as is unambiguous."""
    word = word.strip()
    if word.isdecimal() and len(word) < 5:
        found = [gpu.uuid for gpu in gpus if gpu.index == int(word) and not gpu.parent]
    else:
        found = [gpu.uuid for gpu in gpus if word.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(word)]
    return found[0] if len(found) == 1 else None


def split_words(value: str | None) -> tuple[str, ...]:
    """The entries of CUDA_VISIBLE_DEVICES."""
    return tuple(word.strip() for word in (value or "").split(",") if word.strip())


def words_in(env: Mapping[str, EnvValue]) -> tuple[str, ...]:
    """The GPUs that an environment as it was seen names."""
    seen = env.get(VISIBLE)
    return split_words(seen.value) if seen else ()


def device_variables(visible: tuple[str, ...]) -> dict[str, str]:
    """The environment that shows a server just these GPUs; nothing for none."""
    if not visible:
        return {}
    order = {ORDER: BY_BUS} if any(word.isdecimal() for word in visible) else {}
    return {VISIBLE: ",".join(visible), **order}

"""The GPUs of a host: that they answer, may be used, have sound memory, and who else holds memory of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmreconcile.core.checkup.patient import GIB, Patient, judged, well
from vmreconcile.core.gpus.ground import GRAVE_XIDS, Holder, ground_of
from vmreconcile.model.checkup import Check, Health
from vmreconcile.model.gpus import PROHIBITED, Gpu
from vmreconcile.model.observed import HostView, InstalledVllm

BUILT_FOR = re.compile(r"\+cu(\d+)(\d)\b")
"""The CUDA that a wheel was built for, where its version says so: '0.11.2+cu129' is 12.9."""

NOTICED = GIB // 4
"""Bytes held by somebody else that are worth a line: a display or a monitor holds less."""

NAMED = 3
"""Holders that are named; the others are counted."""


def gpu_checks(patient: Patient) -> Iterator[Check]:
    """Every GPU with its driver; a host without NVIDIA's driver is not ill."""
    host = patient.host
    if not host.gpus:
        problem = host.gpu_problem or "no GPU was found"
        yield judged(
            "gpu",
            host.gpu_problem is None or "no NVIDIA driver" in problem,
            problem,
            "look at nvidia-smi and dmesg on the host: driver and library must be of one version",
        )
        return
    if host.gpu_problem:
        remedy = "look at dmesg on the host (NVRM, Xid); as a rule only a reboot brings it back, and one that is lost"
        yield judged("gpu", good=False, summary=host.gpu_problem, remedy=f"{remedy} again is to be replaced")
    driver = f", driver {host.gpu_driver}" if host.gpu_driver else ""
    driver += f" (CUDA {host.gpu_cuda})" if host.gpu_cuda else ""
    others = ground_of(host, host.servers, ()).others
    for gpu in host.gpus:
        yield well("gpu", f"{gpu.label}: {gpu.name}, {_free(gpu)}{driver}")
        if not gpu.parent:  # an instance has its GPU's
            yield from _health(gpu, sum(each.parent == gpu.uuid for each in host.gpus))
        yield from _held(gpu, others.get(gpu.uuid, ()))
    for vllm in host.vllm:
        yield from _driver(host, vllm)


def _free(gpu: Gpu) -> str:
    if not gpu.memory_total:
        return "its memory is not told"
    return f"{gpu.memory_free / GIB:.1f} of {gpu.memory_total / GIB:.1f} GiB free"


def _health(gpu: Gpu, instances: int) -> Iterator[Check]:
    """What keeps servers from a whole GPU, and what makes it the last choice."""
    if gpu.split:
        yield judged(
            "gpu",
            instances > 0,
            f"{gpu.label} is split (MIG): "
            + (
                f"servers get its instances, {instances} of them, never the whole" if instances else "without instances"
            ),
            f"make instances (`nvidia-smi mig`), or end the splitting: `nvidia-smi -i {gpu.index} -mig 0`, as root",
            bad=Health.WARN,
        )
    if gpu.compute_mode == PROHIBITED:
        yield judged(
            "gpu",
            good=False,
            summary=f"{gpu.label} is closed to programs: compute mode prohibited",
            remedy=f"`nvidia-smi -i {gpu.index} -c DEFAULT`, as root; until then no server is put on it",
            bad=Health.WARN,
        )
    if gpu.remapping_failed:
        yield judged(
            "gpu",
            good=False,
            summary=f"{gpu.label}: broken memory that could not be remapped",
            remedy='have it replaced (NVIDIA, "GPU Memory Error Management"); no server is put on it',
        )
    if gpu.ecc_errors:
        yield judged(
            "gpu",
            good=False,
            summary=f"{gpu.label}: {gpu.ecc_errors:,} uncorrected memory errors since the driver was loaded",
            remedy="stop what runs there and reset it (`nvidia-smi --gpu-reset`), or reboot; servers get it last",
            bad=Health.WARN,
        )
    grave = [number for number in gpu.xids if number in GRAVE_XIDS]
    if grave:
        told = ", ".join(f"Xid {number} ({GRAVE_XIDS[number]})" for number in grave)
        yield judged(
            "gpu",
            good=False,
            summary=f"{gpu.label}: {told} since boot",
            remedy="where it was not reset since: stop what runs there and reset it, or reboot; servers get it last",
            bad=Health.WARN,
        )


def _held(gpu: Gpu, holders: tuple[Holder, ...]) -> Iterator[Check]:
    """Memory of a GPU that no server of ours holds."""
    size = sum(holder.size for holder in holders)
    if size < NOTICED:
        return
    named = "; ".join(f"{holder.size / GIB:.1f} GiB by {holder.who}" for holder in holders[:NAMED])
    more = f"; {len(holders) - NAMED} more" if len(holders) > NAMED else ""
    yield judged(
        "gpu",
        good=False,
        summary=f"{gpu.label}: {size / GIB:.1f} GiB held by what is not ours: {named}{more}",
        remedy="ask whose it is; servers get what it leaves, and nothing of it is ever ended from here",
        bad=Health.WARN,
    )


def _driver(host: HostView, vllm: InstalledVllm) -> Iterator[Check]:
    """A wheel of a newer CUDA than the driver's. Only another major version counts: within one, older drivers serve.

    Source: NVIDIA, CUDA Compatibility, "Minor Version Compatibility".
    """
    built = BUILT_FOR.search(vllm.version or "")
    newest = (host.gpu_cuda or "").partition(".")[0]
    if built and newest.isdigit() and int(newest) < int(built[1]):
        yield judged(
            "gpu",
            good=False,
            summary=f"vLLM {vllm.version} is built for CUDA {built[1]}.{built[2]}, the driver knows {host.gpu_cuda}",
            remedy=f"a newer driver on the host, or a vLLM that is built for CUDA {newest}",
            bad=Health.WARN,
        )

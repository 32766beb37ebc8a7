"""What servers are made of: the vLLM on the host, its GPUs and their driver."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmreconcile.core.checkup.patient import GIB, Patient, judged, well
from vmreconcile.core.diff import release
from vmreconcile.core.gpus.ground import GRAVE_XIDS, flaw_of, is_suspect
from vmreconcile.model.checkup import Check, Health
from vmreconcile.model.gpus import Gpu
from vmreconcile.model.observed import HostView, InstalledVllm
from vmreconcile.vllm.catalogue import catalogue_for

BUILT_FOR = re.compile(r"\+cu(\d+)(\d)\b")
"""The CUDA that a wheel was built for, where its version says so: '0.11.2+cu129' is 12.9."""

UNUSABLE = "no server is put on it: nvidia-smi -q on the host says more; compute mode: nvidia-smi -c 0"
SUSPECT = "it is taken last; look at dmesg on the host, reset the GPU (nvidia-smi -r) or have it repaired"


def vllm_checks(patient: Patient) -> Iterator[Check]:
    """Every executable that is asked for: there, and of a version whose arguments are known."""
    for vllm in patient.host.vllm:
        needed = any(server.executable == vllm.asked for server in patient.wanted)
        if vllm.path is None or vllm.version is None:
            yield judged(
                "vllm",
                good=False,
                summary=f"{vllm.asked or 'vllm on PATH'}: {vllm.problem or 'not found'}",
                remedy="install vLLM there, or set vllm_executable to its path",
                bad=Health.FAIL if needed else Health.WARN,
            )
            continue
        known = catalogue_for(vllm.version).version
        same = release(vllm.version) == known
        yield judged(
            "vllm",
            same,
            f"vLLM {vllm.version} at {vllm.path}" + ("" if same else f"; arguments are checked as for {known}"),
            "nothing need be done; an argument that is new or gone is then told by vLLM alone",
            bad=Health.WARN,
        )


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
    driver = f", driver {host.gpu_driver}" if host.gpu_driver else ""
    driver += f" (CUDA {host.gpu_cuda})" if host.gpu_cuda else ""
    for gpu in host.gpus:
        free, total = gpu.memory_free / GIB, gpu.memory_total / GIB
        summary = f"{gpu.label}: {gpu.name}, {free:.1f} of {total:.1f} GiB free{driver}"
        if gpu.split:
            yield well("gpu", f"{summary}; split into instances (MIG)")
        elif flaw := flaw_of(gpu):
            yield judged("gpu", good=False, summary=f"{summary}; it {flaw}", remedy=UNUSABLE, bad=Health.WARN)
        elif is_suspect(gpu):
            yield judged("gpu", good=False, summary=f"{summary}; {_errors(gpu)}", remedy=SUSPECT, bad=Health.WARN)
        else:
            yield well("gpu", summary)
    for vllm in host.vllm:
        yield from _driver(host, vllm)


def _errors(gpu: Gpu) -> str:
    """What a GPU counted that should not be."""
    counted = f"{gpu.ecc_errors} uncorrected memory errors" if gpu.ecc_errors else ""
    grave = sorted(GRAVE_XIDS.intersection(gpu.xids))
    seen = f"the driver's errors (Xid) {', '.join(map(str, grave))}" if grave else ""
    return " and ".join(filter(None, (counted, seen)))


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

"""What servers are made of: the vLLM on the host. Its GPUs are `gpus`'s."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checkup.patient import Patient, judged
from vmreconcile.core.diff import release
from vmreconcile.model.checkup import Check, Health
from vmreconcile.vllm.catalogue import catalogue_for


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

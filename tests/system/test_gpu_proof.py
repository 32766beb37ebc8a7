"""The proof for a real GPU (benchmarks/gpu/proof.py), over the real agent, the real pynvml and simulated vLLMs.

What cannot be had without a GPU is a stand-in: the driver's library (tests/lab/nvml), nvidia-smi, and vLLM itself. All
of them read who holds what of the pretended GPUs from one folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import nvml
from vmreconcile.simulator.install import install

ROOT = Path(__file__).resolve().parents[2]
UUID = "GPU-5a1c7e52-0c2f-5d4b-9d57-0e7f3b0a8f10"
TOTAL = 81559 << 20
SMI = f"""#!{sys.executable}
import pathlib, sys
held = 0
for file in pathlib.Path("@FOLDER@/held").glob("*"):
    for line in file.read_text().splitlines():
        pid, start, uuid, size = line.split()
        try:
            stat = pathlib.Path(f"/proc/{{pid}}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        held += int(size) if stat[19] == start and stat[0] != "Z" else 0
values = {{
    "index": "0", "uuid": "{UUID}", "name": "NVIDIA H100 80GB HBM3", "memory.total": "81559",
    "memory.used": str(held >> 20), "driver_version": "580.95", "compute_mode": "Default",
}}
asked = [word.partition("=")[2] for word in sys.argv if word.startswith("--query-gpu=")][0]
print(", ".join(values[name] for name in asked.split(",")))
"""
pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_the_proof_holds_on_a_pretended_gpu(tmp_path: Path) -> None:
    """Seen, shared, mended, measured beside predicted, and freed after a kill -9."""
    gpus = tmp_path / "gpus"
    (gpus / "held").mkdir(parents=True)
    (gpus / "gpus").write_text(f"0 {UUID} {TOTAL} NVIDIA H100 80GB HBM3\n")
    nvml.build(gpus)
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(SMI.replace("@FOLDER@", str(gpus)))
    program.chmod(0o755)
    simulator = tmp_path / "simulator"
    install(simulator)
    (simulator / "faults").write_text(f"gpus={gpus}\nstart_seconds=0.3\norphan_seconds=1\n")
    for port in (18432, 18433):
        (simulator / f"faults.{port}").write_text("weights_gib=14.3\n")
    report = tmp_path / "report.md"
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu/proof.py", report, "--vllm", simulator / "bin" / "vllm"],
        cwd=ROOT,
        env={
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "LD_LIBRARY_PATH": str(gpus),
            "STANDIN_NVML": str(gpus),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    text = report.read_text() if report.exists() else ""
    assert not done.returncode, done.stdout + done.stderr + text
    assert "Traceback" not in text
    telling = ("GPU 0: NVIDIA H100", UUID, "second try, with gpu_memory_utilization", "kv_tokens: predicted")
    for words in telling:
        assert words in text, text
    assert "0.00 GiB held on all GPUs" in text

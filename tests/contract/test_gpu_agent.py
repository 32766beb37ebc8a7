"""benchmarks/gpu/agent.py over pretended GPUs and a pretended nvidia-smi: it finds every difference, and no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.nvml import build
from vmreconcile.simulator.gpu_folder import hold

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/agent.py"
FIRST, SECOND, PART = "GPU-5a1c7e52", "GPU-8f6d2b11", "MIG-11111111"
MIB = 1 << 20
WHOLE = f"0 {FIRST} {81559 * MIB} NVIDIA H100\n1 {SECOND} {81559 * MIB} NVIDIA H100\n"
GPUS = f"{WHOLE}1 {PART} {9984 * MIB} NVIDIA H100 MIG\n"
ROW = "{index}, {uuid}, NVIDIA H100, 00000000:{bus}:00.0, 81559, {used}, {free}, {kept}, {rest}, 595.71"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")]


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with library, GPUs and nvidia-smi that agree: 4000 MiB held on the first, 500 kept by the driver."""
    build(tmp_path)
    (tmp_path / "gpus").write_text(GPUS)
    (tmp_path / "faults").write_text(f"reserved 0 {500 * MIB}\necc 0 2\necc 1 unsupported\nremapping 0 failed\n")
    (tmp_path / "held").mkdir()
    hold(str(tmp_path), os.getpid(), {FIRST: 4000 * MIB, PART: 10 * MIB})
    first = ROW.format(index=0, uuid=FIRST, bus="10", used=4000, free=77059, kept=500, rest="Default, Disabled, 2")
    second = ROW.format(index=1, uuid=SECOND, bus="20", used=30, free=81529, kept=0, rest="Default, Enabled, [N/A]")
    answers = {
        "gpu=": f"{first}\n{second}",
        "compute-apps": f"{FIRST}, {os.getpid()}, 4000",
        "remapped": f"{FIRST}, 1\n{SECOND}, [N/A]",
        "-L": f"  MIG 1g.10gb Device  0: (UUID: {PART})",
        "-q": "    CUDA Version                              : 13.2",
    }
    cases = "".join(f"  *{word}*) cat <<'END'\n{text}\nEND\n  ;;\n" for word, text in answers.items())
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\n')
    smi.chmod(0o755)
    return tmp_path


def run(folder: Path) -> tuple[int, str]:
    """Run it there; status and what it printed."""
    environ = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(folder)}
    argv = [sys.executable, str(SCRIPT), str(folder / "out.json")]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_both_say_the_same(machine: Path) -> None:
    """Every field of both devices, instances and holders; memory may move a little meanwhile."""
    status, said = run(machine)
    assert (status, "DIFFERS" in said) == (0, False), said
    told = {row["field"]: row["agent"] for row in json.loads((machine / "out.json").read_text())["rows"]}
    assert (told["instances"], told["GPU 0 ECC errors"], told["GPU 0 remapping failed"]) == ([PART], 2, True)
    assert (told[f"GPU 0 process {os.getpid()}"], told["GPU 1 split"]) == (4000 * MIB, True)


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ("reserved 1 100000000", "GPU 1 memory used"),
        ("compute_mode 0 prohibited", "GPU 0 compute mode"),
        ("processes denied", "GPU 0 process"),
        ("lost 1", "GPUs"),
    ],
)
def test_a_difference_is_found(machine: Path, fault: str, field: str) -> None:
    """Whatever it is in."""
    with (machine / "faults").open("a") as file:
        file.write(f"{fault}\n")
    status, said = run(machine)
    assert status == 1
    assert f"DIFFERS  {field}" in said


def test_without_a_gpu_there_is_nothing_to_compare(machine: Path) -> None:
    """It says so, and does not call that well."""
    (machine / "gpus").write_text("")
    status, said = run(machine)
    assert (status, "the agent sees no GPU" in said) == (2, True)

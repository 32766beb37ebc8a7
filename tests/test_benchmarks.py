"""The benchmark's own smoke: it runs from end to end, everyone finds nothing to do, and its tables are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def held(*arguments: str) -> str:
    """What `benchmarks/run --quick` prints; it fails where a plan finds something to do, or a peer fails."""
    command = [sys.executable, str(ROOT / "benchmarks/run"), "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_start_and_paper_fleets_are_measured_without_root() -> None:
    """These two parts need no network of their own."""
    said = held("--only", "start", "--only", "scale")

    assert re.search(r"`vmreconcile --help`: \d+ ms", said)
    assert re.search(r"\| 32 hosts, 32 models, 256 servers \| \d", said)


@pytest.mark.slow
@pytest.mark.system
def test_the_race_is_held_on_a_real_sshd() -> None:
    """Ours, with servers running and stopped, and the peers that are installed, each with its row."""
    said = held("--only", "race")

    rows = {line.split("|")[1].strip(): line for line in said.splitlines() if line.startswith("| ")}
    for title in ("vmreconcile plan, 4 running servers a host", "vmreconcile plan, 4 stopped servers a host"):
        assert re.search(r"\| 6 \| 1 \| \d+\.\d\d ", rows[title])
    assert any(title.startswith("(a) one bare Fabric exec") for title in rows)
    assert any(title.startswith("(c) ansible-core") for title in rows)

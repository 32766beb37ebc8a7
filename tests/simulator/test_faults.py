"""The simulator's switches: where they are read, which wins, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmreconcile.simulator.faults import Faults, read_faults


def test_without_switches() -> None:
    """An empty environment gives the defaults."""
    assert read_faults({}) == Faults()


def test_later_ones_win(tmp_path: Path) -> None:
    """Environment, then the folder's file, then the port's, then the named one; an empty value takes nothing."""
    named = tmp_path / "named"
    (tmp_path / "faults").write_text("# slow\nstart_seconds=2\nVLLM_SIMULATOR_STOP_SECONDS=2\ndie=gated\n")
    (tmp_path / "faults.8001").write_text("stop_seconds = 3\nwedged=1\ngpus=/host\n")
    named.write_text("WEDGED=no\n")
    environ = {"VLLM_SIMULATOR_START_SECONDS": "1", "VLLM_SIMULATOR_GPU_GIB": "", "VLLM_SIMULATOR_FAULTS": str(named)}
    faults = read_faults(environ, folder=str(tmp_path), port=8001)
    assert faults == Faults(start_seconds=2, stop_seconds=3, die="gated", wedged=False, gpus="/host")
    other = read_faults({}, folder=str(tmp_path), port=8002)
    assert (other.stop_seconds, other.wedged) == (2, False)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"VLLM_SIMULATOR_WEGDED": "1"}, "no switch 'wegded'"),
        ({"VLLM_SIMULATOR_START_SECONDS": "soon"}, "'soon' is not a number"),
    ],
)
def test_refused_switches(environ: dict[str, str], words: str) -> None:
    """A misspelled switch or a text for a number is refused with the variable's name."""
    with pytest.raises(ValueError, match=words) as refused:
        read_faults(environ)
    assert next(iter(environ)) in str(refused.value)

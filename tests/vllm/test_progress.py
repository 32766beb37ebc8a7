"""How far a start has come, as its log tells."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from vmreconcile.vllm.progress import further, progress_of

SHARDS = "Loading safetensors checkpoint shards:  {}% Completed | {}/4 [00:03<00:03,  1.02it/s]"
GRAPHS = "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  43%|████▎     | 22/51 [00:02<00:02, 10.1it/s]"
DOWNLOAD = "model-00001-of-00004.safetensors:  {}%|████▌     | 1.80G/3.99G [00:10<00:12, 180MB/s]"
ENGINE = "(EngineCore pid=7) INFO 11-22 09:12:40 [x.py:1] "
WAITS = (
    ENGINE + "No available shared memory broadcast block found in 60 seconds.",
    "(APIServer pid=4) DEBUG 11-22 09:12:40 [core_client.py:1] Waiting for 1 local engine core proc(s) to start.",
)


@pytest.mark.parametrize(
    ("before", "then"),
    [
        ([SHARDS.format(25, 1)], [SHARDS.format(50, 2)]),
        ([DOWNLOAD.format(45)], ["\r".join(map(DOWNLOAD.format, (45, 46)))]),
        ([], [GRAPHS]),
        ([], ["Fetching 4 files:  25%|██▌       | 1/4 [00:00<00:00]"]),
        ([SHARDS.format(100, 4)], [ENGINE + "Loading weights took 12.31 seconds"]),
        ([], ["(Worker_TP1 pid=8) INFO 11-22 09:12:40 [x.py:1] Model loading took 14.29 GiB memory and 9.3 seconds"]),
        (
            [ENGINE + "Compiling a graph for compile range (1, 8192) takes 9.01 s"],
            [ENGINE + "Compiling a graph for compile range (1, 512) takes 4.01 s"],
        ),
        ([], [ENGINE + "Dynamo bytecode transform time: 4.20 s"]),
    ],
)
def test_what_has_come_further(before: list[str], then: list[str]) -> None:
    """Bars that fill, pieces of work that end, another one of the same kind; not the other way round."""
    first, second = progress_of(before), progress_of([*before, *then])
    assert further(first, second)
    assert not further(second, first)
    assert not further(second, second)


@pytest.mark.parametrize("line", [*WAITS, "", "100%", "GPU KV cache usage: 4.5%", "x" * 100_000, "50% | a"])
def test_what_is_no_progress(line: str) -> None:
    """A start that hangs logs as well."""
    assert not further(progress_of([]), progress_of([line]))


def test_a_download_that_begins_again_stands_still() -> None:
    """It counts by the most that it ever reached."""
    reached = progress_of([DOWNLOAD.format(45)])
    assert not further(reached, progress_of([DOWNLOAD.format(45), DOWNLOAD.format(0), DOWNLOAD.format(12)]))


@pytest.mark.parametrize("name", ["ready-gpu.log", "ready-cpu.log"])
def test_a_real_start_makes_progress_all_the_way(name: str) -> None:
    """From each piece of its work to the next, up to the line that says that it is ready."""
    lines = (Path(__file__).parent / "logs" / name).read_text(encoding="utf-8").splitlines()
    steps = [progress_of(lines[:end]) for end in range(len(lines) + 1)]
    moves = [lines[end] for end in range(len(lines)) if further(steps[end], steps[end + 1])]
    assert len(moves) >= 8
    assert "Application startup complete." in moves[-1]


@pytest.mark.parametrize(
    "line", [" " * 100_000, "a " * 50_000, " 5%|" * 25_000, " 1%" * 30_000, ": " * 50_000 + "7% |"]
)
def test_no_line_of_a_log_holds_up_the_controller(line: str) -> None:
    """A server may write what it likes; its line is gone through once."""
    begun = time.monotonic()
    progress_of([line] * 5)
    assert time.monotonic() - begun < 5


def test_bars_have_the_names_that_they_were_given() -> None:
    """With a colon behind them or none, several in a line, and nothing of what stands before."""
    line = f"{ENGINE}Fetching 4 files:  25%|x| 1/4\rFetching 4 files:  50%|x| 2/4\rab:cd   7%|\r 99%|"
    assert progress_of([line]) == {"Fetching 4 files %": 50, "cd %": 7}

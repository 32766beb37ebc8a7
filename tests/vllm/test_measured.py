"""What vLLM measured at a start, read back: recorded logs and runs, the forms of other versions, several workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.memory.recorded import GIB, Run, runs
from vmreconcile.model.gpus import Figures
from vmreconcile.vllm.measured import figures_of
from vmreconcile.vllm.memory.gpus import seen_gpu
from vmreconcile.vllm.memory.serving import requested_bytes

LOGS = Path(__file__).parent / "logs"
RECORDED = [run for run in runs() if run.row["kv_gib"] is not None]
ROUNDED = 0.005
"""GiB by which a number with two decimals may be off."""


def log(name: str) -> list[str]:
    """The lines of one recorded log."""
    return (LOGS / f"{name}.log").read_text(encoding="utf-8").splitlines()


def gib(number: float) -> int:
    """Bytes."""
    return round(number * GIB)


def worker(name: str, text: str) -> str:
    """A line as a process of vLLM logs it."""
    return f"({name} pid=771) INFO 08-21 18:22:06 [gpu_worker.py:789] {text}"


def lines_of(run: Run) -> list[str]:
    """What vLLM logs at its usual level, made of the numbers that were taken from the log of a recorded run."""
    row = run.row
    said = [f"Model loading took {row['weights_gib']} GiB memory and 9.312 seconds"]
    said += [f"Available KV cache memory: {row['kv_gib']} GiB"]
    said += [f"GPU KV cache size: {row['kv_tokens']:,} tokens"] if row["kv_tokens"] else []
    said += [f"Graph capturing finished in 5 secs, took {row['graphs_gib']} GiB"] if row["graphs_gib"] else []
    return [worker("EngineCore", text) for text in said]


def requested_of(run: Run) -> int:
    """What vLLM could take of that GPU, worked out as the tool does it."""
    default = 0.92 if run.head["vllm_version"] == "0.22.1" else 0.9
    total = seen_gpu(run.head["gpu"], run.head["gpu_total_bytes"]).total
    return requested_bytes(total, run.row["arguments"].get("gpu_memory_utilization", default))


@pytest.mark.parametrize("run", RECORDED, ids=str)
def test_recorded_runs_are_read_back(run: Run) -> None:
    """Every number of every run on a GPU, in bytes."""
    found, row = figures_of(lines_of(run), {}, requested=requested_of(run)), run.row
    assert found.weights == gib(row["weights_gib"])
    assert found.kv_bytes == gib(row["kv_gib"])
    assert found.kv_tokens == row["kv_tokens"]
    assert found.graphs == (None if row["graphs_gib"] is None else gib(row["graphs_gib"]))


@pytest.mark.parametrize("run", [run for run in RECORDED if run.row.get("activation_gib")], ids=str)
def test_beside_is_the_sum_of_what_vllm_counts(run: Run) -> None:
    """What is requested less the KV cache: weights, peak, the rest, and graphs where that version sets them aside."""
    row = run.row
    counted = (row["graphs_estimated_gib"] or 0.0) if run.head["vllm_version"] == "0.22.1" else 0.0
    terms = row["weights_gib"] + row["activation_gib"] + row["non_torch_gib"] + counted
    beside = figures_of(lines_of(run), {}, requested=requested_of(run)).beside
    assert beside is not None
    assert beside / GIB == pytest.approx(terms, abs=6 * ROUNDED)


def test_the_log_of_a_gpu() -> None:
    """0.22.1 on an H100, without the bytes requested: it does not log them at its usual level."""
    expected = Figures(weights=gib(14.29), graphs=gib(0.58), kv_bytes=gib(55.6), kv_tokens=1_041_168)
    assert figures_of(log("ready-gpu"), {}) == expected
    with_request = figures_of(log("ready-gpu"), {}, requested=gib(72.84))
    assert with_request.beside == gib(72.84) - gib(55.6)


def test_the_log_of_a_cpu() -> None:
    """0.32.0: only the tokens are told, in one line with the concurrency."""
    assert figures_of(log("ready-cpu"), {}) == Figures(kv_tokens=131_072)


@pytest.mark.parametrize(("name", "weights"), [("memory_moved", 14.29), ("out_of_memory-warming_up", 0.99)])
def test_the_log_of_a_start_that_failed(name: str, weights: float) -> None:
    """What it found before it did; 'current free memory' is none of it."""
    found = figures_of(log(name), {}, requested=GIB)
    assert found.weights == gib(weights)
    assert (found.kv_tokens, found.graphs) == (None, None)


def test_the_cause_of_the_classic_failure_is_a_number_below_zero() -> None:
    """0.2 of an H100 for Qwen2.5-7B: what lies beside the KV cache is known all the same."""
    found = figures_of([worker("EngineCore", "Available KV cache memory: -0.88 GiB")], {}, requested=gib(15.84))
    assert (found.kv_bytes, found.beside) == (gib(-0.88), gib(15.84) + gib(0.88))


USE = (
    "Free memory on device (94.05/95.01 GiB) on startup. Desired GPU memory utilization is (0.9, 85.51 GiB). Actual "
    "usage is 56.89 GiB for consumed memory (weights + non-torch), 0.76 GiB for peak activation, and 0.32 GiB for "
    "CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=29407858586` (27.39 GiB) to fit "
    "into requested memory, or `--kv-cache-memory=38581581312` (35.93 GiB) to fully utilize gpu memory. Current kv "
    "cache memory in use is {}."
)
"""v1/worker/gpu_worker.py: compile_or_warm_up_model (0.32.0; 0.10.2 differs in the parts that are not read)."""


def test_the_tightest_worker_counts() -> None:
    """0.32.0: only the first worker tells its room at once, each of them later what is in use."""
    lines = [
        worker("Worker_PP0", "Model loading took 7.51 GiB memory and 20.1 seconds"),
        worker("Worker_PP1", "Model loading took 8.25 GiB memory and 20.2 seconds"),
        worker("Worker_PP0", "Available KV cache memory: 28.5 GiB"),
        worker("EngineCore", "GPU KV cache size: 518,000 tokens, Maximum concurrency for 8,192 tokens per request: 6x"),
        worker("Worker_PP0", "Graph capturing finished in 5 secs, took 0.30 GiB"),
        worker("Worker_PP1", "Graph capturing finished in 5 secs, took 0.32 GiB"),
        worker("Worker_PP0", USE.format("28.5 GiB")),
        worker("Worker_PP1", USE.format("27.85 GiB")),
    ]
    assert figures_of(lines, {}, requested=1) == Figures(
        weights=gib(8.25),
        beside=gib(85.51) - gib(27.85),
        graphs=gib(0.32),
        kv_bytes=gib(27.85),
        kv_tokens=518_000,
    )


def test_each_worker_may_tell_its_own_tokens() -> None:
    """As versions before 0.11 do, and engines of a data-parallel group in all: the fewest count."""
    lines = [worker(f"EngineCore_DP{n}", f"GPU KV cache size: {n},000 tokens") for n in (2, 1, 3)]
    assert figures_of(lines, {}).kv_tokens == 1000


def test_bytes_in_use_are_exact_where_they_are_told() -> None:
    """0.10.2 logs them; the request too."""
    lines = [worker("EngineCore_DP0", "Available KV cache memory: 55.15 GiB"), worker("EngineCore_DP0", USE)]
    lines[1] = lines[1].format("59212694937 bytes")
    found = figures_of(lines, {})
    assert (found.kv_bytes, found.beside) == (59_212_694_937, gib(85.51) - 59_212_694_937)


PARTS = (
    "model weights take 8.63GiB; non_torch_memory takes 0.09GiB; PyTorch activation peak memory takes 1.16GiB; "
    "the rest of the memory reserved for KV Cache is 45.53GiB."
)
"""worker/worker.py: determine_num_available_blocks (0.10.2)."""


def test_the_older_engine() -> None:
    """V0, which 0.10 still has for some models: its own words, several of them in one line, no size in tokens."""
    start = "INFO 07-02 17:08:07 [worker.py:267] "
    lines = [
        "INFO 07-02 17:08:01 [model_runner.py:1146] Model loading took 8.6253 GB and 7.670299 seconds",
        f"{start}the current vLLM instance can use total_gpu_memory (79.15GiB) x gpu_memory_utilization = 55.4GiB",
        f"{start}{PARTS}",
    ]
    found = figures_of(lines, {})
    assert found == Figures(weights=gib(8.63), beside=gib(55.4) - gib(45.53), kv_bytes=gib(45.53))


def test_the_debug_log_tells_what_is_requested() -> None:
    """That counts before what was worked out from the GPU's name."""
    lines = [
        worker("EngineCore", "Initial free memory: 78.66 GiB; Requested memory: 0.900000 (util), 71.26 GiB"),
        worker("EngineCore", "Available KV cache memory: 41.9 GiB"),
    ]
    assert figures_of(lines, {}, requested=GIB).beside == gib(71.26) - gib(41.9)


def test_a_second_name_before_a_line() -> None:
    """Ray's workers are told by the engine."""
    line = worker("EngineCore", "").split(" INFO")[0] + " " + worker("RayWorkerWrapper", "GPU KV cache size: 16 tokens")
    assert figures_of([line], {}).kv_tokens == 16


def test_a_cache_of_a_given_size() -> None:
    """Nothing was profiled: what lies beside it is not known; the metric has the bytes exactly."""
    lines = [
        worker(
            "EngineCore",
            "Initial free memory 78.66 GiB, reserved 20.0 GiB memory for KV Cache as specified by it",
        ),
        worker("EngineCore", "GPU KV cache size: 374,400 tokens"),
        worker("EngineCore", USE.format("20.0 GiB")),
    ]
    found = figures_of(lines, {}, requested=gib(71.26))
    assert found == Figures(kv_bytes=20 * GIB, kv_tokens=374_400)
    assert figures_of([], {"kv_cache_memory_bytes": "21474836481"}, requested=1).kv_bytes == 20 * GIB + 1


@pytest.mark.parametrize(
    ("labels", "engines", "tokens"),
    [
        ({"kv_cache_size_tokens": "872992", "num_gpu_blocks": "1", "block_size": "16"}, 1, 872_992),
        ({"kv_cache_size_tokens": "None", "num_gpu_blocks": "9", "block_size": "16"}, 1, None),
        ({"num_gpu_blocks": "54562", "block_size": "16", "sliding_window": "None"}, 1, 872_992),
        ({"num_gpu_blocks": "109124", "block_size": "16"}, 2, 872_992),
        ({"num_gpu_blocks": "54562", "block_size": "16", "sliding_window": "4096"}, 1, None),
        ({"num_gpu_blocks": "54562", "block_size": "16", "mamba_block_size": "528"}, 1, None),
        ({"num_gpu_blocks": "None", "block_size": "16"}, 1, None),
        ({"num_gpu_blocks": "-4", "block_size": "9" * 5000}, 1, None),
        ({}, 1, None),
    ],
)
def test_metrics_tell_the_tokens_where_the_log_does_not(
    labels: dict[str, str], engines: int, tokens: int | None
) -> None:
    """Directly, or by blocks where each layer keeps everything; a log that tells them wins."""
    assert figures_of([], labels, engines=engines).kv_tokens == tokens
    told = [worker("EngineCore", "GPU KV cache size: 7 tokens")]
    assert figures_of(told, labels, engines=engines).kv_tokens == 7


def test_only_the_latest_start_counts_and_only_until_it_was_ready() -> None:
    """One that has just begun has measured nothing; a request may hold any text, and be logged."""
    assert figures_of(log("ready-gpu") + log("port_in_use"), {}) == Figures()
    said = worker("APIServer", "Available KV cache memory: 0.01 GiB")
    assert figures_of([*log("ready-gpu"), said], {}).kv_bytes == gib(55.6)
    prompt = worker("APIServer", "Received request x: prompt: 'GPU KV cache size: 1 tokens'")
    assert figures_of([prompt], {}) == Figures()


@pytest.mark.parametrize("number", ["1.2.3", ".", ",", "9" * 400, "9" * 5000, "--1", "٣"])
def test_what_is_no_number_is_not_found(number: str) -> None:
    """A log is not to be trusted."""
    texts = (f"Available KV cache memory: {number} GiB", f"GPU KV cache size: {number} tokens")
    assert figures_of([worker("EngineCore", text) for text in texts], {}) == Figures()

#!/usr/bin/env python3
"""Starts real vLLM on a real GPU over a table of cases, and records what vLLM itself measured, beside the prediction.

    benchmarks/gpu/measure.py OUT.json [NAME…] [--gpus N] [--budget S]

Runs every case that needs N GPUs (1), or those named, as long as the budget (540 s) has time for one more: a start
took 90 to 160 s on the machine of the runs recorded so far, so that is three or four. OUT.json is written after each,
in the format of tests/vllm/runs. Refuses to start where its port answers or the GPUs are in use already, and leaves no
server behind, however it ends. Needs a vLLM in this interpreter, with `tokenizers`; of this project only its pure part.
Weights are dummies: their sizes are real, nothing is fetched.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from vmreconcile.vllm.memory.arguments import planned  # noqa: E402 - the path comes first
from vmreconcile.vllm.memory.gpus import seen_gpu  # noqa: E402
from vmreconcile.vllm.memory.predict import predict  # noqa: E402
from vmreconcile.vllm.memory.reading import read_shape  # noqa: E402

PORT = 8431
START_S = 240.0
"""How long a start may take."""
USUAL_S = 160.0
"""How long one takes, with graphs: a case begins only where the budget has so much left."""
GIB = 1 << 30
IDLE = GIB
"""What GPUs that nobody uses may show as used, each."""
ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "DEBUG",  # tells weights, peak and the rest apart
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
NUMBERS = {
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "activation_gib": r"torch peak memory increase: ([\d.]+)GiB",
    "non_torch_gib": r"non-torch forward increase memory: (-?[\d.]+)GiB",
    "free_at_start_gib": r"Initial free memory: ([\d.]+) GiB",
    "requested_gib": r"Requested memory: [\d.]+ \(util\), ([\d.]+) GiB",
    "graphs_estimated_gib": r"Estimated CUDA graph memory: ([\d.]+) GiB",
    "graphs_gib": r"Graph capturing finished in \d+ secs, took (-?[\d.]+) GiB",
    "kv_gib": r"Available KV cache memory: (-?[\d.]+) GiB",
    "kv_tokens": r"GPU KV cache size: ([\d,]+) tokens",
    "concurrency": r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x",
    "needed_gib": r"\(([\d.]+) GiB KV cache is needed",
    "longest": r"estimated maximum model length is (\d+)",
}
"""What vLLM says of itself: vllm/v1/worker/gpu_worker.py, gpu_model_runner.py, v1/core/kv_cache_utils.py (0.22.1)."""

TOLD = re.compile(
    r"(?:Using .*(?:backend|[Rr]unner)\b|\w+ CUDA graph memory: \S+ MiB first-capture|Profiling CUDA graph"
    r"|padding layers|cudagraph_memory|block size to).*"
)
"""What else explains the numbers."""

OUTCOMES = {
    "No available memory for the cache blocks": "no_kv_memory",
    "To serve at least one request": "kv_too_small",
    "not enough GPU memory": "weights_too_large",
    "out of memory": "weights_too_large",
}


def main() -> int:
    """Measure, print, and keep."""
    options = read_options()
    models = json.loads((ROOT / "tests/vllm/runs/models.json").read_text())["models"]
    cases = json.loads((ROOT / "benchmarks/gpu/cases.json").read_text())["cases"]
    name, total = gpu()
    document: dict[str, Any] = {
        "format_version": 1,
        "vllm_version": importlib.metadata.version("vllm"),
        "gpu": name,
        "gpu_total_bytes": total,
        "source": "our own: benchmarks/gpu/measure.py, weights are dummies",
        "runs": [],
    }
    begun = time.monotonic()
    for case in cases:
        if (options.names and case["name"] not in options.names) or case.get("gpus", 1) != options.gpus:
            continue
        if time.monotonic() - begun + USUAL_S > options.budget:
            print(f"{case['name']}: left out, too little of the budget of {options.budget:.0f} s is left", flush=True)
            continue
        refuse_if_busy()
        run = measure(case, models[case["model"]], options.keep)
        document["runs"].append(run)
        write(options.out, document)
        print(compared(run, models, document), flush=True)
    return 0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for the whole command (540)")
    parser.add_argument("--keep", type=Path, help="a folder for the logs")
    return parser.parse_args()


def gpu() -> tuple[str, int]:
    """The first GPU's name, and its bytes as NVML tells them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    first = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    name, _, size = first.rpartition(",")
    return name.strip(), int(size) << 20


def used() -> list[int]:
    """Bytes in use on each GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    rows = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return [int(row) << 20 for row in rows]


def refuse_if_busy() -> None:
    """A server that is there already would answer for ours, and its memory would be missing.

    Raises:
        SystemExit: something answers on the port, or uses a GPU.
    """
    with socket.socket() as trial:
        trial.settimeout(1)
        if trial.connect_ex(("127.0.0.1", PORT)) == 0:
            there = listening(PORT)
            raise SystemExit(f"measure.py: something answers on port {PORT} already ({named(there)}); end it first")
    busy = [f"GPU {index}: {size / GIB:.1f} GiB" for index, size in enumerate(used()) if size > IDLE]
    if busy:
        there = holding(lambda link: re.fullmatch(r"/dev/nvidia\d+", link) is not None)
        raise SystemExit(f"measure.py: memory is in use already, {', '.join(busy)} ({named(there)}); end that first")


def named(pids: list[int]) -> str:
    """Processes for a person; those of another container cannot be seen."""
    return "pid " + ", ".join(map(str, pids)) if pids else "by no process that can be seen from here"


def listening(port: int) -> list[int]:
    """The processes that listen on a port of this machine, as far as they can be seen."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in _lines(Path("/proc/net") / name)[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    return holding(lambda link: link in sockets)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def holding(wanted: Callable[[str], bool]) -> list[int]:
    """The processes with such an open file."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if wanted(os.readlink(file)):  # noqa: PTH115 - the link's own text
                found.add(int(file.parts[2]))
    return sorted(found)


def measure(case: dict[str, Any], model: dict[str, Any], keep: Path | None) -> dict[str, Any]:
    """One start: what came of it, and what vLLM said on the way."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        make_model(folder, changed(model, case.get("changes", {})))
        log = Path(place) / "log"
        before, begun = used(), time.monotonic()
        ready = start_and_stop(command(folder, case), log, case)
        text = log.read_text(errors="replace")
        if keep:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{case['name']}.log").write_text(text)
    seconds = round(time.monotonic() - begun, 1)
    wait_for_memory(before)
    found = {key: number(pattern, text) for key, pattern in NUMBERS.items()}
    outcome = "ready" if ready else next((word for sign, word in OUTCOMES.items() if sign in text), "failed")
    run = {"name": case["name"], "model": case["model"]}
    run |= {key: case[key] for key in ("changes", "gpus") if key in case}
    run |= {"arguments": case["arguments"], "outcome": outcome, **found, "seconds": seconds}
    told = list(dict.fromkeys(match[0][:240] for match in TOLD.finditer(text)))
    run["told"] = told[:25]
    if outcome == "failed":
        run["tail"] = text[-3000:]
    return run


def changed(model: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A config.json with some keys changed, in its text part where it has one."""
    if "text_config" in model:
        return {**model, "text_config": {**model["text_config"], **changes}}
    return {**model, **changes}


def make_model(folder: Path, config: dict[str, Any]) -> None:
    """A folder that vLLM serves: the config.json, and a tokenizer that knows bytes only."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - only on the GPU's machine

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: index for index, word in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def command(folder: Path, case: dict[str, Any]) -> list[str]:
    """The command line of one start."""
    words = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--load-format", "dummy"]
    words += ["--host", "127.0.0.1", "--port", str(PORT), "--served-model-name", case["name"]]
    for name, value in case["arguments"].items():
        option = "--" + name.replace("_", "-")
        words += [option] if value is True else [option, str(value)]
    return words


def start_and_stop(words: list[str], log: Path, case: dict[str, Any]) -> bool:
    """Start it, wait until it is healthy or gone, end its whole session."""
    environ = {**os.environ, **ENVIRON, **case.get("environ", {})}
    with log.open("wb") as out:
        server = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
    with watched(server):
        deadline = time.monotonic() + case.get("timeout", START_S)
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1).close()
            except OSError:
                time.sleep(0.25)
            else:
                return True
        return False


@contextmanager
def watched(server: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the server's whole session afterwards; and where this process is killed, all the same.

    Another process waits for the end of a pipe that only this one holds: PR_SET_PDEATHSIG would reach the server, but
    not the engine that it starts.
    """
    words = ["sh", "-c", 'cat > /dev/null; kill -s KILL -- "-$1"', "sh", str(server.pid)]
    watchdog = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        end(server)
        watchdog.kill()
        watchdog.communicate()


def end(server: subprocess.Popen[bytes]) -> None:
    """TERM, and after a while KILL, to the session that was started here and to nothing else."""
    for sign, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            break
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    try:
        os.killpg(server.pid, signal.SIGKILL)  # workers that outlived their root
    except ProcessLookupError:
        return


def wait_for_memory(before: list[int], patience: float = 30.0) -> None:
    """Wait until the memory is free again."""
    deadline = time.monotonic() + patience
    while sum(used()) > sum(before) + (300 << 20) and time.monotonic() < deadline:
        time.sleep(0.5)


def number(pattern: str, text: str) -> float | int | None:
    """The first number that a pattern finds; whole ones as such."""
    found = re.search(pattern, text)
    if not found:
        return None
    plain = found[1].replace(",", "")
    return float(plain) if "." in plain else int(plain)


def compared(run: dict[str, Any], models: dict[str, Any], document: dict[str, Any]) -> str:
    """One line: predicted beside measured."""
    shape = read_shape(changed(models[run["model"]], run.get("changes", {})))
    card = seen_gpu(document["gpu"], document["gpu_total_bytes"])
    found = predict(planned(shape, run["arguments"], card, document["vllm_version"]))
    terms = found.terms
    pairs = (
        ("weights", terms.weights / GIB, run["weights_gib"]),
        ("peak", terms.activation / GIB, run["activation_gib"]),
        ("other", terms.overhead / GIB, run["non_torch_gib"]),
        ("graphs", terms.graphs / GIB, run["graphs_estimated_gib"]),
        ("kv", found.kv_bytes / GIB, run["kv_gib"]),
    )
    said = " ".join(f"{name} {value:.2f}/{real}" for name, value, real in pairs)
    head = f"{run['name']}: {found.verdict.value}/{run['outcome']} in {run['seconds']} s"
    tail = f"\n{run['tail'][-900:]}" if "tail" in run else ""
    return f"{head}: {said} tokens {found.tokens}/{run['kv_tokens']}{tail}"


def write(path: Path, document: dict[str, Any]) -> None:
    """One line a run, so that changes can be read."""
    head = {key: value for key, value in document.items() if key != "runs"}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    rows = ",\n  ".join(json.dumps(run, ensure_ascii=False) for run in document["runs"])
    path.write_text("{\n" + "\n".join(lines) + f'\n "runs": [\n  {rows}\n ]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

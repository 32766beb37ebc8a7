"""Every way to fail: the simulator prints what a reader of vLLM's logs looks for, and exits as vLLM does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.lab.server import running
from vmreconcile.simulator.failures import FAILURES

pytestmark = pytest.mark.slow

SIGNATURES: Mapping[str, str] = {
    "bad-path": r"HFValidationError: Repo id must be in the form",
    "bad-token": r"Invalid credentials in Authorization header",
    "gated": r"You are trying to access a gated repo\.[\s\S]*40[13] Client Error",
    "gpu-already-used": r"Free memory on device .* \(([\d.]+)/([\d.]+) GiB\) on startup is less than desired GPU "
    r"memory utilization \(([\d.]+), ([\d.]+) GiB\)",
    "hub-unreachable": r"We couldn't connect to '.*' to load the files",
    "kv-too-small": r"To serve at least one request with the model's max seq len \((\d+)\), \(([\d.]+) GiB KV cache is "
    r"needed, which is larger than the available KV cache memory \(([\d.]+) GiB\)\. Based on the available memory, the "
    r"estimated maximum model length is (\d+)\.",
    "max-model-len": r"User-specified max_model_len \((\d+)\) is greater than the derived max_model_len",
    "memory-moved": r"Error in memory profiling\.",
    "no-kv-memory": r"No available memory for the cache blocks\.",
    "no-such-repo": r"is not a local folder and is not a valid model identifier",
    "not-enough-gpus": r"World size \((\d+)\) is larger than the number of available GPUs",
    "offline": r"LocalEntryNotFoundError|Cannot find an appropriate cached snapshot",
    "out-of-memory": r"Failed to load model - not enough GPU memory\.|torch\.OutOfMemoryError",
    "port-in-use": r"\[Errno 98\] Address already in use",
    "too-slow": r"Timed out waiting for engine core processes to start",
    "unknown-argument": r"error: unrecognized arguments: (.*)",
}
LAST = "Engine core initialization failed. See root cause above."


def test_every_failure_has_a_signature() -> None:
    """This table and the simulator's know the same classes."""
    assert set(SIGNATURES) == set(FAILURES)


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_failed_start(simulator: Path, tmp_path: Path, name: str) -> None:
    """The fault `die` prints the class's text, exits as vLLM does and leaves nobody behind."""
    env = {"VLLM_SIMULATOR_DIE": name, "VLLM_SIMULATOR_START_SECONDS": "0.02", "VLLM_SIMULATOR_EARLY_SECONDS": "0"}
    with running(simulator, "a/model", tmp_path / "log", env=env) as server:
        assert server.end(10) == (2 if name == "unknown-argument" else 1)
        assert re.search(SIGNATURES[name], server.log())
        assert (LAST in server.log()) == FAILURES[name].in_engine
        assert "Application startup complete" not in server.log()
        server.wait_until(lambda: not server.processes(), 5, "processes left")


def test_a_failure_of_ones_own(simulator: Path, tmp_path: Path) -> None:
    """`die_text` and `die_code` make any other failure."""
    env = {"VLLM_SIMULATOR_DIE_TEXT": "RuntimeError: strange {things}", "VLLM_SIMULATOR_DIE_CODE": "7"}
    with running(simulator, "a/model", tmp_path / "log", env=env) as server:
        assert server.end(10) == 7
        assert "RuntimeError: strange {things}" in server.log()


@pytest.mark.parametrize(
    ("model", "env", "signature"),
    [
        ("simulator/gated-model", {}, SIGNATURES["gated"]),
        ("simulator/gated-model", {"HF_TOKEN": "hf_bad_one"}, SIGNATURES["bad-token"]),
        ("simulator/missing", {}, SIGNATURES["no-such-repo"]),
        ("/nowhere/model", {}, SIGNATURES["bad-path"]),
    ],
)
def test_models_that_cannot_be_had(
    simulator: Path, tmp_path: Path, model: str, env: Mapping[str, str], signature: str
) -> None:
    """Made-up hub ids and missing folders fail as such models do; no token shows."""
    with running(simulator, model, tmp_path / "log", env=env) as server:
        assert server.end(10) == 1
        assert re.search(signature, server.log())
        assert "hf_bad_one" not in server.log()


def test_a_gated_model_with_a_token(simulator: Path, tmp_path: Path) -> None:
    """With a token a gated model comes up."""
    with running(simulator, "simulator/gated-model", tmp_path / "log", env={"HF_TOKEN": "hf_fine"}) as server:
        server.wait_ready(10)
        assert "hf_fine" not in server.log()


@pytest.mark.parametrize(
    ("words", "signature"),
    [
        (("--gpu-memory-utilization", "0.02"), SIGNATURES["no-kv-memory"]),
        (("--gpu-memory-utilization", "0.06", "--max-model-len", "32K"), SIGNATURES["kv-too-small"]),
    ],
)
def test_too_little_memory(simulator: Path, tmp_path: Path, words: tuple[str, ...], signature: str) -> None:
    """Settings that leave no room for the KV cache fail by themselves, once it was said what is left for it."""
    with running(simulator, "a/model", tmp_path / "log", *words) as server:
        assert server.end(10) == 1
        assert re.search(r"Available KV cache memory: -?[\d.]+ GiB.*" + signature, server.log(), re.DOTALL)

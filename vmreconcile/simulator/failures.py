"""The texts with which vLLM 0.32.0 fails to start, one a class, for the fault `die`.

Owns what is printed and who prints it. Must not decide when. A text is the shortest one that holds everything a
reader of logs looks for; the traceback around it is vLLM's in form, not in length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One way to fail: the exception's text, and whether the engine's process or the API server's meets it.

    `text` may name `{model}`, `{max_model_len}`, `{limit}` (the model's own), `{needed}` and `{available}` (GiB of KV
    cache), `{estimate}` (tokens), `{rank}` (a GPU as CUDA counts), `{free}`, `{total}` and `{requested}` (GiB of it),
    `{utilization}`, `{there}` and `{wanted_gpus}` (GPUs). `EXAMPLE` has the values of a failure that is only pretended.
    """

    text: str
    in_engine: bool = True
    exit_code: int = 1


_GATED = (
    "OSError: You are trying to access a gated repo.\n"
    "Make sure to have access to it at https://huggingface.co/{model}.\n"
    "401 Client Error. (Request ID: Root=1-simulator)\n\n"
    "Cannot access gated repo for url https://huggingface.co/{model}/resolve/main/config.json.\n"
    "Access to model {model} is restricted. You must have access to it and be authenticated to access it. "
    "Please log in."
)
_NO_REPO = (
    "OSError: {model} is not a local folder and is not a valid model identifier listed on "
    "'https://huggingface.co/models'\n"
    "If this is a private repository, make sure to pass a token having permission to this repo either by logging in "
    "with `hf auth login` or by passing `token=<your_token>`"
)
_TOO_LONG = (
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
    "  Value error, User-specified max_model_len ({max_model_len}) is greater than the derived max_model_len "
    "(max_position_embeddings={limit} or model_max_length=None in model's config.json). To allow overriding this "
    "maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
)
_KV_TOO_SMALL = (
    "ValueError: To serve at least one request with the model's max seq len ({max_model_len}), ({needed:.2f} GiB KV "
    "cache is needed, which is larger than the available KV cache memory ({available:.2f} GiB). Based on the "
    "available memory, the estimated maximum model length is {estimate}. Try increasing `gpu_memory_utilization` or "
    "decreasing `max_model_len` when initializing the engine."
)

FAILURES: dict[str, Failure] = {
    "no-kv-memory": Failure(
        text="ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
        "initializing the engine."
    ),
    "kv-too-small": Failure(text=_KV_TOO_SMALL),
    "gpu-already-used": Failure(
        text="ValueError: Free memory on device cuda:{rank} ({free}/{total} GiB) on startup is less than desired GPU "
        "memory utilization ({utilization}, {requested} GiB). Decrease GPU memory utilization or reduce GPU memory "
        "used by other processes."
    ),
    "memory-moved": Failure(
        text="AssertionError: Error in memory profiling. Initial free memory 70.1 GiB, current free memory 78.9 GiB. "
        "This happens when other processes sharing the same container release GPU memory while vLLM is profiling "
        "during initialization."
    ),
    "out-of-memory": Failure(
        text="torch.OutOfMemoryError: Failed to load model - not enough GPU memory. Try lowering "
        "--gpu-memory-utilization to free memory for weights, increasing --tensor-parallel-size, or using "
        "--quantization."
    ),
    "max-model-len": Failure(text=_TOO_LONG, in_engine=False),
    "gated": Failure(text=_GATED, in_engine=False),
    "bad-token": Failure(
        text="huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: "
        "https://huggingface.co/{model}/resolve/main/config.json\n"
        "Invalid credentials in Authorization header",
        in_engine=False,
    ),
    "no-such-repo": Failure(text=_NO_REPO, in_engine=False),
    "offline": Failure(
        text="huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for "
        "the specified revision on the local disk and outgoing traffic has been disabled.",
        in_engine=False,
    ),
    "hub-unreachable": Failure(
        text="OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in "
        "the cached files.",
        in_engine=False,
    ),
    "bad-path": Failure(
        text="huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
        "'namespace/repo_name': '{model}'. Use `repo_type` argument if needed.",
        in_engine=False,
    ),
    "port-in-use": Failure(text="OSError: [Errno 98] Address already in use", in_engine=False),
    "too-slow": Failure(
        text="TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow weight "
        "loading for large models.",
        in_engine=False,
    ),
    "not-enough-gpus": Failure(
        text="pydantic_core._pydantic_core.ValidationError: 1 validation error for ParallelConfig\n"
        "  Value error, World size ({wanted_gpus}) is larger than the number of available GPUs ({there}) in this node. "
        "If this is intentional and you are using:\n- ray, set '--distributed-executor-backend ray'.\n"
        "- multiprocessing, set '--nnodes' appropriately.",
        in_engine=False,
    ),
    "unknown-argument": Failure(
        text="vllm: error: unrecognized arguments: --simulated-unknown-argument",
        in_engine=False,
        exit_code=2,
    ),
}

EXAMPLE: Mapping[str, object] = {
    "rank": 0,
    "free": 6.02,
    "total": 79.65,
    "requested": 73.28,
    "utilization": 0.92,
    "there": 1,
    "wanted_gpus": 8,
}


def last_words(code: int) -> str:
    """What the root says of an engine that ended while starting; `code` is negative for a signal."""
    return (
        "RuntimeError: Engine core initialization failed. See root cause above. "
        f"Failed core proc(s): {{'EngineCore': {code}}}"
    )


LAST_WORDS = last_words(1)


def traceback(text: str) -> str:
    """Dress an exception's text as the last lines of a traceback."""
    return f'Traceback (most recent call last):\n  File "vllm/simulator.py", line 1, in start\n    raise\n{text}\n'

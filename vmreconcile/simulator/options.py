"""The command line of `vllm serve`, checked by the catalogue of the simulated version.

Owns which of vLLM's arguments the simulator heeds; every other one is checked and left at that. Must not start
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import SECRET_ARGUMENTS
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.command import Settings, parse_strict, without_defaults

UNSUPPORTED = ("config", "grpc", "headless", "nnodes", "ssl_certfile", "uds")


class RangeError(Exception):
    """A value that vLLM's validation refuses; the text is the exception's, as vLLM prints it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the simulator heeds. `max_model_len` 0: the model's; `kv_bytes` 0: by utilization; `host` "": everywhere.

    `shown` holds the arguments that differ from their defaults, secrets masked, for the log.
    """

    model: str
    served_names: tuple[str, ...]
    host: str
    port: int
    max_model_len: int
    utilization: float
    kv_bytes: int
    eager: bool
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    enable_lora: bool
    adapter_ranks: int
    """Ranks of all adapters that may be loaded at once, 0 without adapters."""
    adapters: tuple[tuple[str, str], ...]
    api_keys: frozenset[str]
    access_log: bool
    block_size: int
    prefix_caching: bool
    kv_cache_dtype: str
    shutdown_timeout: int
    """Seconds that requests in flight may take once it is told to stop; 0 aborts them."""
    pools: str
    """What a model that pools was converted to, 'embed' or 'classify'; "" for one that writes."""
    shown: Mapping[str, JsonValue]

    def with_max_model_len(self, tokens: int) -> Options:
        """The same with a context length."""
        return replace(self, max_model_len=tokens)

    def check_ranges(self) -> None:
        """Check what vLLM checks after parsing.

        Raises:
            RangeError: with the text of vLLM's own exception.
        """
        if not 0 < self.utilization <= 1:
            side, bound = ("greater than 0", "greater_than") if self.utilization <= 0 else _TOO_MUCH
            _refuse("CacheConfig", "gpu_memory_utilization", f"Input should be {side}", bound, self.utilization)
        for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
            value = getattr(self, name)
            if value < 1:
                text = "Input should be greater than or equal to 1"
                _refuse("ParallelConfig", f"{name}_size", text, "greater_than_equal", value)


_TOO_MUCH = ("less than or equal to 1", "less_than_equal")


def _refuse(config: str, name: str, text: str, kind: str, value: float) -> None:
    """Raise what pydantic says."""
    raise RangeError(
        f"pydantic_core._pydantic_core.ValidationError: 1 validation error for {config}\n{name}\n  {text} "
        f"[type={kind}, input_value={value}, input_type={type(value).__name__}]"
    )


def read_options(words: tuple[str, ...], environ: Mapping[str, str], catalogue: Catalogue) -> Options:
    """Read the words after `vllm serve`.

    Raises:
        ValueError: vLLM's argument parser would refuse them; the text is its message.
        NotImplementedError: vLLM would take them, the simulator cannot.
    """
    model, settings = parse_strict(words, catalogue)
    given = without_defaults(settings, catalogue)
    unsupported = [name for name in UNSUPPORTED if name in given]
    if unsupported:
        raise NotImplementedError(f"{', '.join(unsupported)}: the simulator of vLLM does not simulate this")
    values = {name: argument.default for name, argument in catalogue.arguments.items()} | settings
    model = model or _text(values, "model")
    keys = [environ.get("VLLM_API_KEY", ""), *_texts(values, "api_key")]
    masked: Settings = {name: "***" if name in SECRET_ARGUMENTS else value for name, value in given.items()}
    return Options(
        model=model,
        served_names=_texts(values, "served_model_name") or (model,),
        host=_text(values, "host"),
        port=_int(values, "port"),
        max_model_len=max(0, _int(values, "max_model_len")),
        utilization=_float(values, "gpu_memory_utilization"),
        kv_bytes=_int(values, "kv_cache_memory_bytes"),
        eager=bool(values.get("enforce_eager")),
        tensor_parallel=_int(values, "tensor_parallel_size"),
        pipeline_parallel=_int(values, "pipeline_parallel_size"),
        data_parallel=_int(values, "data_parallel_size"),
        enable_lora=bool(values.get("enable_lora")),
        adapter_ranks=_adapter_ranks(values),
        adapters=_adapters(values),
        api_keys=frozenset(key for key in keys if key),
        access_log=not values.get("disable_uvicorn_access_log"),
        block_size=_int(values, "block_size"),
        prefix_caching=values.get("enable_prefix_caching") is not False,
        kv_cache_dtype=_text(values, "kv_cache_dtype"),
        shutdown_timeout=_int(values, "shutdown_timeout"),
        pools=_pools(values),
        shown={"model": model, **masked},
    )


def _text(values: Settings, name: str) -> str:
    """A text, "" for none."""
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _texts(values: Settings, name: str) -> tuple[str, ...]:
    """A list of texts; a lone text counts as a list of one."""
    value = values.get(name)
    items = value if isinstance(value, list) else [value]
    return tuple(item for item in items if isinstance(item, str))


def _int(values: Settings, name: str) -> int:
    """A whole number, 0 for none."""
    value = values.get(name)
    return value if isinstance(value, int) else 0


def _float(values: Settings, name: str) -> float:
    """A number, 0 for none."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _pools(values: Settings) -> str:
    """What `--runner`, `--convert` and the older `--task` make of the model; by itself each one writes."""
    kind = {_text(values, "convert"), _text(values, "task")}
    if kind & {"classify", "score", "reward"}:
        return "classify"
    return "embed" if kind & {"embed", "embedding"} or _text(values, "runner") == "pooling" else ""


def _adapters(values: Settings) -> tuple[tuple[str, str], ...]:
    """The LoRA adapters to start with, as name and path."""
    value = values.get("lora_modules")
    items = value if isinstance(value, list) else []
    return tuple((str(item["name"]), str(item["path"])) for item in items if isinstance(item, dict))


def _adapter_ranks(values: Settings) -> int:
    """max_loras x max_lora_rank, with vLLM's defaults (0.32.0: 1 and 16)."""
    counts = [values.get("max_loras"), values.get("max_lora_rank")]
    loras, rank = (int(str(value)) if value else default for value, default in zip(counts, (1, 16), strict=True))
    return loras * rank if values.get("enable_lora") else 0

"""From vLLM arguments, with whatever they leave open, to a `Serving` and what could not be counted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.defaults import Behaviour, batch, behaviour
from vmreconcile.vllm.memory.graphs import capture_sizes
from vmreconcile.vllm.memory.quantisation import method_of
from vmreconcile.vllm.memory.serving import BLOCK, Serving
from vmreconcile.vllm.memory.shape import Shape

KV_BYTES = {"float32": 4.0, "float16": 2.0, "half": 2.0, "bfloat16": 2.0, "nvfp4": 0.5625}
"""Bytes of one element of the KV cache by `--kv-cache-dtype`; those that begin with fp8 or int8 take one."""

UNCOUNTED = {
    "cpu_offload_gb": "weights kept in the host's memory",
    "enable_lora": "LoRA adapters",
    "hf_overrides": "changes to config.json",
    "num_gpu_blocks_override": "a given number of blocks",
    "speculative_config": "a draft model",
}
"""Arguments that change memory and are not counted, in words for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU: bytes as CUDA tells them, its name ("" for unknown), and by how much the bytes may be wrong."""

    total: int
    name: str = ""
    uncertainty: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model as it will be served: shape (in its dtype and quantisation), settings, the version's ways, and notes.

    `fits_itself`: vLLM shortens the context until it fits (`--max-model-len auto`).
    """

    shape: Shape
    serving: Serving
    behaviour: Behaviour
    gpu: Gpu
    version: str
    fits_itself: bool = False
    notes: tuple[str, ...] = ()


class UnfitArgumentsError(ValueError):
    """Arguments with which vLLM does not start whatever the memory; the message is one line for a person."""


def planned(shape: Shape, arguments: Mapping[str, JsonValue], gpu: Gpu, version: str) -> Planned:
    """Fill in what the arguments leave open. `arguments` are by canonical name; "auto" and null leave the default.

    Raises:
        UnfitArgumentsError: the model cannot be split so, or the context is longer than the model's.
    """
    shape = _as_served(shape, arguments)
    ways = behaviour(version, shape)
    length = _count(arguments, "max_model_len")
    batches = batch(version, gpu.total, gpu.name)
    seqs = _count(arguments, "max_num_seqs") or batches.seqs
    longest = length or shape.context.default
    tokens = _count(arguments, "max_num_batched_tokens") or min(
        _open_tokens(arguments, batches.tokens, longest), seqs * longest
    )
    serving = Serving(
        total=gpu.total,
        utilization=_share(arguments.get("gpu_memory_utilization"), ways.utilization),
        max_model_len=longest,
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        in_flight=tokens * ways.batches,
        tensor_parallel=_count(arguments, "tensor_parallel_size") or 1,
        pipeline_parallel=_count(arguments, "pipeline_parallel_size") or 1,
        kv_itemsize=_kv_itemsize(arguments.get("kv_cache_dtype"), shape),
        block=_count(arguments, "block_size") or BLOCK,
        eager=_eager(arguments),
        expert_parallel=arguments.get("enable_expert_parallel") is True,
        hybrid=arguments.get("disable_hybrid_kv_cache_manager") is not True,
        kv_bytes=_count(arguments, "kv_cache_memory_bytes") or None,
    )
    _check(shape, serving)
    serving = replace(serving, capture_sizes=_captured(arguments, capture_sizes(shape, serving)))
    notes = tuple(f"not counted: {what} ({name})" for name, what in UNCOUNTED.items() if arguments.get(name))
    return Planned(
        shape=shape,
        serving=serving,
        behaviour=ways,
        gpu=gpu,
        version=version,
        fits_itself=arguments.get("max_model_len") in ("auto", -1),
        notes=notes,
    )


def _as_served(shape: Shape, arguments: Mapping[str, JsonValue]) -> Shape:
    """The shape in the dtype and quantisation asked for; a quantised model stays as it is."""
    if arguments.get("dtype") in {"float32", "float"}:
        shape = replace(shape, itemsize=4)
    method = arguments.get("quantization")
    if isinstance(method, str) and method and shape.quantisation is None:
        shape = replace(shape, quantisation=replace(method_of(method), stored=False))
    return shape


def _check(shape: Shape, serving: Serving) -> None:
    """vllm/config/model.py: verify_with_parallel_config, _get_and_verify_max_len (0.22.1)."""
    heads = shape.layers[0].attention.heads
    if heads % serving.tensor_parallel:
        raise UnfitArgumentsError(f"{heads} attention heads cannot be split over {serving.tensor_parallel} GPUs")
    if serving.pipeline_parallel > len(shape.layers):
        raise UnfitArgumentsError(f"{len(shape.layers)} layers cannot make {serving.pipeline_parallel} stages")
    if serving.max_model_len > shape.context.limit:
        raise UnfitArgumentsError(
            f"a context of {serving.max_model_len} tokens is longer than the model's, {shape.context.limit}"
        )


def _count(arguments: Mapping[str, JsonValue], name: str) -> int | None:
    value = arguments.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _share(value: JsonValue, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _open_tokens(arguments: Mapping[str, JsonValue], tokens: int, longest: int) -> int:
    """Without chunked prefill, a batch holds the longest prompt (arg_utils.py: _set_default_max_num_seqs…)."""
    return max(tokens, longest) if arguments.get("enable_chunked_prefill") is False else tokens


def _kv_itemsize(value: JsonValue, shape: Shape) -> float:
    name = value.lower() if isinstance(value, str) else "auto"
    if name.startswith(("fp8", "int8")):
        return 1.0
    if name == "auto" and shape.quantisation is not None and shape.quantisation.kv_bytes:
        return shape.quantisation.kv_bytes
    return KV_BYTES.get(name, float(shape.itemsize))


def _eager(arguments: Mapping[str, JsonValue]) -> bool:
    """Whether no CUDA graphs are captured."""
    config = arguments.get("compilation_config")
    mode = config.get("cudagraph_mode") if isinstance(config, Mapping) else None
    level = arguments.get("optimization_level")
    return arguments.get("enforce_eager") is True or mode in ("NONE", 0) or level in (0, "0", "O0")


def _captured(arguments: Mapping[str, JsonValue], default: tuple[int, ...]) -> tuple[int, ...]:
    config = arguments.get("compilation_config")
    said = config.get("cudagraph_capture_sizes") if isinstance(config, Mapping) else None
    said = said or arguments.get("cudagraph_capture_sizes")
    sizes = tuple(size for size in said if isinstance(size, int)) if isinstance(said, list) else default
    cap = arguments.get("max_cudagraph_capture_size")
    cap = config.get("max_cudagraph_capture_size", cap) if isinstance(config, Mapping) else cap
    return tuple(size for size in sizes if size <= cap) if isinstance(cap, int) and cap > 0 else sizes

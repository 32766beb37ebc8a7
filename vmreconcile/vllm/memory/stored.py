"""Bytes of weights on one GPU, from the tensors that safetensors files hold: names, dtypes, shapes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.serving import Serving
from vmreconcile.vllm.memory.shape import Shape
from vmreconcile.vllm.memory.sizes import split

_BYTES = {
    8.0: ("F64", "I64", "U64"),
    4.0: ("F32", "I32", "U32"),
    2.0: ("F16", "BF16", "I16", "U16"),
    1.0: ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"),
    0.75: ("F6_E2M3", "F6_E3M2"),
    0.5: ("F4",),
}
DTYPES = {name: size for size, names in _BYTES.items() for name in names}
"""Bytes of one element, by the names of the safetensors format."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
SKIPPED = re.compile(r"rotary_emb\.inv_freq$|\.masked_bias$|(?:^|\.)attn\.bias$|\.attention\.bias$|^(?:model\.)?mtp\.")
"""What checkpoints hold and vLLM does not load: tables that it computes itself, layers for speculative decoding."""

WHOLE = re.compile(
    r"norm|(?:^|\.)ln_|router|(?:mlp|moe|ffn)\.gate\.|shared_expert_gate|kv_a_proj|q_a_proj|correction_bias"
    r"|wpe\.|embed_positions|position_embedding|(?:o_proj|down_proj|out_proj|c_proj|fc2|dense_4h_to_h)\.bias$"
)
"""What every GPU of a tensor-parallel group holds in full."""

KEY_VALUE = re.compile(r"\b(?:k_proj|v_proj)\b")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_layer)\.")
EMBEDDING = re.compile(r"embed_tokens|(?:^|\.)wte\.|word_embeddings|embed_in\.|tok_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One stored tensor: its name, the dtype in safetensors' words, its shape in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model's config.json and stored tensors, None where those are not there in full; `source` is where they are."""

    config: Mapping[str, JsonValue]
    tensors: tuple[Tensor, ...] | None
    source: str


def weigh_stored(tensors: Iterable[Tensor], shape: Shape, serving: Serving) -> tuple[int, ...]:
    """Bytes of stored weights on one GPU of each pipeline stage.

    Sixteen- and thirty-two-bit matrices count in the dtype that the model is served in; quantised tensors and their
    scales as they are stored.
    """
    counts = split(len(shape.layers), serving.pipeline_parallel)
    ends = [sum(counts[: index + 1]) for index in range(len(counts))]
    held = [0.0] * len(counts)
    for tensor in tensors:
        size = tensor_bytes(tensor, shape) / _parts(tensor, shape, serving)
        for stage in _stages(tensor.name, shape, ends):
            held[stage] += size
    return tuple(int(size) for size in held)


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Everything, as it is stored."""
    return int(sum(_elements(tensor) * DTYPES.get(tensor.dtype, 2.0) for tensor in tensors))


def tensor_bytes(tensor: Tensor, shape: Shape) -> float:
    """Bytes of one tensor in memory."""
    item = DTYPES.get(tensor.dtype, 2.0)
    if tensor.dtype in FLOATS and "scale" not in tensor.name and "correction_bias" not in tensor.name:
        item = float(shape.itemsize)
    return _elements(tensor) * item


def _elements(tensor: Tensor) -> int:
    count = 1
    for side in tensor.shape:
        count *= side
    return count


def _parts(tensor: Tensor, shape: Shape, serving: Serving) -> int:
    """Into how many parts a tensor is split."""
    if serving.tensor_parallel == 1 or WHOLE.search(tensor.name) or not tensor.shape:
        return 1
    kv_heads = shape.layers[0].attention.kv_heads
    if KEY_VALUE.search(tensor.name) and kv_heads < serving.tensor_parallel:
        return max(1, kv_heads)
    return serving.tensor_parallel


def _stages(name: str, shape: Shape, ends: list[int]) -> tuple[int, ...]:
    """The pipeline stages that hold a tensor; none where vLLM does not load it."""
    if SKIPPED.search(name):
        return ()
    last = len(ends) - 1
    if HEAD.search(name):
        return () if shape.tied else (last,)
    layer = LAYER.search(name) if "vision" not in name and "visual" not in name and "audio" not in name else None
    if layer is None:
        tied = EMBEDDING.search(name) is not None and shape.tied and last > 0
        return (0, last) if tied else (last,) if re.search(r"(?:^|\.)(?:final_)?(?:norm|ln_f)\.", name) else (0,)
    index = int(layer[1])
    return tuple(stage for stage, end in enumerate(ends) if index < end)[:1] if index < ends[-1] else ()

"""Bytes that one weight of a quantised model takes, from the `quantization_config` of its config.json. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vmreconcile.model.values import JsonValue

FP8_METHODS = frozenset({"fp8", "fbgemm_fp8", "ptpc_fp8", "modelopt", "fp8_per_tensor", "fp8_per_block"})
MXFP4_BYTES = 4 / 8 + 1 / 32
"""Four bits, and one byte of scale for 32 of them (OCP Microscaling Formats, version 1.0)."""

NVFP4_BYTES = 4 / 8 + 1 / 16
"""Four bits, and one byte of scale for 16 of them (vllm/model_executor/layers/quantization/modelopt.py, 0.22.1)."""

MOST = 1 << 20
"""No group of weights is larger."""

BNB4_BYTES = 4 / 8 + 4 / 64
"""Four bits, and a 32-bit scale for 64 of them (bitsandbytes' default block size)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """A method, the bytes of one weight of a linear layer with its scales, and what of the model it covers.

    `experts_only`: attention stays in 16 bits (gpt-oss). `known` False: the method is not known here, `weight_bytes`
    is a guess.
    """

    method: str
    weight_bytes: float
    experts_only: bool = False
    known: bool = True
    kv_bytes: float = 0.0
    """Bytes of one element of the KV cache where the checkpoint asks for a kind of its own; 0 where it does not."""
    stored: bool = True
    """Whether the checkpoint is quantised; False where that happens when it is loaded."""


def read_quantisation(config: Mapping[str, JsonValue]) -> Quantisation | None:
    """What `quantization_config` (or `compression_config`) says; None where the model is not quantised."""
    said = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(said, Mapping):
        return None
    method = str(said.get("quant_method", "")).lower().replace("_", "-")
    if method == "compressed-tensors":
        found = _compressed(said)
    else:
        found = method_of(method, _number(said, "bits") or _number(said, "w_bit"), said)
    return replace(found, kv_bytes=_kv_bytes(said))


def _kv_bytes(said: Mapping[str, JsonValue]) -> float:
    """One byte where the checkpoint has scales for an fp8 KV cache.

    vllm/utils/torch_utils.py: get_kv_cache_quant_algo_string (0.22.1).
    """
    scheme = said.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        return 1.0 if scheme.get("num_bits") == 8 and scheme.get("type") == "float" else 0.0
    return 1.0 if str(said.get("kv_cache_quant_algo", "")).upper() == "FP8" else 0.0


def method_of(method: str, bits: float = 0.0, said: Mapping[str, JsonValue] | None = None) -> Quantisation:
    """The quantisation of a method by its name in vLLM, as `--quantization` gives it too."""
    said = said or {}
    whole_columns = said.get("group_size") == -1
    group = 0.0 if whole_columns else _number(said, "group_size") or _number(said, "q_group_size") or 128.0
    match method.lower().replace("_", "-"):
        case name if name.replace("-", "_") in FP8_METHODS:
            return Quantisation(method="fp8", weight_bytes=1.0)
        case "awq" | "gptq" | "awq-marlin" | "gptq-marlin" | "auto-round":
            return Quantisation(method=method, weight_bytes=_grouped(bits or 4.0, group))
        case "mxfp4" | "gpt-oss-mxfp4":
            return Quantisation(method=method, weight_bytes=MXFP4_BYTES, experts_only=True)
        case "modelopt-fp4" | "nvfp4":
            return Quantisation(method=method, weight_bytes=NVFP4_BYTES)
        case "bitsandbytes":
            return Quantisation(method=method, weight_bytes=1.0 if said.get("load_in_8bit") is True else BNB4_BYTES)
        case _:
            return Quantisation(method=method, weight_bytes=bits / 8 if bits else 1.0, known=False)


def _grouped(bits: float, group: float) -> float:
    """Weights of some bits with a 16-bit scale and a zero point of as many bits for each group (GPTQ, AWQ)."""
    return bits / 8 + ((2 + bits / 8) / group if group > 0 else 0.0)


def _compressed(said: Mapping[str, JsonValue]) -> Quantisation:
    """compressed-tensors: the first group's weights decide (vllm/…/compressed_tensors/compressed_tensors.py)."""
    groups = said.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) and groups else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        return Quantisation(method="compressed-tensors", weight_bytes=1.0, known=False)
    bits = _number(weights, "num_bits")
    group = _number(weights, "group_size")
    if bits == 8:
        return Quantisation(method="compressed-tensors", weight_bytes=1.0)
    if weights.get("type") == "float" and bits == 4:
        return Quantisation(method="compressed-tensors", weight_bytes=NVFP4_BYTES if group == 16 else MXFP4_BYTES)
    return Quantisation(method="compressed-tensors", weight_bytes=_grouped(bits, group or 128.0), known=bits > 0)


def _number(said: Mapping[str, JsonValue], name: str) -> float:
    """A number from 1 that bits or a group may be; 0 for anything else."""
    value = said.get(name)
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < MOST
    return float(value) if fits else 0.0  # type: ignore[arg-type] # it is a number

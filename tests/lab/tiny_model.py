"""Writes a tiny Qwen2 model with random weights, or a LoRA adapter for it, that the real vLLM serves on a CPU.

    python tests/lab/tiny_model.py model FOLDER
    python tests/lab/tiny_model.py adapter FOLDER

Needs no network and nothing but the standard library: weights (safetensors) and tokenizer are written by hand.
`ARGUMENTS` and `ENVIRONMENT` are what the real vLLM wants on a machine with few cores.
"""

from __future__ import annotations

import array
import json
import math
import random
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

CONTEXT = 2048
VOCABULARY = 512
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
"""The environment in which the real vLLM starts in 20 to 25 s on two cores."""

ARGUMENTS = (
    "--dtype=float32",
    "--enforce-eager",
    "--kv-cache-memory-bytes=67108864",
    "--max-model-len=512",
    "--max-num-seqs=4",
)
"""Arguments that keep a server small (1.9 GB); without the cache's size the CPU build asks for more than there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the model. A head has 32 numbers, the least that vLLM's attention on the CPU takes."""

    hidden: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1
    head: int = 32
    inner: int = 128


SHAPE = Shape()


def write_model(folder: Path) -> Path:
    """Write configuration, tokenizer and weights (about 1 MB) into `folder`; return it. Same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    _write_json(folder / "config.json", _configuration())
    _write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    _write_tensors(folder / "model.safetensors", _weight_shapes(), spread=0.05)
    return folder


def write_adapter(folder: Path, *, rank: int = 8) -> Path:
    """Write a random LoRA adapter of the model into `folder`; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(SHAPE.layers):
        for name, rows in (("q_proj", SHAPE.heads * SHAPE.head), ("v_proj", SHAPE.kv_heads * SHAPE.head)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            shapes[f"{stem}.lora_A.weight"] = (rank, SHAPE.hidden)
            shapes[f"{stem}.lora_B.weight"] = (rows, rank)
    _write_tensors(folder / "adapter_model.safetensors", shapes, spread=0.5)
    settings = {
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    _write_json(folder / "adapter_config.json", settings)
    return folder


def _configuration() -> dict[str, object]:
    """The model's config.json."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "head_dim": SHAPE.head,
        "hidden_act": "silu",
        "hidden_size": SHAPE.hidden,
        "intermediate_size": SHAPE.inner,
        "max_position_embeddings": CONTEXT,
        "model_type": "qwen2",
        "num_attention_heads": SHAPE.heads,
        "num_hidden_layers": SHAPE.layers,
        "num_key_value_heads": SHAPE.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "vocab_size": VOCABULARY,
    }


def _weight_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model with its shape."""
    query, key = SHAPE.heads * SHAPE.head, SHAPE.kv_heads * SHAPE.head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, SHAPE.hidden),
        "lm_head.weight": (VOCABULARY, SHAPE.hidden),
        "model.norm.weight": (SHAPE.hidden,),
    }
    for layer in range(SHAPE.layers):
        stem = f"model.layers.{layer}"
        for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", key)):
            shapes[f"{stem}.self_attn.{name}.weight"] = (rows, SHAPE.hidden)
            shapes[f"{stem}.self_attn.{name}.bias"] = (rows,)
        shapes[f"{stem}.self_attn.o_proj.weight"] = (SHAPE.hidden, query)
        shapes[f"{stem}.mlp.gate_proj.weight"] = (SHAPE.inner, SHAPE.hidden)
        shapes[f"{stem}.mlp.up_proj.weight"] = (SHAPE.inner, SHAPE.hidden)
        shapes[f"{stem}.mlp.down_proj.weight"] = (SHAPE.hidden, SHAPE.inner)
        shapes[f"{stem}.input_layernorm.weight"] = (SHAPE.hidden,)
        shapes[f"{stem}.post_attention_layernorm.weight"] = (SHAPE.hidden,)
    return shapes


def _write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], *, spread: float) -> None:
    """Write float32 tensors as safetensors: length of the header, header as JSON, then the numbers.

    Norms are ones, everything else is normally distributed with standard deviation `spread`.
    """
    chance = random.Random(path.name)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = array.array("f")
    for name, shape in sorted(shapes.items()):
        count = math.prod(shape)
        begin = len(body) * body.itemsize
        body.extend([1.0] * count if "norm" in name else [chance.gauss(0.0, spread) for _ in range(count)])
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(body) * body.itemsize]}
    if sys.byteorder == "big":
        body.byteswap()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body.tobytes())


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer without merges: one token a byte, so any text goes through it."""
    tokens = [*SPECIAL, *_byte_letters()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": [],
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token} | plain for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    settings = {
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[0],
        "model_max_length": CONTEXT,
        "pad_token": SPECIAL[0],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level tokenizer: itself if it is visible, else one past 255."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def _write_json(path: Path, value: object) -> None:
    """Write one readable JSON file."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["model", folder]:
            write_model(Path(folder))
        case ["adapter", folder]:
            write_adapter(Path(folder))
        case _:
            sys.exit(__doc__)

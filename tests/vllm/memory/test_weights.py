"""Weights from the shape: parameters as transformers counts them, sizes by hand, splits, quantisation, stored ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vllm.memory.recorded import MODELS, said
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.arguments import Gpu, Planned, planned
from vmreconcile.vllm.memory.predict import predict
from vmreconcile.vllm.memory.reading import read_shape
from vmreconcile.vllm.memory.sizes import MIB, allocated, split
from vmreconcile.vllm.memory.stored import Tensor, total_bytes, weigh_stored
from vmreconcile.vllm.memory.weights import rotary_table

COUNTED = json.loads((Path(__file__).parent / "parameters.json").read_text())["models"]
LARGE = Gpu(total=1 << 44)


def plan(config: dict[str, JsonValue], **arguments: JsonValue) -> Planned:
    """A model on a GPU that is always large enough."""
    return planned(read_shape(config), arguments, LARGE, "0.22.1")


def weights(config: dict[str, JsonValue], **arguments: JsonValue) -> int:
    """Bytes on one GPU."""
    return predict(plan(config, **arguments)).terms.weights


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_parameters_are_those_that_transformers_counts(name: str) -> None:
    """Of thirty families; the allocator's rounding adds up to 1.6 % where matrices are small."""
    config = {**COUNTED[name]["config"], "quantization_config": None}
    shape = read_shape(config)
    assert shape.known, shape.doubts
    found = weights(config) - rotary_table(shape) * shape.itemsize
    assert -0.0002 < found / 2 / COUNTED[name]["parameters"] - 1 < 0.016


def test_a_small_llama_by_hand() -> None:
    """Two layers, every tensor below the size that the allocator rounds up in steps of 2 MiB."""
    config: dict[str, JsonValue] = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 128,
    }
    embedding = 1024 * 256  # 1000 rows padded to a multiple of 64
    layer = 256 * (4 + 2 + 2) * 64 + 256 * 256 + 3 * 256 * 512 + 2 * 256
    rotations = 128 * 64
    assert weights(config) == 2 * (2 * embedding + 2 * layer + 2 * 256 + rotations)
    assert weights({**config, "tie_word_embeddings": True}) == weights(config) - 2 * embedding


def test_the_allocator_rounds_large_tensors() -> None:
    """From 10 MiB on to steps of 2 MiB, unless more than 1 MiB would be wasted."""
    assert allocated(1000) == 1024
    assert allocated(9 * MIB + 1) == 9 * MIB + 512
    assert allocated(31.5 * MIB) == 32 * MIB
    assert allocated(24.5 * MIB) == int(24.5 * MIB)
    assert allocated(26 * MIB) == 26 * MIB


def test_layers_are_split_as_vllm_does() -> None:
    """Remaining layers go to stages from the last but one backwards."""
    assert split(32, 4) == (8, 8, 8, 8)
    assert split(30, 4) == (7, 8, 8, 7)
    assert split(7, 2) == (4, 3)
    assert split(5, 1) == (5,)


def test_tensor_parallel_splits_matrices_and_repeats_what_is_one() -> None:
    """Two GPUs hold half of it each, and key heads are repeated once there are fewer than GPUs."""
    one, two = weights(MODELS["qwen2.5-7b"]), weights(MODELS["qwen2.5-7b"], tensor_parallel_size=2)
    assert two == pytest.approx(one / 2, rel=0.005)
    mixtral = {**MODELS["mixtral-8x7b"], "num_key_value_heads": 2}
    split_keys = weights(mixtral, tensor_parallel_size=4)
    layers, hidden, head = 32, 4096, 128
    repeated = weights({**mixtral, "num_key_value_heads": 4}, tensor_parallel_size=4)
    assert split_keys == repeated, f"{layers} layers of {hidden}x{head} keys are held once by each"


def test_expert_parallel_spreads_whole_experts() -> None:
    """As many bytes as splitting each of them."""
    config = MODELS["qwen3-30b-a3b"]
    spread = weights(config, tensor_parallel_size=4, enable_expert_parallel=True)
    assert spread == pytest.approx(weights(config, tensor_parallel_size=4), rel=0.01)


@pytest.mark.parametrize(
    ("said_in_config", "share"),
    [
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 0.5 + 2.5 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 1.0),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}},
            1.0,
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5625),
        ({"quant_method": "modelopt_fp4"}, 0.5625),
    ],
)
def test_quantised_layers_take_less_and_embeddings_do_not(said_in_config: dict[str, JsonValue], share: float) -> None:
    """The linear layers of Llama 3.1 8B are 6.98e9 weights; the rest stays in 16 bits."""
    config = MODELS["llama-3.1-8b"]
    linear, rest = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336), 2 * 128256 * 4096
    found = weights({**config, "quantization_config": said_in_config})
    assert found == pytest.approx(linear * share + 2 * rest, rel=0.02)


def test_a_model_is_quantised_while_it_is_loaded() -> None:
    """`--quantization fp8` of a 16-bit model, whatever its files hold."""
    whole = predict(plan(MODELS["llama-3.1-8b"]), [Tensor(name="model.embed_tokens.weight", dtype="BF16", shape=(9,))])
    assert whole.from_files
    found = predict(
        plan(MODELS["llama-3.1-8b"], quantization="fp8"),
        [Tensor(name="model.embed_tokens.weight", dtype="BF16", shape=(9,))],
    )
    assert not found.from_files
    assert found.terms.weights == said("llama-3.1-8b", quantization="fp8").terms.weights


def stored(config: dict[str, JsonValue]) -> list[Tensor]:
    """The tensors of a Llama as its checkpoint holds them."""
    count, heads, keys = (
        int(str(config[key])) for key in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    hidden, inner, rows = (int(str(config[key])) for key in ("hidden_size", "intermediate_size", "vocab_size"))
    head = hidden // heads
    made = [
        ("model.embed_tokens.weight", (rows, hidden)),
        ("lm_head.weight", (rows, hidden)),
        ("model.norm.weight", (hidden,)),
    ]
    for layer in range(count):
        at = f"model.layers.{layer}"
        made += [
            (f"{at}.self_attn.q_proj.weight", (hidden, hidden)),
            (f"{at}.self_attn.k_proj.weight", (keys * head, hidden)),
            (f"{at}.self_attn.v_proj.weight", (keys * head, hidden)),
            (f"{at}.self_attn.o_proj.weight", (hidden, hidden)),
            (f"{at}.self_attn.rotary_emb.inv_freq", (head // 2,)),
            (f"{at}.mlp.gate_proj.weight", (inner, hidden)),
            (f"{at}.mlp.up_proj.weight", (inner, hidden)),
            (f"{at}.mlp.down_proj.weight", (hidden, inner)),
            (f"{at}.input_layernorm.weight", (hidden,)),
            (f"{at}.post_attention_layernorm.weight", (hidden,)),
        ]
    return [Tensor(name=name, dtype="BF16", shape=shape) for name, shape in made]


@pytest.mark.parametrize(("parallel", "stages"), [(1, 1), (2, 1), (4, 1), (16, 1), (1, 2), (2, 4)])
def test_stored_weights_agree_with_the_shape(parallel: int, stages: int) -> None:
    """Split alike, whichever way they are known."""
    config = MODELS["llama-3.1-8b"]
    plans = plan(config, tensor_parallel_size=parallel, pipeline_parallel_size=stages)
    by_files, by_shape = predict(plans, stored(config)), predict(plans)
    assert by_files.from_files
    assert by_files.terms.weights == pytest.approx(by_shape.terms.weights, rel=0.005)


def test_what_vllm_does_not_load_does_not_count() -> None:
    """Layers for speculative decoding, a head that is tied, tables; 32-bit numbers are loaded as 16-bit ones."""
    config = {**MODELS["llama-3.1-8b"], "tie_word_embeddings": True, "num_hidden_layers": 1}
    plans = plan(config)
    tensors = [
        Tensor(name="model.embed_tokens.weight", dtype="F32", shape=(10, 10)),
        Tensor(name="lm_head.weight", dtype="F32", shape=(10, 10)),
        Tensor(name="model.layers.0.self_attn.rotary_emb.inv_freq", dtype="F32", shape=(64,)),
        Tensor(name="model.layers.1.mlp.down_proj.weight", dtype="BF16", shape=(10, 10)),
        Tensor(name="mtp.layers.0.mlp.down_proj.weight", dtype="BF16", shape=(10, 10)),
        Tensor(name="model.layers.0.mlp.down_proj.weight_scale", dtype="F32", shape=(10,)),
        Tensor(name="model.layers.0.mlp.down_proj.weight", dtype="F8_E4M3", shape=(10, 10)),
    ]
    assert weigh_stored(tensors, plans.shape, plans.serving) == (200 + 40 + 100,)
    assert total_bytes(tensors) == 400 + 400 + 256 + 200 + 200 + 40 + 100

"""What a config.json says: nested parts, contexts, kinds of layers, and what is not known for sure."""

from __future__ import annotations

import time

import pytest

from tests.vllm.memory.recorded import MODELS
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.arguments import Gpu, UnfitArgumentsError, planned
from vmreconcile.vllm.memory.predict import Verdict, predict
from vmreconcile.vllm.memory.reading import UnknownShapeError, read_shape

LLAMA = MODELS["llama-3.1-8b"]
GPU = Gpu(total=80 << 30)


@pytest.mark.parametrize(
    ("changes", "default", "limit"),
    [
        ({}, 131072, 131072),
        ({"rope_scaling": None}, 131072, 131072),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 524288, 524288),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}},
            131072,
            131072,
        ),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, 4096, 131072),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, 131072, 131072),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 131072, 131072),
        ({"max_position_embeddings": None, "rope_scaling": None}, 2048, 2048),
        ({"model_max_length": 1024, "rope_scaling": None}, 1024, 1024),
    ],
)
def test_the_context_is_vllms_own(changes: dict[str, JsonValue], default: int, limit: int) -> None:
    """Scaled as the rotary embedding is."""
    context = read_shape({**LLAMA, **changes}).context
    assert (context.default, context.limit) == (default, limit)


def test_a_longer_context_than_the_models_is_refused() -> None:
    """As vLLM does."""
    with pytest.raises(UnfitArgumentsError, match="longer than the model's, 131072"):
        planned(read_shape(LLAMA), {"max_model_len": 200000}, GPU, "0.22.1")


@pytest.mark.parametrize(("name", "size"), [("tensor_parallel_size", 3), ("pipeline_parallel_size", 33)])
def test_a_split_that_cannot_be_is_refused(name: str, size: int) -> None:
    """Thirty-two heads and layers."""
    with pytest.raises(UnfitArgumentsError, match="32"):
        planned(read_shape(LLAMA), {name: size}, GPU, "0.22.1")


def test_the_text_part_of_a_larger_model_is_read() -> None:
    """Gemma 3: its own defaults under `text_config`, the vision part estimated and named."""
    shape = read_shape(MODELS["gemma-3-4b"])
    assert (len(shape.layers), shape.hidden, shape.tied) == (34, 2560, True)
    assert [layer.attention.window for layer in shape.layers[:6]] == [1024] * 5 + [None]
    assert shape.beside == ("vision",)
    assert shape.extra == pytest.approx(4.2e8, rel=0.05)
    bare = read_shape({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    assert (len(bare.layers), bare.layers[0].attention.head_dim) == (26, 256)


def test_experts_stand_where_the_model_says() -> None:
    """DeepSeek's first layers are dense; Qwen's by a list and a step; Llama 4's every other one."""
    deepseek = read_shape(MODELS["deepseek-v2-lite"])
    assert [bool(layer.experts) for layer in deepseek.layers[:3]] == [False, True, True]
    assert deepseek.layers[1].experts is not None
    assert deepseek.layers[1].experts.shared == 2 * 1408
    qwen = read_shape({**MODELS["qwen3-30b-a3b"], "mlp_only_layers": [1], "decoder_sparse_step": 2})
    assert [bool(layer.experts) for layer in qwen.layers[:4]] == [False, False, False, True]


def test_a_family_that_is_not_known_is_read_by_its_keys_and_says_so() -> None:
    """With a wider bracket, and the verdict unknown where the bracket holds two answers."""
    strange = {**LLAMA, "model_type": "brandnew", "architectures": ["BrandNewForCausalLM"]}
    shape = read_shape(strange)
    assert (shape.known, shape.doubts) == (False, ())
    easy = predict(planned(shape, {}, GPU, "0.22.1"))
    assert easy.verdict is Verdict.OK
    assert easy.uncertainty > predict(planned(read_shape(LLAMA), {}, GPU, "0.22.1")).uncertainty
    edge = {"gpu_memory_utilization": 0.42, "enforce_eager": True}
    assert predict(planned(shape, edge, GPU, "0.22.1")).verdict is Verdict.UNKNOWN
    assert predict(planned(read_shape(LLAMA), edge, GPU, "0.22.1")).verdict is Verdict.OK


@pytest.mark.parametrize(
    "changes",
    [
        {"mamba_d_state": 128},
        {"layer_types": ["full_attention", "linear_attention"] * 16},
        {"layers_block_type": ["mamba", "attention"]},
        {"is_encoder_decoder": True},
        {"model_type": "other", "hidden_act": "xielu"},
        {"model_type": "other", "intermediate_size": None},
    ],
)
def test_layers_of_other_kinds_are_a_doubt(changes: dict[str, JsonValue]) -> None:
    """State spaces, encoders, activations that may have no gate: no figure without a wide bracket."""
    shape = read_shape({**LLAMA, **changes})
    assert shape.doubts
    found = predict(planned(shape, {"gpu_memory_utilization": 0.3}, GPU, "0.22.1"))
    assert found.verdict is Verdict.UNKNOWN
    assert found.uncertainty > found.terms.weights // 4


@pytest.mark.parametrize("config", [{}, {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24}])
def test_a_shape_that_is_not_said_is_an_error(config: dict[str, JsonValue]) -> None:
    """It names what is missing."""
    with pytest.raises(UnknownShapeError, match="num_attention_heads"):
        read_shape(config)


@pytest.mark.parametrize("value", [-1, 1.5, "4096", [4096], True, None, 1 << 60])
def test_sizes_that_are_none_are_missing(value: JsonValue) -> None:
    """Whatever a file holds, it is told."""
    with pytest.raises(UnknownShapeError, match="hidden_size"):
        read_shape({**LLAMA, "hidden_size": value})


def test_absurd_models_are_refused_in_time() -> None:
    """A million layers would take for ever."""
    with pytest.raises(UnknownShapeError, match="1000000 layers"):
        read_shape({**LLAMA, "num_hidden_layers": 1000000})


def test_a_checkpoint_may_ask_for_a_kind_of_cache() -> None:
    """fp8 scales in compressed-tensors and ModelOpt checkpoints; `--kv-cache-dtype` wins."""
    groups = {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}
    scheme = {"num_bits": 8, "type": "float"}
    quantised = {"quant_method": "compressed-tensors", "config_groups": groups, "kv_cache_scheme": scheme}
    shape = read_shape({**LLAMA, "quantization_config": quantised})
    assert planned(shape, {}, GPU, "0.22.1").serving.kv_itemsize == 1.0
    assert planned(shape, {"kv_cache_dtype": "bfloat16"}, GPU, "0.22.1").serving.kv_itemsize == 2.0
    modelopt = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}
    assert planned(read_shape({**LLAMA, "quantization_config": modelopt}), {}, GPU, "0.22.1").serving.kv_itemsize == 1.0


def test_what_is_not_counted_is_named() -> None:
    """Draft models, adapters, offloading."""
    plan = planned(read_shape(LLAMA), {"enable_lora": True, "cpu_offload_gb": 4}, GPU, "0.22.1")
    assert [note.partition(": ")[2] for note in plan.notes] == [
        "weights kept in the host's memory (cpu_offload_gb)",
        "LoRA adapters (enable_lora)",
    ]


@pytest.mark.parametrize("kind", ["yarn", "longrope", "linear"])
def test_a_length_without_end_is_none(kind: str) -> None:
    """A number of thousands of digits, which no float holds, ended the plan of a whole fleet."""
    rope: JsonValue = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 10**4000}
    shape = read_shape(MODELS["qwen2.5-7b"] | {"rope_scaling": rope})
    assert shape.context.rows < 1 << 40
    predict(planned(shape, {}, Gpu(total=80 << 30), "0.22.1"))


def test_long_lists_of_layers_are_gone_through_once() -> None:
    """The largest config.json that is read is full of them: once a layer, that took minutes a model."""
    many = {"num_hidden_layers": 2048, "num_experts": 8, "model_type": "qwen3_moe"}
    begun = time.process_time()
    shape = read_shape(MODELS["qwen2.5-7b"] | many | {"mlp_only_layers": [0] * 30_000, "moe_layers": [1, 2] * 30_000})
    assert [at for at, layer in enumerate(shape.layers) if layer.experts] == [1, 2]
    assert time.process_time() - begun < 3


def test_a_config_full_of_strange_words_makes_few_doubts() -> None:
    """They are read by a person; of what a stranger wrote only so much."""
    strange: dict[str, JsonValue] = {f"ssm_{number}{'x' * 1000}": 1 for number in range(1000)}
    kinds: JsonValue = [f"kind {number}{'x' * 1000}" for number in range(1000)]
    shape = read_shape(MODELS["qwen2.5-7b"] | strange | {"layer_types": kinds})
    assert 0 < len(" ".join(shape.doubts)) < 2000
    with pytest.raises(UnknownShapeError) as refused:
        read_shape({"model_type": "x" * 100_000})
    assert len(str(refused.value)) < 300

"""Laws that hold for every model: more of one thing never helps by taking more of another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.vllm.memory.recorded import MODELS, said
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.arguments import Gpu, UnfitArgumentsError, planned
from vmreconcile.vllm.memory.kv import UnevenPagesError
from vmreconcile.vllm.memory.predict import Prediction, Verdict, predict
from vmreconcile.vllm.memory.reading import UnknownShapeError, read_shape

NAMES = st.sampled_from(sorted(MODELS))
SHARES = st.floats(min_value=0.05, max_value=0.95)


def parallel(model: str) -> st.SearchStrategy[int]:
    """Sizes that divide the model's heads."""
    text = MODELS[model].get("text_config", MODELS[model])
    assert isinstance(text, dict)
    heads = int(str(text.get("num_attention_heads") or text.get("n_head")))
    return st.sampled_from([size for size in (1, 2, 4, 8) if heads % size == 0])


@given(NAMES, SHARES, SHARES)
def test_more_utilization_never_gives_less(model: str, one: float, other: float) -> None:
    """Neither memory nor tokens, and what fits goes on fitting."""
    less, more = (said(model, gpu_memory_utilization=share) for share in sorted((one, other)))
    assert less.kv_bytes <= more.kv_bytes
    assert less.tokens <= more.tokens
    assert not (less.verdict is Verdict.OK and more.verdict is not Verdict.OK)


@given(NAMES.flatmap(lambda model: st.tuples(st.just(model), parallel(model), parallel(model))))
def test_more_gpus_never_need_more_of_each(drawn: tuple[str, int, int]) -> None:
    """Weights and peak; only the talk among them is added."""
    model, one, other = drawn
    few, many = (said(model, tensor_parallel_size=size).terms for size in sorted((one, other)))
    assert many.weights <= few.weights
    assert many.activation <= few.activation
    assert many.overhead >= few.overhead


@given(NAMES, st.integers(1, 2048), st.integers(1, 2048))
def test_more_requests_at_once_never_leave_more(model: str, one: int, other: int) -> None:
    """The peak grows with them, and with it what the KV cache loses."""
    few, many = (said(model, max_num_seqs=count, max_num_batched_tokens=2048) for count in sorted((one, other)))
    assert many.kv_bytes <= few.kv_bytes


@given(NAMES, st.integers(16, 1024), st.integers(16, 1024))
def test_a_longer_context_never_fits_more_often(model: str, one: int, other: int) -> None:
    """Requests at once fall with their length."""
    short, long = (said(model, max_model_len=length, max_num_batched_tokens=512) for length in sorted((one, other)))
    assert long.needed >= short.needed
    assert long.concurrency <= short.concurrency


@given(NAMES, SHARES)
def test_what_is_suggested_helps(model: str, share: float) -> None:
    """Each suggestion alone makes it fit, and the next smaller one would not."""
    found = said(model, gpu_memory_utilization=share)
    if found.better_utilization:
        assert _helps(model, gpu_memory_utilization=found.better_utilization)
        assert not _helps(model, gpu_memory_utilization=round(found.better_utilization - 0.01, 2))
    if found.better_length > 16:
        again = said(model, gpu_memory_utilization=share, max_model_len=found.better_length)
        assert again.needed <= found.kv_bytes
        assert again.verdict is Verdict.OK or again.planned.shape.beside


def _helps(model: str, **arguments: float) -> bool:
    found: Prediction = said(model, **arguments)
    return 0 < found.kv_bytes >= found.needed


@given(NAMES)
def test_half_the_bytes_hold_twice_the_tokens(model: str) -> None:
    """An fp8 KV cache."""
    whole, half = said(model), said(model, kv_cache_dtype="fp8")
    assert abs(half.tokens - 2 * whole.tokens) <= 4 * 16 * whole.planned.serving.max_model_len / 1000 + 64


ODD: st.SearchStrategy[JsonValue] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 1 << 45),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=5),
    st.lists(st.integers(-3, 99), max_size=3),
    st.sampled_from([0, 1, float("inf"), float("nan"), 1e-9, 1e308, 10**400]),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["yarn", "linear", "longrope", "new"]),
            "quant_method": st.sampled_from(["awq", "fp8", "mxfp4", "compressed-tensors", "new"]),
            "original_max_position_embeddings": st.sampled_from([0, 4096, 10**400]),
            "factor": st.one_of(st.floats(), st.integers(), st.none()),
            "bits": st.one_of(st.floats(), st.integers()),
            "group_size": st.one_of(st.floats(), st.integers()),
        }
    ),
)


@given(NAMES, st.data())
def test_whatever_a_config_holds_it_is_answered_or_refused(model: str, data: st.DataObject) -> None:
    """Any value under any key: a prediction, or an error with a name."""
    config = dict(MODELS[model])
    names = [*config, "quantization_config", "rope_scaling", "head_dim", "sliding_window", "partial_rotary_factor"]
    for key in data.draw(st.lists(st.sampled_from(sorted(set(names))), min_size=1, max_size=3)):
        config[key] = data.draw(ODD)
    try:
        found = predict(planned(read_shape(config), {}, Gpu(total=80 << 30), "0.22.1"))
    except (UnknownShapeError, UnfitArgumentsError, UnevenPagesError):
        return
    assert found.verdict in set(Verdict)
    assert found.tokens >= 0

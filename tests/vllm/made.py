"""Made-up but valid settings for the arguments of a catalogue: samples for each argument, and Hypothesis strategies."""

from __future__ import annotations

from hypothesis import strategies as st

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import Argument, Kind
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.checks import check_value
from vmreconcile.vllm.kinds import canonical

TEXTS = (
    "a",
    "two words",
    "-dash",
    "--port",
    "-0.5",
    "-O3",
    "--a.b",
    "ü 漢",
    "a=b",
    '"',
    "'$HOME'",
    "%s\\n",
    "x\ny",
    "{",
)
NUMBERS = (0, 1, 7, 8000, 2**31, -1)

texts = st.text("ab1-=.,+_{}[]\"' \\%$ü漢\n", max_size=12) | st.sampled_from(TEXTS)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
json_values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars | st.lists(scalars), max_size=3)
objects = st.dictionaries(texts, json_values, max_size=3)


def config_samples(argument: Argument) -> tuple[JsonValue, ...]:
    """Objects that a configuration argument surely takes: what its default says, and a part of it."""
    if not isinstance(argument.default, dict):
        return ()
    default = {key: value for key, value in argument.default.items() if isinstance(value, str | int | float | list)}
    return (default, dict(list(default.items())[:2]))


def item_samples(argument: Argument) -> tuple[JsonValue, ...]:
    """Awkward values for one word of an argument; not all are valid for every argument of its kind."""
    if argument.choices:
        return argument.choices
    by_kind: dict[Kind, tuple[JsonValue, ...]] = {
        Kind.BOOL: (True, False),
        Kind.FLAG: (True, False),
        Kind.TRUTH: (True, False),
        Kind.INT: NUMBERS,
        Kind.HUMAN_INT: NUMBERS,
        Kind.HUMAN_INT_OR_AUTO: NUMBERS,
        Kind.FLOAT: (0.0, 0.9, -1.5, 1e-7, 1e300),
        Kind.STR: TEXTS,
        Kind.FOLDED_STR: TEXTS,
        Kind.ID_LIST: ([0], [0, 1], ["GPU-1b2c", 3]),
        Kind.LIST: ([], ["*"], ["a b", "-c"]),
        Kind.OBJECT: ({}, {"a": {"b": [1, None, "-x"]}, "ü": 1.5}),
        Kind.OBJECT_OR_STR: ({}, {"a": {"b": 1}}, *TEXTS),
        Kind.CONFIG: config_samples(argument),
        Kind.LORA: ({"name": "a", "path": "/b c"}, {"name": "-a", "path": "x=y,z", "base_model_name": "m"}),
    }
    return by_kind[argument.kind]


def samples(argument: Argument) -> list[JsonValue]:
    """Valid settings of one argument, in canonical form."""
    items = item_samples(argument)
    values = [*([one] for one in items), [*items]] if argument.is_list else [*items]
    if argument.const is True and argument.kind is Kind.STR:
        values.append(True)
    return [canonical(argument, value) for value in values if check_value(argument, value) is None]


def items(argument: Argument) -> st.SearchStrategy[JsonValue]:
    """Any canonical value for one word of an argument."""
    if argument.choices:
        return st.sampled_from(argument.choices)
    by_kind: dict[Kind, st.SearchStrategy[JsonValue]] = {
        Kind.INT: st.integers(),
        Kind.HUMAN_INT: st.integers(-1, 2**50),
        Kind.FLOAT: st.floats(allow_nan=False),
        Kind.STR: texts,
        Kind.LIST: st.lists(json_values, max_size=3),
        Kind.OBJECT: objects,
        Kind.OBJECT_OR_STR: objects | texts,
    }
    return by_kind[argument.kind] if argument.kind in by_kind else st.sampled_from(item_samples(argument) or ({},))


def values(argument: Argument) -> st.SearchStrategy[JsonValue]:
    """Any valid setting of an argument, in canonical form."""
    one = items(argument)
    whole = st.lists(one, min_size=1, max_size=4) if argument.is_list else one
    return whole.map(lambda value: canonical(argument, value)).filter(
        lambda value: check_value(argument, value) is None
    )


def settings_of(catalogue: Catalogue) -> st.SearchStrategy[dict[str, JsonValue]]:
    """Any valid settings of a version: up to six arguments, without those that say which model is served."""
    names = [name for name in catalogue.arguments if name not in ("model", "config")]
    chosen = st.lists(st.sampled_from(names), unique=True, max_size=6)
    return chosen.flatmap(
        lambda some: st.fixed_dictionaries({name: values(catalogue.arguments[name]) for name in some})
    )

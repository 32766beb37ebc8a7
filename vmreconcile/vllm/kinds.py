"""Values of arguments: reading one word as vLLM does, writing it again, and the form in which two compare equal.

Follows vLLM's converters (`human_readable_int`, `optional_type`, `union_dict_and_str`, `parse_dataclass` and the
LoRA action). Knows one argument at a time; option words are `scan` and `command`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import assert_never

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import OBJECT_KINDS, Argument, Kind

SUFFIXED = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
DECIMAL = MappingProxyType({"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12})
BINARY = MappingProxyType({"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40})
QUOTED = re.compile(r'("(?:[^"\\]|\\.)*")')
DEEPEST = 64
"""Levels of nesting that we follow; no configuration of vLLM has more than a handful."""

NULLS = ("", "None")


def read(argument: Argument, text: str) -> JsonValue:
    """Read one word as the value (for lists: as one item) of `argument`.

    Raises:
        ValueError: in the words of argparse, to stand after 'argument --x: '.
    """
    if argument.optional and text in NULLS:
        return None
    try:
        value = _READERS[argument.kind](text)
    except WordedError:
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(_invalid(argument, text)) from error
    if argument.choices and value not in argument.choices:
        choices = ", ".join(map(repr, argument.choices))
        raise WordedError(f"invalid choice: {value!r} (choose from {choices})")
    return value


def write(argument: Argument | None, value: JsonValue) -> str:
    """Write a value (for lists: one item) as the word that `read` reads back; None stands for an unknown argument."""
    kind = argument.kind if argument else None
    match value:
        case str() if kind not in (Kind.LIST, Kind.OBJECT):
            return value
        case None:
            return "None"
        case bool() if kind is Kind.TRUTH:
            return "True" if value else ""
        case bool() if kind not in OBJECT_KINDS:
            return str(value)
        case list() if kind is Kind.ID_LIST:
            return ",".join(map(str, value))
        case int() | float() if not isinstance(value, bool):
            return repr(value)
        case _:
            return compact(value)


def compact(value: JsonValue) -> str:
    """JSON in one line without spaces, keys sorted, pure ASCII: equal values are equal words."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def canonical(argument: Argument, value: JsonValue) -> JsonValue:
    """Turn a value as a user may write it into the form in which equal settings are equal.

    What does not fit the argument is returned as it is; `check_value` says what is wrong with it.
    """
    if argument.kind in (Kind.BOOL, Kind.FLAG):
        return value
    if argument.is_list:
        items = value if isinstance(value, list) else [] if value is None else [value]
        return None if value is None else [_item(argument, item) for item in items]
    return _item(argument, value)


def _item(argument: Argument, value: JsonValue) -> JsonValue:
    """`canonical` for a single value or one item of a list."""
    match value:
        case str():
            try:
                return read(argument, value)
            except ValueError:
                return value
        case bool() | None:
            return value
        case int() | float():
            return _number(argument.kind, value)
        case list() if argument.kind is Kind.ID_LIST:
            return [_device(str(item)) for item in value]
        case dict() if argument.kind is Kind.LORA:
            return _adapter(value)
        case _:
            return value


def _number(kind: Kind, value: float) -> JsonValue:
    """Give a number the type its argument has."""
    match kind:
        case Kind.FLOAT:
            return float(value) if abs(value) < 2**1023 else value
        case Kind.STR | Kind.FOLDED_STR | Kind.OBJECT_OR_STR | Kind.LORA:
            return str(value)
        case Kind.ID_LIST:
            return [value]
        case Kind.INT | Kind.HUMAN_INT | Kind.HUMAN_INT_OR_AUTO if isinstance(value, float) and value.is_integer():
            return int(value)
        case _:
            return value


def equal(one: JsonValue, other: JsonValue) -> bool:
    """Compare by value: 1 and 1.0 are equal, 1 and true are not."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        case list(), list():
            return len(one) == len(other) and all(map(equal, one, other))
        case (float(), float()) if math.isnan(one):
            return math.isnan(other)
        case _:
            return isinstance(one, bool) == isinstance(other, bool) and one == other


class WordedError(ValueError):
    """A refusal whose text is already vLLM's own."""


def human_int(text: str) -> int:
    """Read '8000', '8k' (8000), '8K' (8192), '25.6k' (25600).

    Raises:
        ValueError: for anything else, decimals before a binary suffix among it.
    """
    match = SUFFIXED.fullmatch(text.strip())
    if match is None:
        return int(text)
    number, suffix = match.groups()
    if suffix in DECIMAL:
        return int(float(number) * DECIMAL[suffix])
    if "." in number:
        instead = f"Did you mean to use {number}{suffix.lower()} instead?"
        raise WordedError(f"Decimals are not allowed with binary suffixes like {suffix}. {instead}")
    return int(number) * BINARY[suffix]


def human_int_or_auto(text: str) -> int:
    """Read as `human_int`; 'auto' is -1: as long as memory allows."""
    return -1 if text.strip().lower() in ("auto", "-1") else human_int(text)


def read_json(text: str) -> JsonValue:
    """Read JSON.

    Raises:
        ValueError: where it is none, or is nested deeper than `DEEPEST`.
    """
    if text.count("[") + text.count("{") > DEEPEST and _depth(text) > DEEPEST:
        raise ValueError("nested too deep")
    value: JsonValue = json.loads(text)
    return value


def expand_suffixes(text: str) -> str:
    """Replace numbers with suffixes outside the strings of a JSON text: `{"size": 80m}`.

    Raises:
        ValueError: for decimals before a binary suffix.
    """
    parts = QUOTED.split(text)
    parts[::2] = [re.sub(rf"\b{SUFFIXED.pattern}\b", lambda m: str(human_int(m.group())), part) for part in parts[::2]]
    return "".join(parts)


def _depth(text: str) -> int:
    """How deep the brackets of a JSON text are nested."""
    deepest = depth = 0
    for char in QUOTED.sub("", text):
        depth += (char in "[{") - (char in "]}")
        deepest = max(deepest, depth)
    return deepest


def _config(text: str) -> JsonValue:
    value = read_json(expand_suffixes(text))
    if value is not None and not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _object_or_str(text: str) -> JsonValue:
    return read_json(text) if re.match(r"(?s)^\s*{.*}\s*$", text) else text


def _device(text: str) -> JsonValue:
    return int(text) if text.isascii() and text.isdigit() else text


def _ids(text: str) -> JsonValue:
    return [_device(part.strip()) for part in text.split(",")]


def _adapter(value: dict[str, JsonValue]) -> JsonValue:
    """One LoRA adapter; parts that say nothing are left out."""
    return {key: part for key, part in value.items() if part is not None}


def _lora(text: str) -> JsonValue:
    """Read `name=path`, or an object with name and path."""
    if "=" in text and "," not in text:
        name, _, path = text.partition("=")
        return {"name": name, "path": path}
    try:
        value = read_json(text)
    except ValueError as error:
        raise WordedError(f"Invalid JSON format for --lora-modules: {text}") from error
    if not isinstance(value, dict) or not {"name", "path"} <= value.keys():
        raise WordedError(f"Invalid fields for --lora-modules: {text}")
    return _adapter(value)


def _no_word(text: str) -> JsonValue:
    """BOOL and FLAG take no word."""
    raise WordedError(f"ignored explicit argument {text!r}")


_READERS: Mapping[Kind, Callable[[str], JsonValue]] = MappingProxyType(
    {
        Kind.BOOL: _no_word,
        Kind.FLAG: _no_word,
        Kind.STR: str,
        Kind.FOLDED_STR: lambda text: text.lower().replace("-", "_"),
        Kind.TRUTH: bool,
        Kind.INT: int,
        Kind.FLOAT: float,
        Kind.HUMAN_INT: human_int,
        Kind.HUMAN_INT_OR_AUTO: human_int_or_auto,
        Kind.ID_LIST: _ids,
        Kind.LIST: read_json,
        Kind.OBJECT: read_json,
        Kind.OBJECT_OR_STR: _object_or_str,
        Kind.CONFIG: _config,
        Kind.LORA: _lora,
    }
)


def _invalid(argument: Argument, text: str) -> str:
    """The refusal of an unreadable word, as argparse and vLLM's `parse_type` put it."""
    match argument.kind:
        case Kind.INT | Kind.FLOAT:
            name = argument.kind.value
        case Kind.HUMAN_INT:
            name = "human_readable_int"
        case Kind.HUMAN_INT_OR_AUTO:
            name = "human_readable_int_or_auto"
        case Kind.LIST | Kind.OBJECT | Kind.OBJECT_OR_STR:
            name = "loads"
        case Kind.CONFIG:
            return f"1 validation error: Invalid JSON or not an object: {text}"
        case Kind.STR | Kind.FOLDED_STR | Kind.ID_LIST | Kind.LORA | Kind.TRUTH | Kind.BOOL | Kind.FLAG:
            name = "str"
        case _:
            assert_never(argument.kind)
    if argument.optional:
        shown = f"<class '{name}'>" if name in ("int", "float") else f"<function {name}>"
        return f"Value {text} cannot be converted to {shown}."
    return f"invalid {name} value: {text!r}"

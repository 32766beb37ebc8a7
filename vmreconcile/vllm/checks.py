"""Whether a value fits an argument of vLLM, in one line for a person. Finds no arguments, changes no values."""

from __future__ import annotations

import difflib
import math
from typing import assert_never

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import SECRET_ARGUMENTS, Argument, Kind
from vmreconcile.vllm.kinds import canonical, read

EXPECTED = {
    Kind.INT: "a whole number",
    Kind.FLOAT: "a number",
    Kind.HUMAN_INT: "a whole number, or one with a suffix (8k = 8000, 32K = 32768)",
    Kind.HUMAN_INT_OR_AUTO: "a whole number, one with a suffix (8k = 8000, 32K = 32768), or auto",
    Kind.STR: "a text",
    Kind.FOLDED_STR: "a text",
    Kind.ID_LIST: "GPU numbers or UUIDs, as a list or with commas between",
    Kind.LIST: "a list",
    Kind.OBJECT: "a mapping",
    Kind.OBJECT_OR_STR: "a mapping or a text",
    Kind.CONFIG: "a mapping",
    Kind.LORA: "name=path, or a mapping with name and path",
    Kind.BOOL: "true or false",
    Kind.FLAG: "true or false",
    Kind.TRUTH: "true or false",
}


def check_value(argument: Argument, value: JsonValue) -> str | None:
    """Say in one line what is wrong with `value` for `argument`, or None.

    `value` is as a user writes it, in YAML or as text. null is never wrong: it leaves vLLM's default. Ranges that
    vLLM checks only when it starts are not known here.
    """
    fitting = canonical(argument, value)
    if fitting is None:
        return None
    if not argument.is_list:
        return _check_item(argument, fitting)
    if not isinstance(fitting, list):
        return f"{argument.name} wants a list, not {_shown(argument, value)}"
    if not fitting and argument.default not in (None, []):
        return f"{argument.name}: an empty list cannot be given on vLLM's command line"
    if len(fitting) > 1 and not argument.append and any(isinstance(i, str) and i.startswith("-") for i in fitting):
        return f"{argument.name}: an item of several cannot begin with '-' on vLLM's command line"
    return next((problem for item in fitting if (problem := _check_item(argument, item))), None)


def check_key(argument: Argument, key: str) -> str | None:
    """Say what is wrong with `key` in the object that `argument` holds, with the key it may have been meant for."""
    if not argument.keys or key in argument.keys:
        return None
    close = difflib.get_close_matches(key, argument.keys, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{argument.name} has no key {key!r}{meant}"


def _check_item(argument: Argument, value: JsonValue) -> str | None:
    """`check_value` for a canonical value, or one item of a list."""
    if not _fits(argument, value):
        return f"{argument.name} wants {EXPECTED[argument.kind]}, not {_shown(argument, value)}"
    if isinstance(value, str) and "\0" in value:
        return f"{argument.name}: a NUL character cannot be passed to a program"
    if argument.choices and value not in argument.choices:
        return f"{argument.name} is one of {', '.join(map(str, argument.choices))}, not {_shown(argument, value)}"
    if argument.kind is Kind.CONFIG and isinstance(value, dict):
        return next((problem for key in value if (problem := check_key(argument, key))), None)
    return None


def _fits(argument: Argument, value: JsonValue) -> bool:
    """Whether a canonical value is of the argument's kind."""
    match argument.kind:
        case Kind.BOOL | Kind.FLAG | Kind.TRUTH:
            return isinstance(value, bool)
        case Kind.INT | Kind.HUMAN_INT | Kind.HUMAN_INT_OR_AUTO:
            return isinstance(value, int) and not isinstance(value, bool)
        case Kind.FLOAT:
            return isinstance(value, float) and not math.isnan(value)
        case Kind.STR | Kind.FOLDED_STR:
            return isinstance(value, str) or (argument.const is not None and value == argument.const)
        case Kind.LIST | Kind.ID_LIST:
            return isinstance(value, list)
        case Kind.OBJECT | Kind.CONFIG:
            return isinstance(value, dict)
        case Kind.OBJECT_OR_STR:
            return isinstance(value, dict | str)
        case Kind.LORA:
            return isinstance(value, dict) and _is_adapter(argument, value)
        case _:
            assert_never(argument.kind)


def _is_adapter(argument: Argument, value: dict[str, JsonValue]) -> bool:
    """Whether an object names a LoRA adapter, which has a name and a path."""
    try:
        read(argument, f"{value['name']}={value['path']}")
    except (KeyError, ValueError):
        return False
    return isinstance(value["name"], str) and isinstance(value["path"], str)


def _shown(argument: Argument, value: JsonValue) -> str:
    """The value for the message, shortened; never that of a secret."""
    if argument.name in SECRET_ARGUMENTS:
        return "what is there"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"

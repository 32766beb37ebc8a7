"""JSON without the `json` package, whose import (it loads `re`) would double the agent's start-up time.

CPython's own C scanner and encoder are used directly; an interpreter without them gets the package.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the typing module costs milliseconds
if TYPE_CHECKING:
    from typing import Any, Callable


def _refuse(name: str) -> float:
    """NaN and Infinity are not JSON."""
    raise ValueError(name + " is not JSON")


class _Context:
    """The settings that CPython's scanner reads off a decoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse)
    memo: dict[str, str] = {}  # noqa: RUF012 - never changed; the scanner wants to see it


def _package() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """Return the slow pair, for interpreters without `_json`."""
    import json  # noqa: PLC0415 - see the module's docstring

    def dumps(value: Any) -> str:  # noqa: ANN401 - JSON is any value
        return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)

    return json.loads, dumps


def _accelerated() -> tuple[Callable[[str], Any], Callable[[Any], str]]:
    """Return the fast pair, or raise where this CPython differs."""
    import _json  # noqa: PLC0415 - absent outside CPython

    scan = _json.make_scanner(_Context())  # type: ignore[arg-type]  # any object with these attributes
    encode = _json.make_encoder(None, _default, _json.encode_basestring_ascii, None, ":", ",", True, False, False)  # noqa: FBT003 - positional only

    def loads(text: str) -> Any:  # noqa: ANN401 - JSON is any value
        text = text.strip(" \t\r\n")
        try:
            value, end = scan(text, 0)
        except (StopIteration, SystemError):  # 3.9 to 3.12 find no words for an error while `json` is not loaded
            raise ValueError("not JSON") from None
        if end != len(text):
            raise ValueError("more than one JSON value")
        return value

    def dumps(value: Any) -> str:  # noqa: ANN401 - JSON is any value
        return "".join(encode(value, 0))

    if dumps({"a": [1, 0.5, None, True, "\u00e9"]}) != '{"a":[1,0.5,null,true,"\\u00e9"]}' or loads("[1]") != [1]:
        raise ValueError("unknown _json")
    return loads, dumps


def _default(value: object) -> object:
    """Nothing but JSON's own types is ever sent."""
    raise TypeError(type(value).__name__)


try:
    loads, dumps = _accelerated()
except (ImportError, AttributeError, TypeError, ValueError):
    loads, dumps = _package()

"""What a plain YAML scalar means: YAML 1.2, and an objection where YAML 1.1 readers would see something else. Pure."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_OLD_BOOLEAN = re.compile(r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_BASED = re.compile(r"0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_JSON = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# YAML 1.1 alone: octal by a leading zero, base 60, digits parted by '_', binary, and dates (yaml.org/type).
_OLD_NUMBER = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[-+]?0b[01_]+")
_PARTED = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)+")
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?")
_DIGITS = 4000
"""More digits than any number needs, fewer than Python refuses to read (sys.int_info.str_digits_check_threshold)."""

TAG = "tag:yaml.org,2002:"


class Scalar(NamedTuple):
    """A scalar's value, and what is wrong with it: (code, summary, why, remedy), or None."""

    value: JsonValue
    problem: tuple[str, str, str, str] | None = None


def plain(text: str) -> Scalar:
    """The value of an unquoted scalar."""
    if text in _NULL:
        return Scalar(None)
    if text in _BOOLEANS:
        return Scalar(_BOOLEANS[text])
    if not text[0].isdigit() and text[0] not in "-+.yYnNoO":
        return Scalar(text)
    if len(text) > _DIGITS:
        return Scalar(text)
    if _INTEGER.fullmatch(text):
        return Scalar(int(text))
    return _rare(text)


def tagged(tag: str, text: str) -> Scalar:
    """The value of a scalar with an explicit tag such as `!!str`."""
    short = tag.removeprefix(TAG)
    if tag in {"!", TAG + "str"}:
        return Scalar(text)
    if tag.startswith(TAG) and short in {"int", "float", "bool", "null"}:
        scalar = plain(text)
        fits = {
            "int": type(scalar.value) is int,
            "float": type(scalar.value) in {int, float},
            "bool": type(scalar.value) is bool,
            "null": scalar.value is None,
        }[short]
        if fits:
            return scalar
        return Scalar(None, ("yaml-value", f"{shown(text)} is not !!{short}.", "", "Leave the tag out."))
    return Scalar(text, unknown_tag(tag))


def unknown_tag(tag: str) -> tuple[str, str, str, str]:
    """The objection to a tag that makes no plain data."""
    name = tag.replace(TAG, "!!")
    return (
        "yaml-tag",
        f"The tag {shown(name)} is not understood here.",
        "An unquoted value that begins with '!' is a YAML tag, not text.",
        "Put the value in quotes if it is text.",
    )


def _rare(text: str) -> Scalar:
    if _OLD_BOOLEAN.fullmatch(text):
        truth = text.lower() in {"yes", "on"}
        word = "true" if truth else "false"
        return Scalar(
            truth,
            (
                "yaml-boolean",
                f"'{text}' is a boolean to some YAML readers and text to others.",
                "YAML 1.1 reads yes, no, on and off as true and false; YAML 1.2 reads them as text.",
                f"Write {word}, or '{text}' in quotes if it is text.",
            ),
        )
    if _NOT_JSON.fullmatch(text):
        return Scalar(None, ("yaml-value", f"{text} is not a finite number.", "", "Write a number, or quote the text."))
    if _DATE.fullmatch(text):
        return Scalar(
            text,
            ("yaml-date", f"{shown(text)} is a date to YAML.", "Nothing here is a date.", "Put the text in quotes."),
        )
    if _OLD_NUMBER.fullmatch(text) or _PARTED.fullmatch(text):
        why = "YAML 1.1 reads leading zeros as octal, ':' as base 60, and drops '_'; YAML 1.2 does none of that."
        return Scalar(
            text,
            (
                "yaml-number",
                f"{shown(text)} is a different number to different YAML readers.",
                why,
                "Write it in plain digits, or in quotes if it is text.",
            ),
        )
    if _BASED.fullmatch(text):
        return Scalar(int(text, 0))
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isfinite(number):
            return Scalar(number)
        return Scalar(None, ("yaml-value", f"{shown(text)} is too large for a number.", "", "Quote it if it is text."))
    return Scalar(text)

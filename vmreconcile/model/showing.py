"""How values are shown in messages: short, on one line, printable, and never a token. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable

HUB_TOKEN = re.compile(r"(?:hf|api_org)_[A-Za-z0-9]{16,}")
"""What a token of the Hugging Face Hub looks like (34 letters and digits follow the prefix), whatever is before it."""

_MASKED = re.compile(
    r"(?:hf|api_org)_[A-Za-z0-9]{16}[A-Za-z0-9_-]*"
    r"|(?:(?<![A-Za-z0-9_-])|(?<=\\[nrt])|(?<=[0-9;\[]m)|(?<=%[0-9A-Fa-f]{2}))(?:hf_|sk-)[A-Za-z0-9_-]{16,}"
    r"|\b(?:hf|api_org)_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}"
)
_PASSWORD = re.compile(
    r"(?<=://)[^/?#\s\"':]*:[^/?#\s\"']*(?=@)|(?<=://)[^/?#\s\"'@:\[]*:(?![0-9]{0,5}[/?#])[^\s\"']*(?=@)"
)
"""What is never shown: Hub tokens, also short ones, API keys, passwords in addresses (a slash in one too, unless it
reads as a port and a path). Never less than what the agent masks on a host (docs/wire.md); a test compares both."""

_WORD = re.compile(r"[^\s\"']+")
"""What an address does not reach beyond."""

_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
"""ECMA-48: control sequences, operating system commands and two-letter escapes."""

SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH", re.IGNORECASE)
"""Names of variables whose values are never shown; the agent has the same list (docs/wire.md)."""

_LONGEST = 60

LONGEST_NAME = 64
"""Letters of the name of a token source (schemas/host-vars.schema.json)."""

_LONG_RUN = re.compile(r"[A-Za-z0-9]{16,}")


def holds_token(text: str) -> bool:
    """Whether something in `text` looks like a token of the Hub."""
    return HUB_TOKEN.search(text) is not None


def masked(text: str) -> str:
    """`text` with `***` for everything that looks like a secret."""
    text = _MASKED.sub("***", text)
    return _WORD.sub(_without_passwords, text) if "://" in text and "@" in text else text


def _without_passwords(word: re.Match[str]) -> str:
    """A word without the passwords of its addresses, which end at an `@`: behind its last one nothing is looked for.

    So each address in a hostile text of a megabyte is gone through once.
    """
    before, sign, after = word[0].rpartition("@")
    return _PASSWORD.sub("***", before + sign) + after


def without_escapes(text: str) -> str:
    """`text` without what colours a terminal or moves its cursor: in the midst of a token it would hide that."""
    return _TERMINAL.sub("", text)


def shown(value: object) -> str:
    """`value` as YAML would have it, in quotes where it is text: one line, shortened, tokens masked."""
    if isinstance(value, str):
        return f"'{printable(value)}'"
    if value is None:
        return "null"
    if isinstance(value, bool | int | float):
        return printable(json.dumps(value))
    return printable(json.dumps(value, ensure_ascii=False, default=str))


def may_be_token(text: str) -> bool:
    """Whether text in the place of a name could as well be a token: longer than a name, or letters and digits mixed.

    Tokens are 30 letters and more without a pattern; what a person calls something has one case, or gaps.
    """
    return len(text) > LONGEST_NAME or any(
        re.search("[0-9]", run) or run not in {run.lower(), run.upper()} for run in _LONG_RUN.findall(text)
    )


def printable(text: str) -> str:
    """`text` masked, shortened, and without anything that could move a terminal's cursor."""
    text = masked(text)
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return "".join(
        character if unicodedata.category(character)[0] != "C" else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def listed(words: Iterable[str], last: str = "and") -> str:
    """'a', 'a and b', 'a, b and c'."""
    items = list(words)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"

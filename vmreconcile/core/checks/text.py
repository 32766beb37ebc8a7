"""Texts that nothing may hold: tokens, NUL and control characters, lone surrogates. Pure; never shows a token."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.model.document import Path
from vmreconcile.model.showing import holds_token
from vmreconcile.model.values import JsonValue

_VERBATIM = frozenset({"args", "env", "vllm_args", "vllm_env"})
"""Below these keys a text may hold anything that a program can be handed, line breaks too."""

LONGEST_WORD = 32 * 4096
"""Bytes of one argument or variable (MAX_ARG_STRLEN)."""


def check_texts(value: JsonValue, path: Path, *, verbatim: bool = False) -> Iterator[Finding]:
    """Look at every key and text at and below `path`."""
    match value:
        case str():
            yield from _check_text(value, path, verbatim=verbatim)
        case dict():
            for key, inner in value.items():
                at = (*path, key)
                yield from _check_text(key, at, verbatim=False, at_key=True)
                yield from check_texts(inner, at, verbatim=verbatim or key in _VERBATIM)
        case list():
            for index, inner in enumerate(value):
                yield from check_texts(inner, (*path, index), verbatim=verbatim)


def _check_text(text: str, path: Path, *, verbatim: bool, at_key: bool = False) -> Iterator[Finding]:
    if text.isascii() and text.isprintable() and len(text) < 12:
        return
    if holds_token(text):
        yield Finding(
            path=path,
            code="token-in-file",
            summary=f"{dotted(path)} holds what looks like a token.",
            why="A token in a file ends in version control, in plans and in the process list.",
            remedy="Remove it. For a token: vmreconcile auth login, then name its source (docs/tokens.md); an API key"
            " goes through VLLM_API_KEY on the host. If it was published, revoke it.",
            at_key=at_key,
        )
    if verbatim and _too_long(text, path):
        yield Finding(
            path=path,
            code="too-long",
            summary=f"{dotted(path)} is longer than 128 KiB.",
            why="No program can be handed a longer argument or variable (execve(2)).",
            remedy="Shorten it, or put it into a file on the host and name that.",
        )
    bad = next((character for character in text if _forbidden(character, verbatim=verbatim)), "")
    if bad:
        yield Finding(
            path=path,
            code="control-character",
            summary=f"{dotted(path)} holds the character U+{ord(bad):04X}.",
            why="No program can be handed a NUL or half a character." if verbatim else "It belongs in no name or path.",
            remedy="Remove it.",
            at_key=at_key,
        )


def _too_long(text: str, path: Path) -> bool:
    """Whether `NAME=text` with the NUL after it is more than the kernel takes as one word."""
    return len(text) * 4 > LONGEST_WORD and len(f"{path[-1]}={text}\0".encode(errors="replace")) > LONGEST_WORD


def _forbidden(character: str, *, verbatim: bool) -> bool:
    if character == "\0" or "\ud800" <= character <= "\udfff":
        return True
    return not verbatim and (character < " " or "\x7f" <= character <= "\x9f")

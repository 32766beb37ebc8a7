"""What a terminal can show: colours as an extra, widths, and questions. Prints nothing of its own accord."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from textwrap import wrap
from typing import TextIO

COLORS: Mapping[str, str] = {
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "bold": "1",
    "dim": "2",
}


LEAST_ROOM = 40
"""Columns for long text, however far in it begins and however narrow the terminal is."""

EACH_GPU = re.compile(r"(?<=[;.]) (?=GPU \d)")
"""Where the evidence of one GPU ends and that of the next begins (`core/gpus/choose.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """Whether to colour, how wide a table may be, and where to fold long text: 0 for nowhere, as programs read it."""

    color: bool = False
    width: int = 100
    fold: int = 0

    def paint(self, text: str, color: str) -> str:
        """Colour `text` where colours are wanted."""
        return f"\x1b[{COLORS[color]}m{text}\x1b[0m" if self.color and color in COLORS else text

    def folded(self, text: str, indent: int) -> list[str]:
        """`text` as lines that fit beside `indent` columns; each GPU of a long list begins one of its own."""
        if not self.fold or len(text) + indent <= self.fold:
            return [text]
        room = max(self.fold - indent, LEAST_ROOM)
        return [
            line
            for part in EACH_GPU.split(text)
            for line in wrap(part, room, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        ]


def style_for(stream: TextIO, *, no_color: bool) -> Style:
    """Colours only on a terminal, and neither with --no-color nor NO_COLOR, unless that is empty (no-color.org)."""
    color = stream.isatty() and not no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if not stream.isatty():
        return Style(color=color, width=160)
    columns = shutil.get_terminal_size((100, 24)).columns
    return Style(color=color, width=columns, fold=columns)


def printable(text: str) -> str:
    """Text from a host or a file with its control characters shown, so that it cannot drive the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


_PROGRAM = ContextVar("program", default="vmreconcile")
_COMMAND = re.compile(r"(?<![\w./-])vmreconcile (?=(\w+)\b)")


@contextmanager
def called(program: str) -> Iterator[None]:
    """Within the block, `program` is what was typed."""
    before = _PROGRAM.set(program)
    try:
        yield
    finally:
        _PROGRAM.reset(before)


def as_called(text: str) -> str:
    """Text of ours with its commands as the person types them: `vm` knows folders that `vmreconcile` does not."""
    from vmreconcile.cli.parser import COMMANDS  # noqa: PLC0415 - it is there already where a command runs

    program = _PROGRAM.get()
    return _COMMAND.sub(lambda found: f"{program} " if found[1] in COMMANDS else found[0], text)


def advice(text: str) -> str:
    """A remedy, or what else names a way out, as it is shown: printable, its commands as the person types them."""
    return as_called(printable(text))


def silence(stream: TextIO) -> None:
    """Let a stream whose reader is gone lead nowhere, for Python would try again at its exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def ask(question: str) -> bool:
    """Ask on the terminal; anything but y or yes is no."""
    print(question, end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise


def hidden_answer(question: str) -> str:
    """Ask on the terminal; what is typed does not show."""
    from getpass import getpass  # noqa: PLC0415 - seldom needed

    try:
        return getpass(question, stream=sys.stderr)
    except EOFError:
        return ""

"""How a command line is read: what is wrong with one is told as what it is, and never with what may be a token."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from vmreconcile.model.showing import masked

USAGE_EXIT = 64
ALONE = frozenset({"-h", "--help", "--version"})
"""The options that stand without a command."""


class Parser(argparse.ArgumentParser):
    """argparse with the contract's exit code for wrong usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with 64."""
        self.print_usage(sys.stderr)
        self.exit(USAGE_EXIT, f"{self.prog}: error: {masked(message)}\n")


def parse_with(parser: Parser, argv: Sequence[str], commands: Sequence[str]) -> argparse.Namespace:
    """What a command line says; a mistyped command and an option before the command are told as what they are.

    Raises:
        SystemExit: after help, or with 64 where the command line is wrong.
    """
    first = argv[0] if argv else ""
    if first.startswith("-") and first not in ALONE:
        option = first.partition("=")[0]
        parser.error(f"{option}: options stand after the command, as in `{parser.prog} status {option}`")
    near = [] if first in commands else difflib.get_close_matches(first, commands, n=1)
    if near:
        parser.error(f"there is no command {first!r}; did you mean {near[0]!r}?")
    arguments, left = parser.parse_known_args(argv)
    if left:
        _refuse_left(parser, argv, left)
    return arguments


def _refuse_left(parser: Parser, argv: Sequence[str], left: Sequence[str]) -> NoReturn:
    """Say what could not be understood, without any value that may be a token.

    Raises:
        SystemExit: with 64.
    """
    if [*argv[:2]] == ["auth", "login"]:
        parser.error(
            "auth login takes no token on the command line, where the process list and the shell's history keep it: "
            "type it when asked, or give it on standard input; one that stood here is better revoked"
        )
    words, command = max(
        ((words, each) for words, each in leaves(parser) if [*argv[: len(words.split())]] == words.split()),
        key=lambda found: len(found[0]),
    )
    unknown = [word.partition("=")[0] for word in left if word.startswith("-")]
    if not unknown:
        command.error(f"{words} does not take so many words: {left[0]!r}")
    options = [option for action in command._actions for option in action.option_strings]  # noqa: SLF001 - as below
    near = difflib.get_close_matches(unknown[0], options, n=1)
    command.error(f"there is no option {unknown[0]}" + (f"; did you mean {near[0]}?" if near else ""))


def leaves(parser: argparse.ArgumentParser, words: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command's words and parser, those of parts (`auth login`) too."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001 - argparse has no public way
    if not below:
        yield words, parser
    for action in below:
        for name, inner in action.choices.items():
            yield from leaves(inner, f"{words} {name}".strip())

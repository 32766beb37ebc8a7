"""Every command's parser, the parts of a command in groups (`auth login`) included."""

from __future__ import annotations

import argparse

from vmreconcile.cli.parser import make_parser


def every_parser() -> dict[str, argparse.ArgumentParser]:
    """By the words that are typed."""
    return _below(make_parser(), "")


def _below(parser: argparse.ArgumentParser, before: str) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found |= _below(inner, f"{before}{name} ") or {f"{before}{name}": inner}
    return found

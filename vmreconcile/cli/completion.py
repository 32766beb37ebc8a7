"""completion: a script for the shell, made of the parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmreconcile.cli.parser import make_parser
from vmreconcile.cli.vm import vm_parser

if TYPE_CHECKING:
    import argparse


def completion(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab  # noqa: PLC0415 - of this command alone

    parser = vm_parser() if arguments.program == "vm" else make_parser()
    print(shtab.complete(parser, arguments.shell))
    return 0

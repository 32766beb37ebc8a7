"""auth login: a token, typed unseen or read from standard input, stored as `hf auth login` stores it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmreconcile.cli.output import note, print_json
from vmreconcile.cli.terminal import hidden_answer, printable
from vmreconcile.core.reports import FORMAT_VERSION
from vmreconcile.errors import UsageError
from vmreconcile.flows.login import log_in_with, may_log_in, token_of

if TYPE_CHECKING:
    import argparse

LONGEST = 4096


def login(arguments: argparse.Namespace) -> int:
    """Check the token with the Hub, store it, say whose it is.

    Raises:
        UsageError: no token came.
        VmreconcileError: the Hub does not accept it or cannot be asked; nothing is stored then.
    """
    environ = dict(os.environ)
    may_log_in(environ)
    done = log_in_with(token_of(_text(arguments)), environ, Path.home())
    user, role = done.identity.user, done.identity.role
    if arguments.json:
        print_json({"format_version": FORMAT_VERSION, "user": user, "role": role, "file": str(done.path)})
    else:
        about = f" (role {printable(role)})" if role else ""
        print(f"logged in as {printable(user)}{about}; the token is in {done.path}")
    for name in done.differing:
        note(f"note: {name} holds another token, which is ignored here and not by other programs: unset {name}")
    return 0


def _text(arguments: argparse.Namespace) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline(LONGEST)
    if arguments.no_input:
        raise UsageError("nobody can be asked with --no-input", remedy="give the token on standard input")
    return hidden_answer("Token (it does not show): ")

"""auth login: a token, typed unseen or read from standard input, stored as `hf auth login` stores it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from vmreconcile.cli.output import note, print_json
from vmreconcile.cli.terminal import hidden_answer, printable
from vmreconcile.core.access import endpoint_of, offline
from vmreconcile.effects.hub import log_in, whoami
from vmreconcile.effects.token import VARIABLES, token_path
from vmreconcile.errors import UsageError, VmreconcileError
from vmreconcile.model.secret import Secret

if TYPE_CHECKING:
    import argparse

LONGEST = 4096


def login(arguments: argparse.Namespace) -> int:
    """Check the token with the Hub, store it, say whose it is.

    Raises:
        UsageError: no token came.
        VmreconcileError: the Hub does not accept it or cannot be asked; nothing is stored then.
    """
    from pathlib import Path  # noqa: PLC0415 - of this command alone

    environ = dict(os.environ)
    if offline(environ):
        raise VmreconcileError("HF_HUB_OFFLINE is set: the Hub cannot be asked", remedy="unset HF_HUB_OFFLINE")
    token = _token(arguments)
    identity = whoami(token, endpoint_of(environ))
    if identity.problem and not identity.invalid:
        raise VmreconcileError(
            f"{endpoint_of(environ)} cannot be asked: {identity.problem}; nothing was stored",
            remedy="look at the network, a proxy or HF_ENDPOINT",
        )
    log_in(token)
    path = token_path(environ, Path.home())
    if arguments.json:
        print_json({"user": identity.user, "role": identity.role, "file": str(path)})
    else:
        role = f" (role {printable(identity.role)})" if identity.role else ""
        print(f"logged in as {printable(identity.user)}{role}; the token is in {path}")
    for name in VARIABLES:
        if environ.get(name, "").strip() not in {"", token.reveal()}:
            note(f"note: {name} holds another token, which is ignored here and not by other programs: unset {name}")
    return 0


def _token(arguments: argparse.Namespace) -> Secret:
    if sys.stdin.isatty():
        if arguments.no_input:
            raise UsageError("nobody can be asked with --no-input", remedy="give the token on standard input")
        text = hidden_answer("Token (it does not show): ")
    else:
        text = sys.stdin.readline(LONGEST)
    if not text.strip():
        raise UsageError("no token came", remedy="type it at the prompt, or: vmreconcile auth login < FILE")
    if not text.strip().isascii() or not text.strip().isprintable() or " " in text.strip():
        raise UsageError("that is no token: it holds a character that no token has", remedy="give the token alone")
    return Secret(text.strip())

"""A token stored as `hf auth login` stores it: checked with the Hub first, and never in another one's place unasked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.core.access import endpoint_of, offline
from vmreconcile.effects.hub import log_in, whoami
from vmreconcile.effects.old_manager import token_beside, token_is_beside
from vmreconcile.effects.token import VARIABLES, find_token, token_path
from vmreconcile.errors import UsageError, VmreconcileError
from vmreconcile.model.access import Identity
from vmreconcile.model.secret import Secret
from vmreconcile.model.showing import masked


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedIn:
    """Whose the stored token is, the file that it is in, and variables that hold another one."""

    identity: Identity
    path: Path
    differing: tuple[str, ...] = ()


def may_log_in(environ: Mapping[str, str]) -> None:
    """See to it, before anybody is asked for a token, that the Hub may be asked.

    Raises:
        VmreconcileError: it may not.
    """
    if offline(environ):
        raise VmreconcileError("HF_HUB_OFFLINE is set: the Hub cannot be asked", remedy="unset HF_HUB_OFFLINE")


def token_of(text: str) -> Secret:
    """The token that somebody typed or piped.

    Raises:
        UsageError: that is none; the message does not show it.
    """
    token = text.strip()
    if not token:
        raise UsageError("no token came", remedy="type it at the prompt, or: vmreconcile auth login < FILE")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("that is no token: it holds a character that no token has", remedy="give the token alone")
    return Secret(token)


def log_in_with(token: Secret, environ: Mapping[str, str], home: Path) -> LoggedIn:
    """Ask the Hub whose the token is, and store it.

    Raises:
        VmreconcileError: the Hub does not accept it or cannot be asked; nothing is stored then.
    """
    may_log_in(environ)
    identity = whoami(token, endpoint_of(environ))
    if identity.problem and not identity.invalid:
        raise VmreconcileError(
            f"{masked(endpoint_of(environ))} cannot be asked: {identity.problem}; nothing was stored",
            remedy="look at the network, a proxy or HF_ENDPOINT",
        )
    log_in(token)
    differing = tuple(name for name in VARIABLES if environ.get(name, "").strip() not in {"", token.reveal()})
    return LoggedIn(identity=identity, path=token_path(environ, home), differing=differing)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBeside:
    """The token in the `.env` beside an old manager's file: there at all, to be stored (None: it is), and where."""

    there: bool
    secret: Secret | None
    path: Path


def token_beside_file(file: Path, environ: Mapping[str, str], home: Path, *, wanted: bool) -> TokenBeside:
    """What there is to do with the token of an old manager; nothing unless it is `wanted`.

    Raises:
        VmreconcileError: it is wanted, and there is none, or another one is logged in with already.
    """
    path = token_path(environ, home)
    if not wanted:
        return TokenBeside(there=token_is_beside(file), secret=None, path=path)
    token = token_beside(file)
    if token is None:
        raise VmreconcileError(f"no HF_TOKEN in the .env beside {file}", remedy="vmreconcile auth login")
    present = find_token({"HF_TOKEN_PATH": str(path)}, home)
    if present is not None and present.secret.reveal() != token.reveal():
        raise VmreconcileError(
            f"{path} holds another token than the .env: nothing was imported",
            remedy="hf auth logout first, or keep the one that is there",
        )
    return TokenBeside(there=True, secret=None if present else token, path=path)


def store(beside: TokenBeside) -> None:
    """Log in with it, where that is to be done.

    Raises:
        VmreconcileError: the Hub does not accept it or cannot be asked.
    """
    if beside.secret is not None:
        log_in(beside.secret)

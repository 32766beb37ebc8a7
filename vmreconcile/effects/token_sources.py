"""The token behind a named source: reads a file, a variable, a program's output, or asks. Shows no token to anybody."""

from __future__ import annotations

import configparser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.effects.files import read_regular
from vmreconcile.effects.programs import Endless, run
from vmreconcile.effects.token import LONGEST_FILE, TokenFound, check_token, find_token, read_token_file, token_path
from vmreconcile.errors import Diagnostic, InputError, Place
from vmreconcile.model.secret import Secret
from vmreconcile.model.showing import masked, without_escapes
from vmreconcile.model.tokens import SourceKind, TokenSource

LINES_SHOWN = 3
"""Of what a failing command says on standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What sources are read in: environment and home of the person at the controller; `ask` is None where nobody is."""

    environ: Mapping[str, str]
    home: Path
    ask: Callable[[str], str] | None = None


def read_source(source: TokenSource, around: Surroundings) -> TokenFound | None:
    """Read one source now; None only for the Hub's own places, where no token is no mistake.

    Raises:
        InputError: the source gives no token; the message names source, place and the way out, and shows no token.
    """
    match source.kind:
        case SourceKind.HUB:
            return find_token(around.environ, around.home)
        case SourceKind.FILE:
            text = _file(source, around)
        case SourceKind.ENV:
            text = around.environ.get(source.words[0], "").strip()
            if not text:
                raise failure(
                    source, f"{source.words[0]} is not set", f"export {source.words[0]}, or name another source"
                )
        case SourceKind.COMMAND:
            text = _command(source, around)
        case SourceKind.PROMPT:
            text = _prompt(source, around)
        case SourceKind.STORED:
            text = _stored(source, around)
    check_token(text, lambda why: failure(source, why, "let it give the token and nothing else"))
    return TokenFound(secret=Secret(text), source=str(source))


def failure(source: TokenSource, why: str, remedy: str) -> InputError:
    """The error that a source ends in."""
    place = source.place or Place(file=f"token source {source.name}")
    summary = f"token source {source.name!r} ({source}): {why}"
    return InputError((Diagnostic(place=place, code="token-source-failed", summary=summary, remedy=remedy),))


def _file(source: TokenSource, around: Surroundings) -> str:
    path = Path(source.words[0])
    if source.words[0].startswith("~/"):
        path = around.home / source.words[0][2:]
    text = read_token_file(path, lambda why: failure(source, f"{path} {why}", "mend its owner or mode"))
    if not text:
        raise failure(source, f"{path} is missing or empty", f"write the token into {path} (mode 0600)")
    return text


def _prompt(source: TokenSource, around: Surroundings) -> str:
    if around.ask is None:
        remedy = "run it on a terminal without --no-input, or use a file, a variable or a command"
        raise failure(source, "nobody can be asked here", remedy)
    text = around.ask(f"{source.words[0]}: ").strip()
    if not text:
        raise failure(source, "nothing was typed", "run it again")
    return text


def _stored(source: TokenSource, around: Surroundings) -> str:
    path = stored_tokens_path(around.environ, around.home)
    stored = stored_tokens(path)
    text = stored.get(source.words[0], "")
    if not text:
        known = f"stored there: {', '.join(sorted(stored))}" if stored else f"{path} holds none"
        raise failure(source, f"no token of that name is stored ({known})", "hf auth login, or hf auth list for names")
    return text


def stored_tokens_path(environ: Mapping[str, str], home: Path) -> Path:
    """Where `hf auth login` keeps tokens by name: huggingface_hub.constants.HF_STORED_TOKENS_PATH."""
    return token_path(environ, home).parent / "stored_tokens"


def stored_tokens(path: Path) -> dict[str, str]:
    """The tokens by name: an INI file with a section a name and `hf_token` in it (huggingface_hub.utils._auth)."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(read_regular(path, LONGEST_FILE).decode("utf-8", "replace"))
    except (OSError, configparser.Error):
        return {}
    return {name: parser.get(name, "hf_token", fallback="").strip() for name in parser.sections()}


def _command(source: TokenSource, around: Surroundings) -> str:
    """What the program prints. It gets no standard input and no shell; what it leaves running is not waited for."""
    try:
        ended = run(source.words, around.environ, source.timeout, LONGEST_FILE)
    except Endless as endless:
        remedy = "does it wait for a password? unlock it first, or raise timeout"
        raise failure(source, str(endless), remedy) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "cannot be started"
        raise failure(source, why.lower(), "give the program's whole path, or put it on PATH") from None
    text = ended.out.decode("utf-8", "replace").strip()
    if ended.status:
        how = f"exit status {ended.status}" if ended.status > 0 else f"ended by signal {-ended.status}"
        raise failure(source, how + _said(ended.err, text), "run it by hand to see why")
    if not text:
        raise failure(source, f"it printed nothing{_said(ended.err, '')}", "run it by hand to see why")
    return text


def _said(err: bytes, secret: str) -> str:
    """The end of standard error on one line, without anything that looks like a token or was printed as one."""
    text = without_escapes(err.decode("utf-8", "replace"))
    for line in without_escapes(secret).splitlines():
        if len(line.strip()) >= 4:
            text = text.replace(line.strip(), "***")
    lines = [line.strip() for line in masked(text).splitlines() if line.strip()]
    shown = " / ".join(lines[-LINES_SHOWN:])[:300]
    return ": " + "".join(letter if letter.isprintable() else "?" for letter in shown) if shown else ""

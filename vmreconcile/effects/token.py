"""The Hub token of the person at the controller. Reads a file and the environment; talks to nobody.

Order: the Hub's cache file, then `HF_TOKEN`, then `HUGGING_FACE_HUB_TOKEN`. (huggingface_hub itself asks the
environment first; here the file wins, because it is what `hf auth login` keeps current.) Not heeded, as for explicit
use of a token: `HF_HUB_DISABLE_IMPLICIT_TOKEN` (it is about requests that nobody asked to carry a token; a model says
with `hf_token: null` that it gets none).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.effects.files import read_regular
from vmreconcile.errors import Diagnostic, InputError, Place
from vmreconcile.model.secret import Secret

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
LONGEST_FILE = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFound:
    """A token, where it came from (a path, or a variable's name), and what the person should know about it."""

    secret: Secret
    source: str
    warnings: tuple[str, ...] = ()


def find_token(environ: Mapping[str, str], home: Path) -> TokenFound | None:
    """Look for the token.

    Raises:
        InputError: where the file cannot be read, or holds what is no token; the message does not show it.
    """
    path = token_path(environ, home)
    found = [
        (str(path), read_token_file(path, _unreadable(path))),
        *((name, environ.get(name, "").strip()) for name in VARIABLES),
    ]
    present = [(source, text) for source, text in found if text]
    if not present:
        return None
    source, text = present[0]
    check_token(text, _malformed(source))
    winner = "the cache file" if source == str(path) else source
    warnings = tuple(
        f"{name} ignored: {winner} wins ({source}); unset {name}" for name, other in present[1:] if other != text
    )
    return TokenFound(secret=Secret(text), source=source, warnings=warnings)


def token_path(environ: Mapping[str, str], home: Path) -> Path:
    """Where the Hub's client keeps the token, as huggingface_hub.constants computes it when it is imported."""
    return Path(_expanded(environ.get("HF_TOKEN_PATH", str(hub_folder(environ, home) / "token")), environ, home))


def hub_folder(environ: Mapping[str, str], home: Path) -> Path:
    """The Hub client's folder: huggingface_hub.constants.HF_HOME."""
    cache = environ.get("XDG_CACHE_HOME", str(home / ".cache"))
    return Path(_expanded(environ.get("HF_HOME", os.path.join(cache, "huggingface")), environ, home))  # noqa: PTH118 - as there


def _expanded(path: str, environ: Mapping[str, str], home: Path) -> str:
    """What `expandvars(expanduser(path))` gives in that environment."""
    if path == "~" or path.startswith("~/"):
        path = str(home).rstrip("/") + path[1:]
    return re.sub(r"\$(?:(\w+)|\{([^}]*)\})", lambda at: environ.get(at[1] or at[2], at[0]), path, flags=re.ASCII)


def read_token_file(path: Path, failed: Callable[[str], InputError]) -> str:
    """The text of a token's file, "" where there is none.

    Raises:
        InputError: what `failed` makes of the reason, where it is there and cannot be read.
    """
    try:
        return read_regular(path, LONGEST_FILE).decode("utf-8-sig", "replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise failed(f"cannot be read ({(error.strerror or 'unreadable').lower()})") from None


def check_token(text: str, failed: Callable[[str], InputError]) -> None:
    """Refuse what no HTTP header or env file can carry: a token is one word of visible ASCII.

    Raises:
        InputError: what `failed` makes of the reason.
    """
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise failed("it holds a space, a line break or another character that no token has")


def _unreadable(path: Path) -> Callable[[str], InputError]:
    return lambda why: _problem(
        str(path),
        "token-file-unreadable",
        f"the Hub token's file {why}",
        "mend its owner or mode, or name another file in HF_TOKEN_PATH",
    )


def _malformed(source: str) -> Callable[[str], InputError]:
    remedy = f"set {source} to the token alone" if source in VARIABLES else "write it anew: hf auth login"
    return lambda why: _problem(source, "token-malformed", f"the Hub token is none: {why}", remedy)


def _problem(source: str, code: str, summary: str, remedy: str) -> InputError:
    return InputError((Diagnostic(place=Place(file=source), code=code, summary=summary, remedy=remedy),))

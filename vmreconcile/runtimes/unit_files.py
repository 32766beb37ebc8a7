"""Unit files as a plan may tell of them: which directives differ, no secret among what is said. Pure.

Sources: systemd.syntax(7) (lines that go on after a backslash), systemd.service(5) (quoted words).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.showing import SECRET_NAME, masked

_WORD = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s"'\\]|\\.|["'])+""")
_PARTS = frozenset({"auth", "credential", "credentials", "key", "passwd", "password", "secret", "token"})
"""What an option that takes a secret ends in, behind its last hyphen."""


def unit_differences(before: str, after: str) -> tuple[tuple[str, str | None, str | None], ...]:
    """Directives that differ: (name, before, after), sorted; 'text' where only the layout does.

    `before` is compared as it is, and told without what a person may have written into it that is secret.
    """
    if before == after:
        return ()
    old, new = _directives(before), _directives(after)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not names:
        return (("text", "edited", "as written"),)
    return tuple((name, _shown(name, old[name]) if name in old else None, new.get(name)) for name in names)


def telling(text: str) -> str:
    """What a unit says, without secrets: a digest of it shows edits, and no secret could be guessed from that."""
    lines = [f"{name}={_shown(name, value)}" for name, value in _directives(text).items()]
    return "\n".join([*lines, f"{text.count(chr(10))} lines"])


def _shown(name: str, value: str) -> str:
    """A directive's value as a plan may show it: what a person puts into an environment may be a secret."""
    if not value or (_is_directive(name) and not name.startswith(("Environment", "SetCredential"))):
        return shown_command(value)
    return HIDDEN


def _is_directive(name: str) -> bool:
    """Whether this is a directive's name; a stray line of a person's may be a variable with its value."""
    return name.isalnum() and not (name.isupper() and SECRET_NAME.search(name))


def shown_command(line: str) -> str:
    """A command line with `***` for values of secret variables and options, and for all that looks like a secret."""
    shown, at, hiding = [], 0, False
    for match in _WORD.finditer(line):
        word = match[0]
        hiding, told = _word(word, word.replace('"', "").replace("'", ""), hiding=hiding)
        shown += [line[at : match.start()], told]
        at = match.end()
    return masked("".join(shown) + line[at:])


def _word(word: str, bare: str, *, hiding: bool) -> tuple[bool, str]:
    """One word as it may be shown, and whether what follows is a secret option's value."""
    if any(letter.isspace() for letter in bare):  # a shell's script, or text
        secret = hiding or any(_hides(part) for part in re.split(r"[\s;&|()]+", bare))
        return False, "***" if secret else word
    option, equals, _ = bare.partition("=")
    if bare.startswith("-"):
        secret = _is_secret_option(option)
        return secret and not equals, f"{option}=***" if secret and equals else word
    if equals and SECRET_NAME.search(option):
        return False, f"{option}=***"
    return hiding, "***" if hiding else word


def _hides(word: str) -> bool:
    """Whether a word of a script gives a secret, or says that the next one is one."""
    option, equals, _ = word.partition("=")
    return _is_secret_option(option) if word.startswith("-") else bool(equals and SECRET_NAME.search(option))


def _is_secret_option(word: str) -> bool:
    """Whether `--word` takes a secret: vLLM's two in any spelling that argparse accepts, and what is called so."""
    name = word.lstrip("-").replace("_", "-").lower()
    short = len(name) >= 4 and ("api-key".startswith(name) or "hf-token".startswith(name))
    return short or name.rpartition("-")[2] in _PARTS


def _directives(text: str) -> dict[str, str]:
    """The directives by name; those of a repeated one together."""
    found: dict[str, str] = {}
    for line in _whole_lines(text):
        name, equals, value = line.partition("=")
        if equals and not line.startswith("["):
            found[name.strip()] = f"{found[name.strip()]} {value.strip()}" if name.strip() in found else value.strip()
    return found


def _whole_lines(text: str) -> Iterator[str]:
    """The lines without comments; one that goes on after a backslash as one."""
    held = ""
    for line in text.splitlines():
        if line.lstrip().startswith(("#", ";")):
            continue
        held += line
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        yield held
        held = ""
    if held:
        yield held

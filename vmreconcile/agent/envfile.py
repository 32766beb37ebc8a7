"""The env file: written so that systemd's EnvironmentFile= and our launcher read every value back verbatim. Pure.

The reader follows systemd's own (src/basic/env-file.c, man 5 systemd.exec): hand-edited files mean the same to both.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

BLANK = " \t"
BREAK = "\r\n"
ESCAPED = '"\\`$'
HEADER = "# Written by vmreconcile; removed with the server. Values may be secret.\n"


def is_name(name: str) -> bool:
    """Whether systemd and shells take `name` as a variable's name."""
    return name.isascii() and name.replace("_", "a").isalnum() and not name[0].isdigit()


def render(entries: Iterable[tuple[str, str]]) -> str:
    """Write NAME="value" lines: in double quotes only `"`, backslash, backtick and `$` need a backslash.

    Raises:
        ValueError: naming the entry (never its value) that no environment can hold.
    """
    lines = [HEADER]
    for name, value in entries:
        if not name or not is_name(name):
            raise ValueError("{!r} is no name of an environment variable".format(name))
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("the value of {} holds a character that no environment can".format(name))
        quoted = "".join("\\" + letter if letter in ESCAPED else letter for letter in value)
        lines.append('{}="{}"\n'.format(name, quoted))
    return "".join(lines)


class _Reader:
    """systemd's state machine: one method a state, each returning the next."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.key = ""
        self.value = ""
        self.kept = 0  # length of the value that trailing blanks do not shorten

    def flush(self) -> None:
        """Take the entry that has ended."""
        name = self.key.strip(BLANK + BREAK)
        if name and is_name(name):
            self.found[name] = self.value[: self.kept]
        self.key, self.value, self.kept = "", "", 0

    def push(self, letter: str) -> None:
        """Add a letter that counts even if blank."""
        self.value += letter
        self.kept = len(self.value)

    def before_key(self, letter: str) -> str:
        if letter in "#;":
            return "comment"
        if letter in BLANK + BREAK:
            return "before_key"
        self.key = letter
        return "in_key"

    def in_key(self, letter: str) -> str:
        if letter in BREAK:
            self.key = ""
            return "before_key"
        if letter == "=":
            return "before_value"
        self.key += letter
        return "in_key"

    def before_value(self, letter: str) -> str:
        if letter in BREAK:
            self.flush()
            return "before_key"
        if letter in "'\"\\":
            return {"'": "single", '"': "double", "\\": "escape"}[letter]
        if letter in BLANK:
            return "before_value"
        self.push(letter)
        return "in_value"

    def in_value(self, letter: str) -> str:
        if letter in BREAK:
            self.flush()
            return "before_key"
        if letter == "\\":
            self.kept = len(self.value)
            return "escape"
        self.value += letter
        if letter not in BLANK:
            self.kept = len(self.value)
        return "in_value"

    def escape(self, letter: str) -> str:
        if letter not in BREAK:
            self.push(letter)
        return "in_value"

    def single(self, letter: str) -> str:
        if letter == "'":
            return "before_value"
        self.push(letter)
        return "single"

    def double(self, letter: str) -> str:
        if letter == '"':
            return "before_value"
        if letter == "\\":
            return "double_escape"
        self.push(letter)
        return "double"

    def double_escape(self, letter: str) -> str:
        if letter in ESCAPED:
            self.push(letter)
        elif letter != "\n":
            self.push("\\" + letter)
        return "double"

    def comment(self, letter: str) -> str:
        if letter == "\\":
            return "comment_escape"
        return "before_key" if letter in BREAK else "comment"

    def comment_escape(self, letter: str) -> str:
        del letter
        return "comment"


def parse(text: str) -> dict[str, str]:
    """Read an env file as systemd does; a name given twice has its last value."""
    reader = _Reader()
    state = "before_key"
    for letter in text:
        state = getattr(reader, state)(letter)
    if reader.key and state not in ("in_key", "before_key", "comment", "comment_escape"):
        reader.flush()
    return reader.found

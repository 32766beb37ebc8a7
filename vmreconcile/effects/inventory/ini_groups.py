"""An INI inventory: sections of hosts, `:vars` and `:children`. Owns its grammar and its typing of values."""

from __future__ import annotations

import ast
import re
import shlex
import warnings
from dataclasses import dataclass, field

from vmreconcile.effects.inventory.adding import Adding
from vmreconcile.errors import Place
from vmreconcile.model.addresses import split_port
from vmreconcile.model.inventory import UnsafeText
from vmreconcile.model.values import JsonValue

_SECTION = re.compile(r"\[([^:\]\s]+)(?::(\w+))?\]\s*(?:#.*)?")
_CHILD = re.compile(r"([^:\]\s]+)\s*(?:#.*)?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}|0")
_KINDS = ("hosts", "vars", "children")


@dataclass(slots=True)
class _Waiting:
    """A group that was named before it is declared: as a child of `parents`, or by its variables."""

    place: Place
    parents: list[str] = field(default_factory=list)


def add_groups(text: str, file: str, adding: Adding) -> None:
    """Add everything in an INI inventory."""
    if text.startswith("\ufeff"):
        adding.problems.error(
            Place(file=file, line=1, column=1),
            "byte-order-mark",
            "starts with a byte order mark",
            why="Ansible takes it for a part of the first name.",
            remedy="Save the file as UTF-8 without one.",
        )
        return
    reader = _IniReader(file, adding)
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and stripped[0] not in ";#":
            reader.line(stripped, Place(file=file, line=number, column=len(line) - len(line.lstrip()) + 1))
    reader.finish()


def typed(text: str) -> JsonValue:
    """Read a value as Ansible does in INI: a Python literal if it is one, else text."""
    if _WORD.fullmatch(text):
        return {"True": True, "False": False, "None": None}.get(text, text)
    if _NUMBER.fullmatch(text):
        return int(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return _plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def _plain(value: object) -> JsonValue:
    """Turn Python's own types into those of JSON."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return UnsafeText(value.decode())
        case list() | tuple() | set():
            return [_plain(item) for item in value]
        case dict():
            return {_key(key): _plain(item) for key, item in value.items()}
        case _:
            return "..." if value is ... else str(value)


def _key(key: object) -> str:
    match key:
        case str():
            return key
        case None | bool():
            return {None: "null", True: "true", False: "false"}[key]
        case int() | float():
            return repr(key)
        case _:
            raise TypeError(key)


class _IniReader:
    """Reads lines in order; remembers the section it is in."""

    def __init__(self, file: str, adding: Adding) -> None:
        self.file = file
        self.adding = adding
        self.draft = adding.draft
        self.problems = adding.problems
        self.group = "ungrouped"
        self.kind = "hosts"
        self.children: dict[str, _Waiting] = {}
        self.variables: dict[str, _Waiting] = {}

    def line(self, line: str, place: Place) -> None:
        """Read one line that is neither empty nor a comment."""
        if section := _SECTION.fullmatch(line):
            self._section(section[1], section[2] or "hosts", place)
        elif line.startswith("[") and line.endswith("]"):
            self._error(
                place, "ini-section", f"{line!r} is no section", "Write [GROUP], [GROUP:vars] or [GROUP:children]."
            )
        elif line.startswith("[") and "]" not in line:
            self._error(place, "ini-section", f"{line!r} has no ']'", "Close the bracket: [GROUP].")
        elif self.kind == "hosts":
            self._host(line, place)
        elif self.kind == "vars":
            self._variable(line, place)
        elif self.kind == "children":
            self._child(line, place)

    def finish(self) -> None:
        """Report the groups that are named but declared nowhere."""
        for name, waiting in self.children.items():
            self._error(
                waiting.place,
                "unknown-group",
                f"group {name!r}, a child of {waiting.parents[-1]!r}, is not declared",
                f"Add a section [{name}].",
            )
        for name, waiting in self.variables.items():
            self._error(
                waiting.place,
                "unknown-group",
                f"[{name}:vars] is for a group that is not declared",
                f"Add a section [{name}].",
            )

    def _error(self, place: Place, code: str, summary: str, remedy: str) -> None:
        self.problems.error(place, code, summary, remedy=remedy)

    def _section(self, name: str, kind: str, place: Place) -> None:
        self.group, self.kind = name, kind
        if kind not in _KINDS:
            self._error(
                place,
                "ini-section",
                f"{kind!r} is no kind of section",
                "Write [GROUP], [GROUP:vars] or [GROUP:children].",
            )
            return
        if name not in self.draft.groups:
            if kind == "vars" and name not in self.children:
                self.variables[name] = _Waiting(place)
            self.draft.add_group(name)
        if kind != "vars":
            self.variables.pop(name, None)
            waiting = self.children.pop(name, None)
            for parent in waiting.parents if waiting else ():
                with self.adding.at(waiting.place if waiting else place):
                    self.draft.add_child(parent, name)

    def _host(self, line: str, place: Place) -> None:
        try:
            pattern, *assignments = shlex.split(line, comments=True)
        except ValueError as error:
            self._error(place, "ini-host", f"cannot be split into words: {error}", "Close the quote.")
            return
        if pattern.strip() == "---":
            self._error(place, "ini-host", "'---' is no host", "If the file is YAML, name it .yml.")
            return
        if pattern.endswith(":") and (split_port(pattern) or ("", None))[1] is None:
            self._error(
                place,
                "ini-host",
                f"{pattern!r} ends in ':'",
                "Write NAME or NAME:PORT; if the file is YAML, name it .yml.",
            )
            return
        variables: dict[str, tuple[JsonValue, Place]] = {}
        for number, assignment in enumerate(assignments, start=2):
            name, equals, value = assignment.partition("=")
            if not equals:  # the word itself may be part of a password
                self._error(
                    place,
                    "ini-host",
                    f"word {number} of the line is no variable=value",
                    "Write one host a line, quote spaces.",
                )
                return
            variables[name] = (self._typed(value, place), place)
        self.adding.hosts(pattern, place, group=self.group, variables=variables)

    def _variable(self, line: str, place: Place) -> None:
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            self._error(place, "ini-variable", "the line is no variable=value", "Write variable=value.")
            return
        with self.adding.at(place):
            self.draft.set_variable(self.group, name, self._typed(value, place), place)

    def _typed(self, text: str, place: Place) -> JsonValue:
        try:
            return typed(text)
        except (TypeError, MemoryError, RecursionError, UnicodeError):
            self._error(
                place,
                "ini-value",
                "a value looks like a Python literal but is none",
                "Put it in quotes twice: \"'…'\".",
            )
            return None

    def _child(self, line: str, place: Place) -> None:
        child = _CHILD.fullmatch(line)
        if not child:
            self._error(place, "ini-child", f"{line!r} is no group name", "Write one group a line.")
        elif child[1] in self.draft.groups:
            with self.adding.at(place):
                self.draft.add_child(self.group, child[1])
        else:
            self.children.setdefault(child[1], _Waiting(place)).parents.append(self.group)

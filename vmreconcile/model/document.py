"""One loaded file: plain data, and the place of every key and value in it. Reads nothing, judges nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from vmreconcile.errors import Diagnostic, Place
from vmreconcile.model.values import JsonValue

Path: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the top of a file to a value in it."""


class Mark(NamedTuple):
    """Where a value and its key begin, counting from 1. In a list, the key's place is the value's."""

    key_line: int
    key_column: int
    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file as read. `content` is None where nothing usable was in it; `problems` says why.

    `path` opens the file again, `file` is what people are shown.
    """

    path: str
    file: str
    content: Mapping[str, JsonValue] | None = None
    marks: Mapping[Path, Mark] = field(default_factory=dict)
    problems: tuple[Diagnostic, ...] = ()

    def place(self, *path: str | int) -> Place:
        """Where the value at `path` begins; where it is missing, the nearest key above it."""
        mark = self.marks.get(path)
        if mark is not None:
            return Place(file=self.file, line=mark.line, column=mark.column)
        return self.key_place(*path[:-1]) if path else Place(file=self.file)

    def key_place(self, *path: str | int) -> Place:
        """Where the key of the value at `path` begins; where it is missing, the nearest key above it."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                return Place(file=self.file, line=mark.key_line, column=mark.key_column)
        return Place(file=self.file)

    def get(self, *path: str | int) -> JsonValue:
        """The value at `path`, or None."""
        value: JsonValue = dict(self.content) if self.content is not None and not path else None
        level: object = self.content
        for step in path:
            if isinstance(level, Mapping):
                level = level.get(step)
            elif isinstance(level, list) and isinstance(step, int) and -len(level) <= step < len(level):
                level = level[step]
            else:
                return None
        return value if not path else level  # type: ignore[return-value] # a level is a value of the tree

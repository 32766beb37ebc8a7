"""From YAML text to plain data with the place of every key and value, and every objection on the way.

Works on the parser's events with its own stack, because composing deep nesting overruns the C stack (PyYAML 6.0.3), and
so that an alias can be shared instead of copied. Opens no file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from vmreconcile.effects.yaml_scalars import Scalar, plain, tagged, unknown_tag
from vmreconcile.effects.yaml_syntax import syntax_objection, unlocated
from vmreconcile.errors import Diagnostic, Place
from vmreconcile.model.document import Mark, Path
from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 64
LARGEST = 50_000
"""Values in a file, counting what aliases stand for each time."""

_MERGE = "<<"
_Parsed: TypeAlias = Any
"""An event or a mark of PyYAML's C parser, which is untyped."""


class _Stop(Exception):  # noqa: N818 - ends the reading, the objection is already noted
    """The rest of the file cannot be read."""


@dataclass(slots=True)
class _Level:
    """A container being read. `key` waits for its value (`merging`: it is an unquoted `<<`); `size` counts values."""

    value: dict[str, JsonValue] | list[JsonValue]
    path: Path
    anchor: str | None
    size: int = 1
    key: str | None = None
    key_mark: Any = None
    merging: bool = False
    merges: list[dict[str, JsonValue]] = field(default_factory=list)


@dataclass(slots=True)
class Reading:
    """Data, marks and objections of one text."""

    file: str
    content: JsonValue = None
    empty: bool = True
    marks: dict[Path, Mark] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)

    def object_to(self, mark: _Parsed, objection: tuple[str, str, str, str]) -> None:
        """Note an objection at a parser's mark."""
        code, summary, why, remedy = objection
        place = Place(file=self.file, line=mark.line + 1, column=mark.column + 1)
        self.problems.append(Diagnostic(place=place, code=code, summary=summary, why=why, remedy=remedy))


def read_yaml(text: str, file: str) -> Reading:
    """Read one document. Whatever stands in `text`, problems are returned and nothing is raised."""
    reading = Reading(file=file)
    try:
        _Builder(reading).read(yaml.parse(text, Loader=LOADER))
    except _Stop:
        reading.content = None
    except yaml.MarkedYAMLError as error:
        reading.content = None
        mark = error.problem_mark or error.context_mark
        if mark is None:
            reading.problems.append(unlocated(file, error))
        else:
            reading.object_to(mark, syntax_objection(error, text, mark))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reading.content = None
        reading.problems.append(unlocated(file, error))
    return reading


class _Builder:
    """Builds values from events. One use."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.stack: list[_Level] = []
        self.anchors: dict[str, tuple[JsonValue, int] | None] = {}
        self.total = 0
        self.documents = 0

    def read(self, events: Iterator[Any]) -> None:
        """Take every event."""
        for event in events:
            match event:
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.MappingStartEvent():
                    self._open(event, {})
                case yaml.SequenceStartEvent():
                    self._open(event, [])
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._close()
                case yaml.AliasEvent():
                    self._alias(event)
                case yaml.DocumentStartEvent():
                    self._document(event)

    def _document(self, event: _Parsed) -> None:
        self.documents += 1
        if self.documents > 1:
            why = "What follows '---' would be a second document."
            objection = ("several-documents", "The file holds several YAML documents.", why, "Make one file of each.")
            self.reading.object_to(event.start_mark, objection)
            raise _Stop

    def _scalar(self, event: _Parsed) -> None:
        if event.implicit[0]:
            scalar = plain(event.value)
        elif event.implicit[1] or event.tag is None:
            scalar = Scalar(event.value)
        else:
            scalar = tagged(event.tag, event.value)
        level = self.stack[-1] if self.stack else None
        if level is not None and type(level.value) is dict and level.key is None:
            self._key(level, event, scalar)
            return
        if scalar.problem:
            self.reading.object_to(event.start_mark, scalar.problem)
        self._put(scalar.value, event.start_mark, 1)
        if event.anchor:
            self.anchors[event.anchor] = (scalar.value, 1)

    def _key(self, level: _Level, event: _Parsed, scalar: Scalar) -> None:
        text = event.value
        if not isinstance(scalar.value, str):
            why = f"Unquoted, {shown(text)} is not text to YAML."
            objection = ("key-not-text", f"The key {shown(text)} is not text.", why, "Put the key in quotes.")
            self.reading.object_to(event.start_mark, objection)
        elif scalar.problem:
            self.reading.object_to(event.start_mark, scalar.problem)
        level.key, level.key_mark = text, event.start_mark
        level.merging = text == _MERGE and event.implicit[0]
        if event.anchor:
            self.anchors[event.anchor] = (text, 1)
        first = self.reading.marks.get((*level.path, text))
        if first is not None and text in level.value and not level.merging:
            place = f"{self.reading.file}:{first.key_line}:{first.key_column}"
            why = f"It was first given at {place}; only one of the two would count."
            objection = ("duplicate-key", f"The key {shown(text)} is given twice.", why, "Remove one of them.")
            self.reading.object_to(event.start_mark, objection)

    def _open(self, event: _Parsed, value: dict[str, JsonValue] | list[JsonValue]) -> None:
        mark = event.start_mark
        if len(self.stack) >= DEEPEST:
            limit = f"{DEEPEST} levels are the limit."
            self.reading.object_to(mark, ("yaml-depth", "The file is nested too deeply.", limit, ""))
            raise _Stop
        if event.tag is not None and not event.implicit:
            self.reading.object_to(mark, unknown_tag(event.tag))
        level = self.stack[-1] if self.stack else None
        if level is not None and type(level.value) is dict and level.key is None:
            why = "A list or a mapping stands where a key is expected."
            self.reading.object_to(mark, ("key-not-text", "This key is not text.", why, "Write a name before the ':'."))
            raise _Stop
        path = self._path(level)
        self._mark(path, level, mark)
        if event.anchor:
            self.anchors[event.anchor] = None
        self.stack.append(_Level(value=value, path=path, anchor=event.anchor))

    def _close(self) -> None:
        level = self.stack.pop()
        if type(level.value) is dict:
            for merge in level.merges:
                for key, value in merge.items():
                    level.value.setdefault(key, value)
        if level.anchor:
            self.anchors[level.anchor] = (level.value, level.size)
        self._put(level.value, None, level.size)

    def _alias(self, event: _Parsed) -> None:
        mark = event.start_mark
        if event.anchor not in self.anchors:
            why = "An unquoted value that begins with '*' is a YAML alias, not text."
            name = shown("*" + event.anchor)
            objection = (
                "yaml-alias",
                f"{name} refers to nothing above.",
                why,
                "Put the value in quotes if it is text.",
            )
            self.reading.object_to(mark, objection)
            self._put_alias(event, None, 1)
            return
        known = self.anchors[event.anchor]
        if known is None:
            objection = ("yaml-alias", "The alias stands inside of what it refers to.", "", "Write the value out.")
            self.reading.object_to(mark, objection)
            raise _Stop
        self._put_alias(event, *known)

    def _put_alias(self, event: _Parsed, value: JsonValue, size: int) -> None:
        level = self.stack[-1] if self.stack else None
        if level is not None and type(level.value) is dict and level.key is None:
            if isinstance(value, str):
                self._key(level, _KeyAlias(value, event.start_mark), Scalar(value))
                return
            self.reading.object_to(event.start_mark, ("key-not-text", "This key is not text.", "", "Write a name."))
            raise _Stop
        self._put(value, event.start_mark, size)

    def _put(self, value: JsonValue, mark: _Parsed, size: int) -> None:
        """Hand a finished value to the level above; `mark` is None where it was marked when it was opened."""
        level = self.stack[-1] if self.stack else None
        if mark is not None:
            self._mark(self._path(level), level, mark)
        if level is None:
            self.reading.content, self.reading.empty = value, value is None
            return
        level.size += size
        if level.size > LARGEST:
            place = mark or level.key_mark
            limit = f"{LARGEST} values are the limit, each alias counted with all that it stands for."
            if place is not None:
                self.reading.object_to(place, ("yaml-size", "The file holds too many values.", limit, ""))
            raise _Stop
        if isinstance(level.value, list):
            level.value.append(value)
        elif level.merging:
            self._merge(level, value)
            level.key = None
        elif level.key is not None:
            level.value[level.key] = value
            level.key = None

    def _merge(self, level: _Level, value: JsonValue) -> None:
        for merge in value if isinstance(value, list) else [value]:
            if not isinstance(merge, dict):
                why = "'<<' takes a mapping, or a list of mappings, to copy keys from."
                objection = ("yaml-merge", "'<<' is not given a mapping.", why, "Refer to a mapping by its anchor.")
                self.reading.object_to(level.key_mark, objection)
                continue
            level.merges.append(merge)
            for key in merge:
                self._mark((*level.path, key), level, level.key_mark, keep=True)

    @staticmethod
    def _path(level: _Level | None) -> Path:
        if level is None:
            return ()
        return (*level.path, level.key if type(level.value) is dict else len(level.value))  # type: ignore[arg-type]

    def _mark(self, path: Path, level: _Level | None, mark: _Parsed, *, keep: bool = False) -> None:
        if keep and path in self.reading.marks:
            return
        line, column = mark.line + 1, mark.column + 1
        key = level.key_mark if level is not None and type(level.value) is dict else None
        if key is None:
            self.reading.marks[path] = Mark(line, column, line, column)
        else:
            self.reading.marks[path] = Mark(key.line + 1, key.column + 1, line, column)


@dataclass(slots=True)
class _KeyAlias:
    """An alias in a key's place, seen as the scalar that it stands for."""

    value: str
    start_mark: Any
    anchor: None = None
    implicit: tuple[bool, bool] = (False, False)

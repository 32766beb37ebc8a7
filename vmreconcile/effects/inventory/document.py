"""Text files as trees of YAML nodes, which know their lines. Owns reading and syntax; knows no groups or hosts.

JSON is read by JSON's own rules (`1e5` is a number there, not in YAML) into the same kind of tree.
"""

from __future__ import annotations

import json
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed lacks it
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from vmreconcile.effects.yaml_syntax import nested_too_deeply
from vmreconcile.errors import Place

if TYPE_CHECKING:
    from vmreconcile.effects.inventory.problems import Problems

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser is ten times as fast
_TAG = "tag:yaml.org,2002:"
_SAFE_DEPTH = 5000
_SPACE = " \t\r\n"
VAULT_HEADER = "$ANSIBLE_VAULT;"


def read_text(path: Path, problems: Problems) -> str | None:
    """Read a UTF-8 file; None (and a problem) where that cannot be done."""
    place = Place(file=str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.error(
            place,
            "unreadable",
            f"cannot be read: {error.strerror or error}",
            remedy="Check the path and its permissions.",
        )
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line_start = data.rfind(b"\n", 0, error.start) + 1
        where = Place(file=str(path), line=data.count(b"\n", 0, error.start) + 1, column=error.start - line_start + 1)
        problems.error(
            where, "not-utf-8", f"byte 0x{data[error.start]:02x} is not UTF-8", remedy="Save the file as UTF-8."
        )
        return None
    if text.startswith(VAULT_HEADER):
        problems.error(
            Place(file=str(path), line=1),
            "vaulted-file",
            "the whole file is encrypted with Ansible Vault",
            why="vmreconcile has no vault password, and the file may hold what it needs.",
            remedy="Encrypt single values with !vault instead, or keep the file elsewhere.",
        )
        return None
    return text


def place_of(node: yaml.Node, file: str) -> Place:
    """Tell where a node starts."""
    return Place(file=file, line=node.start_mark.line + 1, column=node.start_mark.column + 1)


def parse(text: str, file: str, problems: Problems) -> yaml.Node | None:
    """Parse JSON or else YAML; None for a document without content, or (with a problem) for one that is not YAML."""
    try:
        json.loads(text)
    except ValueError:
        return _parse_yaml(text, file, problems)
    except RecursionError:
        _too_deep(file, problems)
        return None
    try:
        return _JsonReader(text).read()
    except RecursionError:
        _too_deep(file, problems)
        return None


def _too_deep(file: str, problems: Problems) -> None:
    problems.error(Place(file=file), "too-deep", "is nested too deeply", remedy="Flatten it.")


def _parse_yaml(text: str, file: str, problems: Problems) -> yaml.Node | None:
    try:
        if text.count("[") + text.count("{") > _SAFE_DEPTH and _is_too_deep(text):
            _too_deep(file, problems)
            return None
        loader = _Loader(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        if nested_too_deeply(error):
            _too_deep(file, problems)
        else:
            _report_syntax(error, text, file, problems)
        return None
    except yaml.YAMLError as error:
        character = getattr(error, "character", None)
        what = f"character {character!r} is not allowed" if character is not None else str(error).splitlines()[0]
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        problems.error(Place(file=file, line=line), "yaml-syntax", f"is not YAML: {what}", remedy="Take it out.")
        return None
    except RecursionError:
        _too_deep(file, problems)
        return None
    return node


def _is_too_deep(text: str) -> bool:
    """Tell whether collections are nested too deeply, without the recursion that would overflow libyaml's C stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _SAFE_DEPTH:
            return True
    return False


def _report_syntax(error: yaml.MarkedYAMLError, text: str, file: str, problems: Problems) -> None:
    """Report a syntax error where YAML noticed it; a tab in the indentation is the usual one."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    written = lines[line] if line < len(lines) else ""
    indentation = written[: len(written) - len(written.lstrip())]
    if "\t" in indentation:
        problems.error(
            Place(file=file, line=line + 1, column=indentation.index("\t") + 1),
            "yaml-tab",
            "a tab in the indentation",
            why="YAML is indented with spaces only.",
            remedy="Replace the tab by spaces.",
        )
        return
    what = ", ".join(part for part in (error.context, error.problem) if part)
    problems.error(
        Place(file=file, line=line + 1, column=column + 1),
        "yaml-syntax",
        f"is not YAML: {what}",
        remedy="Check the indentation, quotes and colons of this line and the one above.",
    )


class _JsonReader:
    """Turns JSON that is known to be valid into nodes."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 0
        self._line_start = 0
        self._decode = json.JSONDecoder().raw_decode

    def read(self) -> yaml.Node:
        self._skip()
        return self._value()

    def _skip(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _SPACE:
            if self._text[self._at] == "\n":
                self._line += 1
                self._line_start = self._at + 1
            self._at += 1

    def _step(self) -> None:
        self._at += 1
        self._skip()

    def _mark(self) -> yaml.Mark:
        return yaml.Mark("", self._at, self._line, self._at - self._line_start, None, 0)

    def _value(self) -> yaml.Node:
        mark = self._mark()
        character = self._text[self._at]
        if character == "{":
            return self._mapping(mark)
        if character == "[":
            self._step()
            items = []
            while self._text[self._at] != "]":
                items.append(self._value())
                if self._text[self._at] == ",":
                    self._step()
            self._step()
            return yaml.SequenceNode(_TAG + "seq", items, mark, mark)
        if character == '"':
            return self._string()
        return self._plain(mark)

    def _mapping(self, mark: yaml.Mark) -> yaml.Node:
        """Read an object; those by which Ansible's JSON marks unsafe and vaulted text become such text."""
        self._step()
        pairs = []
        while self._text[self._at] != "}":
            key = self._string()
            self._step()
            pairs.append((key, self._value()))
            if self._text[self._at] == ",":
                self._step()
        self._step()
        for key, value in pairs:
            if key.value in ("__ansible_unsafe", "__ansible_vault") and isinstance(value, yaml.ScalarNode):
                return yaml.ScalarNode(f"!json-{key.value}", value.value, mark, mark)
        return yaml.MappingNode(_TAG + "map", pairs, mark, mark)

    def _string(self) -> yaml.ScalarNode:
        mark = self._mark()
        value, self._at = scanstring(self._text, self._at + 1)
        self._skip()
        return yaml.ScalarNode(_TAG + "str", value, mark, mark)

    def _plain(self, mark: yaml.Mark) -> yaml.ScalarNode:
        value, end = self._decode(self._text, self._at)
        written = self._text[self._at : end]
        self._at = end
        self._skip()
        kind = {bool: "bool", int: "int", float: "float"}.get(type(value), "null")
        return yaml.ScalarNode(_TAG + kind, written, mark, mark)

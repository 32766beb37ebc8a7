"""Sets one text in a YAML file and leaves every other byte alone: comments, quotes, order, indentation. Opens no file.

Where text goes is found from the parser's marks; whether it came out right is found by reading the result again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from vmreconcile.effects.yaml_scalars import plain
from vmreconcile.effects.yaml_text import LOADER, read_yaml
from vmreconcile.model.values import JsonValue

_Parsed: TypeAlias = Any
"""An event of PyYAML's C parser, which is untyped."""

_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


@dataclass(slots=True)
class _Node:
    """A value and the span of its text; a mapping's `entries` are (key, key's node, value)."""

    start: int
    end: int
    column: int
    kind: str
    flow: bool = False
    text: str = ""
    named: bool = False
    entries: list[tuple[str, _Node, _Node]] = field(default_factory=list)
    items: list[_Node] = field(default_factory=list)


class EditError(Exception):
    """The file is written in a way that cannot be edited safely; `str()` says what stands in the way."""


def set_text(text: str, path: Sequence[str], word: str, *, after: str = "") -> str:
    """`text` with the value at `path` (keys of mappings, made where they are missing) set to the plain `word`.

    A new key of the top mapping is put behind its key `after`, where there is one; any other new key is put last.

    Raises:
        EditError: the text is no mapping, or the result would not say what it should.
    """
    before = read_yaml(text, "")
    if before.problems or not isinstance(before.content, dict):
        raise EditError("it is not plain YAML")
    wanted = _with(before.content, path, word)
    if wanted == before.content:
        return text
    events = (
        event
        for event in yaml.parse(text, Loader=LOADER)
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent)
    )
    edited = _Edit(text, after).put(_read(events), list(path), word)
    again = read_yaml(edited, "")
    if again.problems or again.content != wanted:
        raise EditError("its anchors, aliases or layout leave no safe place for the change")
    return edited


def _with(content: Mapping[str, JsonValue], path: Sequence[str], word: str) -> dict[str, JsonValue]:
    """The content as it should be afterwards."""
    changed = dict(content)
    if len(path) == 1:
        changed[path[0]] = word
        return changed
    inner = changed.get(path[0])
    if inner is not None and not isinstance(inner, dict):
        raise EditError(f"{path[0]} holds no mapping")
    changed[path[0]] = _with(inner or {}, path[1:], word)
    return changed


def _read(events: Iterator[_Parsed]) -> _Node:
    """The next value as a node. The text was read before, so its depth is bounded."""
    return _node(next(events), events)


def _node(event: _Parsed, events: Iterator[_Parsed]) -> _Node:
    start, end = event.start_mark, event.end_mark
    named = bool(getattr(event, "anchor", None)) or bool(getattr(event, "tag", None) not in {None, "!"})
    node = _Node(start.index, end.index, start.column, "scalar", text=getattr(event, "value", "") or "", named=named)
    if isinstance(event, yaml.MappingStartEvent):
        node.kind, node.flow = "mapping", bool(event.flow_style)
        while not isinstance(event := next(events), yaml.CollectionEndEvent):
            name = _node(event, events)
            node.entries.append((name.text, name, _read(events)))
        node.end = _end(event)
    elif isinstance(event, yaml.SequenceStartEvent):
        node.kind, node.flow = "sequence", bool(event.flow_style)
        while not isinstance(event := next(events), yaml.CollectionEndEvent):
            node.items.append(_node(event, events))
        node.end = _end(event)
    elif isinstance(event, yaml.AliasEvent):
        node.kind = "alias"
    return node


def _end(event: _Parsed) -> int:
    index: int = event.end_mark.index
    return index


class _Edit:
    """One change to one text."""

    def __init__(self, text: str, after: str) -> None:
        self.text = text
        self.after = after
        self.newline = "\r\n" if re.search(r"\r\n", text) else "\n"

    def put(self, node: _Node, path: list[str], word: str) -> str:
        """Follow the path as far as it exists, then replace or insert."""
        if node.kind != "mapping":
            raise EditError("a mapping is expected")
        found = next((entry for entry in node.entries if entry[0] == path[0]), None)
        if found is None:
            return self._insert(node, path, word)
        value = found[2]
        if value.named or value.kind == "alias":
            raise EditError(f"{path[0]} is an anchor or an alias")
        if len(path) == 1:
            return self._replace(value, word)
        if value.kind == "mapping":
            return self.put(value, path[1:], word)
        if node.flow:
            return self._replace(value, "{" + _inline(path[1:], word) + "}")
        self.text = self.text[: value.start].rstrip(" ") + self.text[value.end :]  # an explicit null goes
        key = found[1]
        return self._insert_lines(self._line_after(key.end), key.column + 2, path[1:], word)

    def _replace(self, node: _Node, word: str) -> str:
        gap = "" if self.text[node.start - 1 : node.start] in {" ", "\t", ""} else " "
        return self.text[: node.start] + gap + word + self.text[node.end :]

    def _insert(self, node: _Node, path: list[str], word: str) -> str:
        if node.flow:
            if node.entries:
                at, piece = self._leaf(node.entries[-1][2]), f", {_inline(path, word)}"
            else:
                at, piece = node.start + 1, _inline(path, word)
            return self.text[:at] + piece + self.text[at:]
        after = self.after if len(path) == 1 else ""
        behind = next((entry for entry in node.entries if entry[0] == after), node.entries[-1])
        return self._insert_lines(self._line_after(self._leaf(behind[2])), node.entries[0][1].column, path, word)

    def _insert_lines(self, at: int, indent: int, path: list[str], word: str) -> str:
        lines = [f"{' ' * (indent + 2 * depth)}{_key(key)}:" for depth, key in enumerate(path)]
        piece = self.newline.join(lines) + f" {word}{self.newline}"
        if at and self.text[at - 1] not in "\r\n":
            piece = self.newline + piece
        return self.text[:at] + piece + self.text[at:]

    def _leaf(self, node: _Node) -> int:
        """Where the last text of a value ends; a block's own end is only at the next key, behind comments."""
        if not node.flow and node.entries:
            return self._leaf(node.entries[-1][2])
        if not node.flow and node.items:
            return self._leaf(node.items[-1])
        return node.end

    def _line_after(self, index: int) -> int:
        """Where the line after the one that `index` is in begins; `index` itself where it begins a line."""
        if index and self.text[index - 1] == "\n":
            return index
        found = self.text.find("\n", index)
        return len(self.text) if found < 0 else found + 1


def _inline(path: Sequence[str], word: str) -> str:
    head = f"{_key(path[0])}: "
    return head + (word if len(path) == 1 else "{" + _inline(path[1:], word) + "}")


def _key(text: str) -> str:
    """A key, in quotes where it needs them."""
    fits = _PLAIN_KEY.fullmatch(text) and plain(text).value == text and plain(text).problem is None
    return text if fits else json.dumps(text, ensure_ascii=False)

"""YAML nodes as plain values, by Ansible's typing: YAML 1.1 scalars, `!unsafe`, `!vault`, dates as text.

Knows no groups or hosts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from vmreconcile.effects.inventory.document import place_of
from vmreconcile.model.inventory import UnsafeText, VaultedText
from vmreconcile.model.values import JsonValue

if TYPE_CHECKING:
    from vmreconcile.effects.inventory.problems import Problems

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp")}
_VAULT_TAGS = {"!vault", "!vault-encrypted", "!json-__ansible_vault"}

Scalar = str | int | float | bool | dt.date | None


LARGEST = 1_000_000
"""Values in one variable; what is larger was not meant."""


class _ValueError(Exception):
    """A node that has no plain value."""

    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(message)
        self.node = node


class Values:
    """Reads the nodes of one file."""

    def __init__(self, file: str, problems: Problems) -> None:
        """Problems found are added to `problems`, with places in `file`."""
        self._file = file
        self._problems = problems
        self._constructor: Any = SafeConstructor()  # its scalar constructors lack type annotations
        self._resolver = Resolver()
        self._open: list[yaml.Node] = []
        self._sizes: dict[int, int] = {}  # by the identity of a value that `_known` keeps
        self._known: dict[tuple[int, bool], tuple[yaml.Node, JsonValue]] = {}  # an anchor's value is made once

    def value(self, node: yaml.Node) -> JsonValue:
        """Turn a node into a value; one that has none is reported and becomes None."""
        try:
            return self._value(node, unsafe=False)
        except _ValueError as error:
            self._problems.error(
                place_of(error.node, self._file), "yaml-value", str(error), remedy="Quote it, or write it otherwise."
            )
        except RecursionError:
            self._problems.error(place_of(node, self._file), "too-deep", "is nested too deeply", remedy="Flatten it.")
        self._open.clear()
        return None

    def pairs(self, node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, Scalar, yaml.Node]]:
        """Give the (key node, key, value node) of a mapping, merge keys resolved; the last duplicate counts.

        Raises:
            yaml.YAMLError: never; a key that is no scalar is reported and left out.
        """
        try:
            found = self._pairs(node)
        except _ValueError as error:
            self._problems.error(place_of(error.node, self._file), "yaml-key", str(error), remedy="Use plain text.")
            return
        yield from found

    def _pairs(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, Scalar, yaml.Node]]:
        self._warn_of_duplicates(node)
        try:
            self._constructor.flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            raise _ValueError(node, f"{error.problem}") from None
        found: dict[Scalar, tuple[yaml.Node, Scalar, yaml.Node]] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in found:
                key = found[key][1]  # 1 and true are one key, spelled as the first time
            found[key] = (key_node, key, value_node)
        return list(found.values())

    def _key(self, node: yaml.Node) -> Scalar:
        if not isinstance(node, yaml.ScalarNode):
            raise _ValueError(node, "a key must be plain text")
        return self._scalar(node)

    def _warn_of_duplicates(self, node: yaml.MappingNode) -> None:
        """Warn of keys written twice (one that overrides a merged key is none)."""
        first: dict[tuple[str, str], yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _TAG + "merge":
                before = first.setdefault((key.tag, key.value), key)
                if before is not key:
                    self._problems.warn(
                        place_of(key, self._file),
                        "duplicate-key",
                        f"{key.value!r} is written a second time",
                        why=f"Only the last one counts, as in Ansible; the first is in line {_line(before)}.",
                        remedy="Keep one of them.",
                    )

    def _value(self, node: yaml.Node, *, unsafe: bool) -> JsonValue:
        if node.tag == "!unsafe":
            return self._value(self._untagged(node), unsafe=True)
        if node.tag in _VAULT_TAGS:
            if not isinstance(node, yaml.ScalarNode):
                raise _ValueError(node, f"{node.tag} needs text")
            return VaultedText(node.value)
        if isinstance(node, yaml.ScalarNode):
            return self._plain(node, unsafe=unsafe)
        if any(node is outer for outer in self._open):
            raise _ValueError(node, "a value that contains itself")
        if (known := self._known.get((id(node), unsafe))) is not None:
            return known[1]
        self._open.append(node)
        value = self._collection(node, unsafe=unsafe)
        self._open.pop()
        self._known[id(node), unsafe] = (node, value)
        self._weigh(node, value)
        return value

    def _weigh(self, node: yaml.Node, value: JsonValue) -> None:
        """Count the values in a value, each alias with all that it stands for: a few lines can stand for billions."""
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        self._sizes[id(value)] = size = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
        if size > LARGEST:
            raise _ValueError(node, f"aliases make more than {LARGEST:,} values of it")

    def _plain(self, node: yaml.ScalarNode, *, unsafe: bool) -> JsonValue:
        if node.tag == "!json-__ansible_unsafe":
            return UnsafeText(node.value)
        value = self._scalar(node)
        if isinstance(value, dt.date):
            return value.isoformat()
        return UnsafeText(value) if unsafe and isinstance(value, str) else value

    def _collection(self, node: yaml.Node, *, unsafe: bool) -> JsonValue:
        if isinstance(node, yaml.MappingNode):
            if node.tag == _TAG + "map":
                return {
                    _key_text(key_node, key): self._value(value_node, unsafe=unsafe)
                    for key_node, key, value_node in self._pairs(node)
                }
            if node.tag == _TAG + "set":
                return [_key_text(key_node, key) for key_node, key, _ in self._pairs(node)]
        if isinstance(node, yaml.SequenceNode):
            if node.tag == _TAG + "seq":
                return [self._value(item, unsafe=unsafe) for item in node.value]
            if node.tag in (_TAG + "omap", _TAG + "pairs"):
                return [self._pair(item, unsafe=unsafe) for item in node.value]
        raise _ValueError(node, f"the tag {node.tag!r} is not known")

    def _pair(self, node: yaml.Node, *, unsafe: bool) -> JsonValue:
        if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
            raise _ValueError(node, "each item must be one 'key: value'")
        return [self._value(side, unsafe=unsafe) for side in node.value[0]]

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        """Read a scalar by its tag, with the rules of YAML 1.1."""
        if node.tag == _TAG + "str":
            return str(node.value)
        if node.tag not in _SCALAR_TAGS:
            raise _ValueError(node, f"the tag {node.tag!r} is not known")
        construct = getattr(self._constructor, f"construct_yaml_{node.tag.removeprefix(_TAG)}")
        try:
            value: Scalar = construct(node)
        except (ValueError, KeyError, AttributeError, IndexError):
            raise _ValueError(node, f"{node.value!r} is no {node.tag.removeprefix(_TAG)}") from None
        return value

    def _untagged(self, node: yaml.Node) -> yaml.Node:
        """Give the node the tag that it would have without `!unsafe` (and without quotes: so does Ansible)."""
        tag = self._resolver.resolve(type(node), node.value, (True, False))  # type: ignore[no-untyped-call]
        kind: Any = type(node)
        untagged: yaml.Node = kind(tag, node.value, node.start_mark, node.end_mark)
        return untagged


def _key_text(node: yaml.Node, key: Scalar) -> str:
    """Spell a key as JSON does."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, dt.date):
        raise _ValueError(node, "a date as key")
    return repr(key)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1

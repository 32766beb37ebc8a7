"""A YAML inventory, already parsed into nodes, added to the draft. Owns the shape `group: {hosts, vars, children}`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import yaml

from vmreconcile.effects.inventory.adding import Adding, Variables
from vmreconcile.effects.inventory.document import place_of
from vmreconcile.effects.inventory.values import Scalar, Values
from vmreconcile.errors import Place

if TYPE_CHECKING:
    from vmreconcile.effects.inventory.problems import Problems
    from vmreconcile.model.values import JsonValue

_SECTIONS = ("hosts", "vars", "children")
_TAG = "tag:yaml.org,2002:"


def add_groups(root: yaml.MappingNode, file: str, adding: Adding) -> None:
    """Add every group of an inventory file's top level."""
    source = _YamlGroups(file, adding)
    try:
        for key_node, name, value in source.values.pairs(root):
            source.group(key_node, name, value)
    except RecursionError:
        adding.problems.error(Place(file=file), "too-deep", "groups are nested too deeply", remedy="Flatten them.")


def variables_of(node: yaml.MappingNode, values: Values, file: str, problems: Problems) -> Variables:
    """Read a mapping of variables with the place of each."""
    variables: dict[str, tuple[JsonValue, Place]] = {}
    for key_node, name, value in values.pairs(node):
        place = place_of(key_node, file)
        if isinstance(name, str):
            variables[name] = (values.value(value), place)
        else:
            problems.error(
                place, "variable-name", f"the variable {name!r} is no text", remedy="Quote it, or name it otherwise."
            )
    return variables


class _YamlGroups:
    """Adds the groups of one file."""

    def __init__(self, file: str, adding: Adding) -> None:
        self.file = file
        self.adding = adding
        self.draft = adding.draft
        self.problems = adding.problems
        self.values = Values(file, adding.problems)
        self.open: list[yaml.Node] = []

    def group(self, key_node: yaml.Node, name: Scalar, value: yaml.Node) -> bool:
        """Add one group with all below it; False where it could not be added."""
        place = place_of(key_node, self.file)
        if not isinstance(name, str):
            self.problems.error(
                place, "group-name", f"the group name {name!r} is no text", remedy=f"Quote it: '{key_node.value}'."
            )
            return False
        if any(value is outer for outer in self.open):
            self.problems.error(place, "group-loop", f"group {name!r} contains itself", remedy="Take the alias out.")
            return False
        if not isinstance(value, yaml.MappingNode) and not _is_null(value):
            self.problems.warn(
                place,
                "group-shape",
                f"group {name!r} is left out: it is no mapping",
                why="A group holds 'hosts:', 'vars:' and 'children:'. Ansible leaves it out too.",
                remedy=f"Write '{name}:' and below it 'hosts:'.",
            )
            return name in self.draft.groups
        with self.adding.at(place):
            self.draft.add_group(name)
        if name in self.draft.groups and isinstance(value, yaml.MappingNode):
            self.open.append(value)
            self._sections(name, value)
            self.open.pop()
        return name in self.draft.groups

    def _sections(self, group: str, node: yaml.MappingNode) -> None:
        for key_node, key, value in self.values.pairs(node):
            if key in _SECTIONS:
                section = self._mapping(key_node, value, group)
                if section is None:
                    continue
                if key == "hosts":
                    self._hosts(group, section)
                elif key == "vars":
                    self._variables(group, section)
                else:
                    self._children(group, section)
            elif not _is_null(value):
                self._unknown(key_node, group, str(key))

    def _mapping(self, key_node: yaml.Node, value: yaml.Node, group: str) -> yaml.MappingNode | None:
        """Give a section as a mapping; plain text stands for a mapping with that one key."""
        if isinstance(value, yaml.MappingNode):
            return value
        if isinstance(value, yaml.ScalarNode) and value.tag == _TAG + "str":
            nothing = yaml.ScalarNode(_TAG + "null", "", value.start_mark, value.end_mark)
            return yaml.MappingNode(_TAG + "map", [(value, nothing)], value.start_mark, value.end_mark)
        if not _is_null(value):
            self.problems.error(
                place_of(value, self.file),
                "section-shape",
                f"{key_node.value!r} of group {group!r} is no mapping",
                why="Each entry is a key that ends in a colon.",
                remedy="Write 'NAME:' instead of '- NAME'.",
            )
        return None

    def _unknown(self, key_node: yaml.Node, group: str, key: str) -> None:
        near = difflib.get_close_matches(key, _SECTIONS, n=1)
        self.problems.warn(
            place_of(key_node, self.file),
            "unknown-key",
            f"{key!r} in group {group!r} is left out",
            why="A group holds only 'hosts', 'vars' and 'children'. Ansible leaves it out too.",
            remedy=f"Did you mean '{near[0]}'?" if near else "If it is a group, put it below 'children:'.",
        )

    def _variables(self, group: str, node: yaml.MappingNode) -> None:
        for name, (value, place) in variables_of(node, self.values, self.file, self.problems).items():
            with self.adding.at(place):
                self.draft.set_variable(group, name, value, place)

    def _children(self, group: str, node: yaml.MappingNode) -> None:
        for key_node, name, value in self.values.pairs(node):
            if self.group(key_node, name, value):
                with self.adding.at(place_of(key_node, self.file)):
                    self.draft.add_child(group, str(name))

    def _hosts(self, group: str, node: yaml.MappingNode) -> None:
        for key_node, pattern, value in self.values.pairs(node):
            place = place_of(key_node, self.file)
            if not isinstance(pattern, str):
                self.problems.error(
                    place,
                    "host-name",
                    f"the host name {pattern!r} is no text",
                    why="YAML reads it as a number, a truth value or nothing.",
                    remedy=f"Quote it: '{key_node.value}'.",
                )
                continue
            variables: Variables = {}
            if isinstance(value, yaml.MappingNode):
                variables = variables_of(value, self.values, self.file, self.problems)
            elif self.values.value(value):
                self.problems.error(
                    place_of(value, self.file),
                    "host-variables",
                    f"the variables of host {pattern!r} are no mapping",
                    remedy="Write 'variable: value' lines below the host.",
                )
            self.adding.hosts(pattern, place, group=group, variables=variables)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null"

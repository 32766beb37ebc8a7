"""Which hosts a model's patterns mean, each pattern worked out once. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vmreconcile.core.patterns import PatternError, Unmatched, select, unmatched
from vmreconcile.model.document import Document
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.values import JsonValue

_SUGGESTIONS = 20
"""Patterns for which the nearest name is looked for; a whole inventory of wrong names would take for ever."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Placement:
    """Patterns over one inventory, remembered by their text. A pattern that cannot be read means no host."""

    def __init__(self, inventory: Inventory) -> None:
        """Remember the inventory."""
        self.inventory = inventory
        self._suggested = 0
        self._hosts: dict[str, tuple[str, ...]] = {}
        self._problems: dict[str, tuple[Unmatched, ...] | PatternError] = {}

    def hosts(self, pattern: JsonValue) -> tuple[str, ...]:
        """The hosts of a pattern, in Ansible's order; none where it is no text."""
        if not isinstance(pattern, str):
            return ()
        if pattern not in self._hosts:
            self._hosts[pattern] = self._select(pattern)
        return self._hosts[pattern]

    def problems(self, pattern: str) -> tuple[Unmatched, ...] | PatternError:
        """Words of a pattern that name nothing, or why it cannot be read."""
        if pattern not in self._problems:
            self._problems[pattern] = self._find_problems(pattern)
        return self._problems[pattern]

    def overrides(self, document: Document) -> dict[str, tuple[str, ...]]:
        """For each host that an override is for: its keys in file order, of which the last wins."""
        found: dict[str, tuple[str, ...]] = {}
        overrides = document.get("overrides")
        if isinstance(overrides, Mapping):
            for key in overrides:
                for host in self.hosts(key):
                    found[host] = (*found.get(host, ()), key)
        return found

    def _find_problems(self, pattern: str) -> tuple[Unmatched, ...] | PatternError:
        if pattern in self.inventory.hosts or self._plain_group(pattern):
            return ()
        try:
            select(pattern, self.inventory)  # finds what `unmatched` does not look at, such as a subscript past the end
            suggest = self._suggested < _SUGGESTIONS
            found = unmatched(pattern, self.inventory, suggest=suggest)
        except PatternError as error:
            return error
        self._suggested += bool(found)
        return found

    def _select(self, pattern: str) -> tuple[str, ...]:
        if pattern in self.inventory.hosts:
            return (pattern,)  # `stop NAME@HOST` writes overrides under a host's name, even one with a blank in it
        if self._plain_group(pattern):
            return self.inventory.hosts_of(pattern)
        try:
            return select(pattern, self.inventory)
        except PatternError:
            return ()

    def _plain_group(self, pattern: str) -> bool:
        """Whether it is a group's name and nothing else: the usual case, and no search through all names."""
        return (
            _NAME.fullmatch(pattern) is not None
            and pattern in self.inventory.groups
            and pattern not in self.inventory.hosts
        )

"""Hosts and groups as read from an inventory. Holds what was read, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.errors import Diagnostic
from vmreconcile.model.values import Setting


class UnsafeText(str):
    """Text marked `!unsafe`: braces in it are plain text, never a template."""

    __slots__ = ()


class VaultedText(str):
    """The ciphertext of a `!vault` value: it may be carried along, not used."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One group: names of its own children groups and hosts, in Ansible's order, and its own variables."""

    name: str
    children: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variables: Mapping[str, Setting] = field(default_factory=dict)
    priority: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host: every group it is in (ancestors too, sorted by name) and its variables after precedence."""

    name: str
    groups: tuple[str, ...] = ()
    variables: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All hosts and groups, `all` and `ungrouped` among them, each in the order in which they were first named.

    (That order decides which host a glob finds first; `all` lists its hosts group by group.) `warnings` holds what was
    read but is probably not meant: a duplicate key, an empty range, one name for a host and a group.
    """

    hosts: Mapping[str, Host] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()

    def hosts_of(self, group: str) -> tuple[str, ...]:
        """Name the hosts of a group and of the groups below it, nearest groups first.

        Raises:
            KeyError: where there is no such group.
        """
        level, seen_groups = [group], {group}
        found: dict[str, None] = {}
        while level:
            below: list[str] = []
            for name in level:
                found.update(dict.fromkeys(self.groups[name].hosts))
                for child in self.groups[name].children:
                    if child not in seen_groups:
                        seen_groups.add(child)
                        below.append(child)
            level = below
        return tuple(found)

"""Hosts and groups as read from an inventory. Holds what was read, decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.model.values import Setting


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
    """All hosts and groups, `all` and `ungrouped` among them; hosts in the order Ansible lists them."""

    hosts: Mapping[str, Host] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)

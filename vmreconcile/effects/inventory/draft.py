"""The inventory while it is being read: sources add to one `Draft`, in order, and `close` settles group membership.

Owns Ansible's rules of who belongs to what. A name that is both a group and a host means the group wherever either
could be meant, as in Ansible. Reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.errors import Place
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting

PRIORITY = "ansible_group_priority"


class DraftError(Exception):
    """Something that cannot be added; `str()` says what, `code` names the problem."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        """`message` is the diagnostic's summary."""
        super().__init__(message)
        self.code = code
        self.remedy = remedy


@dataclass(slots=True)
class DraftGroup:
    """A group: names in the order they came (the dicts serve as ordered sets)."""

    name: str
    children: dict[str, None] = field(default_factory=dict)
    parents: dict[str, None] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    variables: dict[str, Setting] = field(default_factory=dict)
    priority: int = 1


@dataclass(slots=True)
class DraftHost:
    """A host: the groups that name it themselves, those it was taken out of, and its own variables."""

    name: str
    groups: dict[str, None] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    variables: dict[str, Setting] = field(default_factory=dict)


class Draft:
    """Groups and hosts, each in the order first named; `all` and `ungrouped` are there from the start."""

    def __init__(self) -> None:
        """Start with the two groups that always are."""
        self.groups: dict[str, DraftGroup] = {}
        self.hosts: dict[str, DraftHost] = {}
        self._above: dict[str, frozenset[str]] = {}
        self.add_group("all")
        self.add_group("ungrouped")
        self.add_child("all", "ungrouped")

    def add_group(self, name: str) -> None:
        """Add a group unless it is there.

        Raises:
            DraftError: where the name is empty.
        """
        if not name:
            raise DraftError("group-name", "a group without a name", "Give the group a name.")
        if name not in self.groups:
            self.groups[name] = DraftGroup(name)

    def add_host(self, name: str, *, group: str = "", port: Setting | None = None) -> None:
        """Add a host unless it is there (`port` counts only then), and put it into `group`.

        Raises:
            DraftError: where the name is empty, or holds what would drive a terminal or break a line.
        """
        if not name:
            raise DraftError("host-name", "a host without a name", "Give the host a name.")
        if not name.isprintable():
            raise DraftError("host-name", f"the host name {name!a} holds what cannot be shown", "Write plain text.")
        if name not in self.hosts:
            self.hosts[name] = DraftHost(name, variables={"ansible_port": port} if port else {})
        if group:
            self.groups[group].hosts[name] = None
            self.hosts[name].groups[group] = None

    def set_variable(self, owner: str, name: str, value: JsonValue, place: Place) -> None:
        """Set a variable of the group, else of the host, of that name; `ansible_group_priority` ranks a group.

        Raises:
            DraftError: where a priority is no number.
        """
        group = self.groups.get(owner)
        if group is None:
            origin = Origin(kind=OriginKind.HOST_VARS, place=place, note=f"host {owner}")
            self.hosts[owner].variables[name] = Setting(value=value, origin=origin)
        elif name == PRIORITY:
            group.priority = _whole_number(value)
        else:
            origin = Origin(kind=OriginKind.GROUP_VARS, place=place, note=f"group {owner}")
            group.variables[name] = Setting(value=value, origin=origin)

    def add_child(self, parent: str, child: str) -> None:
        """Put a group, else a host, of the name `child` into the group `parent`.

        Raises:
            DraftError: where there is no such child, or the groups would contain each other.
        """
        if child not in self.groups:
            if child not in self.hosts:
                raise DraftError("unknown-group", f"{child!r} in group {parent!r} is no valid group", "Define it.")
            self.add_host(child, group=parent)
            return
        if parent == child or child in self.above(parent):
            raise DraftError(
                "group-loop",
                f"group {child!r} cannot be a child of {parent!r}: {self._loop(parent, child)} would be a loop",
                "Take one of these groups out of the other's children.",
            )
        self.groups[parent].children[child] = None
        self.groups[child].parents[parent] = None
        self._above.clear()

    def above(self, group: str) -> frozenset[str]:
        """Name every group that contains this one, however far up."""
        if group not in self._above:
            parents = self.groups[group].parents
            self._above[group] = frozenset(parents).union(*(self.above(parent) for parent in parents))
        return self._above[group]

    def groups_of(self, host: str) -> frozenset[str]:
        """Name every group that a host is in, however far up."""
        direct = self.hosts[host].groups
        return frozenset(direct).union(*(self.above(group) for group in direct)) - self.hosts[host].left

    def close(self) -> None:
        """Settle who is in `all` and `ungrouped`, once every source is read.

        Raises:
            DraftError: where `all` was made a child of another group.
        """
        for name in self.groups:
            if name != "all" and not self.groups[name].parents:
                self.add_child("all", name)
        for name, host in self.hosts.items():
            groups = self.groups_of(name)
            if "ungrouped" in groups:
                if groups - {"all", "ungrouped"} and "ungrouped" in host.groups:
                    del self.groups["ungrouped"].hosts[name], host.groups["ungrouped"]
                    self._leave(host, groups, "ungrouped")
            elif groups <= {"all"}:
                self.add_child("ungrouped", name)

    def depths(self) -> Mapping[str, int]:
        """Give each group its depth: the longest way down to it from `all`, which has 0."""
        depths: dict[str, int] = {}

        def depth(name: str) -> int:
            if name not in depths:
                depths[name] = max((1 + depth(parent) for parent in self.groups[name].parents), default=0)
            return depths[name]

        for name in self.groups:
            depth(name)
        return depths

    def _leave(self, host: DraftHost, groups: frozenset[str], group: str) -> None:
        """Take a host out of a group and of those above that hold no other group of its, as Ansible does.

        (It stays out of `ungrouped` even where another group of its is below that.)
        """
        host.left.add(group)
        for above in sorted(self.above(group) - {"all"} - host.left):
            if not any(above in self.above(other) for other in groups - host.left):
                self._leave(host, groups, above)

    def _loop(self, parent: str, child: str) -> str:
        """Describe the way from `child` down to `parent` and back."""
        way = [parent]
        while way[-1] != child:
            way.append(next(up for up in self.groups[way[-1]].parents if up == child or child in self.above(up)))
        return " > ".join([*reversed(way), child])


def _whole_number(value: JsonValue) -> int:
    if isinstance(value, bool | int | float | str):
        try:
            return int(value)
        except (ValueError, OverflowError):
            pass
    raise DraftError("group-priority", f"{PRIORITY} is {value!r}, not a whole number", "Write a number such as 10.")

"""Which variable wins: Ansible's order of precedence, applied to the settled draft. Reads files through `VarsFiles`.

Lowest first: `all` in the sources; other groups in the sources by depth, `ansible_group_priority` and name;
`group_vars/all`; `group_vars/` of the other groups; the host in the sources; `host_vars/`. Folders count in the order
of the sources, then the working folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmreconcile.effects.inventory.draft import Draft
from vmreconcile.effects.inventory.vars_files import VarsFiles
from vmreconcile.errors import Diagnostic
from vmreconcile.model.inventory import Group, Host, Inventory
from vmreconcile.model.values import OriginKind, Setting

Variables = Mapping[str, Setting]


class Merge:
    """Merges one draft with the variable files beside its sources."""

    def __init__(self, draft: Draft, beside: Sequence[VarsFiles], working: VarsFiles) -> None:
        """`beside` has one entry for each source; `working` is that of the working folder."""
        self._draft = draft
        self._beside = beside
        self._working = working
        self._depths = draft.depths()
        self._chains: dict[frozenset[str], dict[str, Setting]] = {}
        self._files: dict[tuple[int, OriginKind, str], Variables] = {}

    def inventory(self, warnings: Sequence[Diagnostic]) -> Inventory:
        """Freeze the draft."""
        hosts = {name: self._host(name) for name in self._draft.hosts}
        groups = {name: self._group(name) for name in self._draft.groups}
        return Inventory(hosts=hosts, groups=groups, warnings=tuple(warnings))

    def _group(self, name: str) -> Group:
        draft = self._draft.groups[name]
        variables = dict(draft.variables)
        for files in (*self._beside, self._working):
            variables.update(self._of(files, OriginKind.GROUP_VARS, name))
        return Group(
            name=name,
            children=tuple(draft.children),
            hosts=tuple(draft.hosts),
            variables=variables,
            priority=draft.priority,
        )

    def _host(self, name: str) -> Host:
        groups = self._draft.groups_of(name)
        if groups not in self._chains:
            self._chains[groups] = self._of_groups(groups - {"all"})
        variables = self._chains[groups] | self._draft.hosts[name].variables
        for files in (*self._beside, self._working):
            variables.update(files.variables(OriginKind.HOST_VARS, name))
        return Host(name=name, groups=tuple(sorted(groups)), variables=variables)

    def _of_groups(self, names: frozenset[str]) -> dict[str, Setting]:
        """Merge the variables of `all` and these groups."""
        groups = self._draft.groups
        order = sorted(names, key=lambda name: (self._depths[name], groups[name].priority, name))
        merged = dict(groups["all"].variables)
        for name in order:
            merged.update(groups[name].variables)
        for entities in (["all"], order):
            for sources in (self._beside, [self._working]):
                for files in sources:
                    for name in entities:
                        merged.update(self._of(files, OriginKind.GROUP_VARS, name))
        return merged

    def _of(self, files: VarsFiles, kind: OriginKind, name: str) -> Variables:
        key = (id(files), kind, name)
        if key not in self._files:
            self._files[key] = files.variables(kind, name)
        return self._files[key]

"""`read_inventory`: from the sources a user names to one `Inventory`. Owns what is a source and of which kind."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from vmreconcile.effects.inventory import ini_groups, toml_groups, yaml_groups
from vmreconcile.effects.inventory.adding import Adding
from vmreconcile.effects.inventory.document import parse, place_of, read_text
from vmreconcile.effects.inventory.draft import Draft
from vmreconcile.effects.inventory.merge import Merge
from vmreconcile.effects.inventory.problems import Problems
from vmreconcile.effects.inventory.program import TIMEOUT, add_program, add_through_ansible
from vmreconcile.effects.inventory.values import Values
from vmreconcile.effects.inventory.vars_files import VarsFiles
from vmreconcile.errors import Place
from vmreconcile.model.addresses import split_port
from vmreconcile.model.inventory import Inventory

_IGNORED_NAMES = ("host_vars", "group_vars", "vars_plugins")
_IGNORED_ENDINGS = (".pyc", ".pyo", ".swp", ".bak", "~", ".rpm", ".md", ".txt", ".rst", ".orig", ".cfg", ".retry")
# what ansible-core 2.19 leaves out of a folder
_YAML_EXTENSIONS = ("", ".yml", ".yaml", ".json")
_NULL = "tag:yaml.org,2002:null"
_INIT = "Name the inventory with -i, or write an example with: vmreconcile init"


def read_inventory(sources: Sequence[Path | str], *, environ: Mapping[str, str], timeout: float = TIMEOUT) -> Inventory:
    """Read files, folders, programs and comma lists ('gpu1,gpu2,'), in this order, as Ansible does.

    `environ` is what programs are given; each of their calls may take `timeout` seconds. Variables in `group_vars/`
    and `host_vars/` of the working folder count, as they do for `ansible-inventory`.

    Raises:
        InputError: with every problem found.
    """
    reading = _Reading(environ, timeout)
    for source in sources:
        reading.source(source)
    return reading.finish(sources)


class _Reading:
    """One reading: the draft so far, and what was wrong."""

    def __init__(self, environ: Mapping[str, str], timeout: float) -> None:
        self.environ = environ
        self.timeout = timeout
        self.problems = Problems()
        self.draft = Draft()
        self.adding = Adding(self.draft, self.problems)
        self.read: list[Path] = []

    def source(self, source: Path | str) -> None:
        path = Path(source)
        if str(source) and path.is_dir():
            if not self._folder(path):
                self._error(path, "empty-folder", "holds no inventory", remedy=_INIT)
        elif str(source) and path.exists():
            self._file(path)
        elif "," in str(source):
            self._comma_list(str(source))
        else:
            self._error(path, "no-inventory", "there is no such inventory", remedy=_INIT)

    def finish(self, sources: Sequence[Path | str]) -> Inventory:
        if not self.problems.has_errors:
            with self.adding.at(Place(file=str(sources[0]) if sources else "")):
                self.draft.close()
        for name in self.draft.groups.keys() & self.draft.hosts.keys():
            self.problems.warn(
                Place(file=", ".join(str(source) for source in sources)),
                "same-name",
                f"{name!r} is both a group and a host",
                why="A pattern means the host; variables of either may end up with the group, as in Ansible.",
                remedy="Rename one of them.",
            )
        beside = [VarsFiles(folder, self.problems) for folder in self._folders(sources)]
        merge = Merge(self.draft, beside, VarsFiles(Path(), self.problems))
        self.problems.refuse()
        inventory = merge.inventory(())
        self.problems.refuse()
        return Inventory(hosts=inventory.hosts, groups=inventory.groups, warnings=self.problems.warnings)

    def _folders(self, sources: Sequence[Path | str]) -> list[Path]:
        """Give the folders whose `group_vars/` and `host_vars/` count, each at its last place, where it wins."""
        paths = [Path(source) for source in sources]
        folders = [path if path.is_dir() else path.parent for path in paths if path.exists()]
        return list(dict.fromkeys(reversed(folders)))[::-1]

    def _error(self, path: Path, code: str, summary: str, *, why: str = "", remedy: str = "") -> None:
        self.problems.error(Place(file=str(path)), code, summary, why=why, remedy=remedy)

    def _folder(self, folder: Path) -> bool:
        """Read every source in a folder, sorted by name; say whether there was any."""
        try:
            names = sorted(os.listdir(folder), key=os.fsencode)  # noqa: PTH208 - names are wanted, not paths
        except OSError as error:
            self._error(folder, "unreadable", f"cannot be read: {error.strerror}", remedy="Check its permissions.")
            return True
        found = False
        for name in names:
            if name.startswith(".") or name in _IGNORED_NAMES or name.endswith(_IGNORED_ENDINGS):
                continue
            path = folder / name
            if path.is_dir():
                found = self._folder(path) or found
            else:
                self._file(path)
                found = True
        return found

    def _comma_list(self, source: str) -> None:
        place = Place(file=source)
        for part in source.split(","):
            name = part.strip()
            if "[" in name and not name.startswith("["):
                self.problems.error(
                    place,
                    "comma-range",
                    f"{name!r}: a comma list takes no ranges",
                    why="Ansible would take it for one host of that very name.",
                    remedy="Write the names out, or put the range into a file.",
                )
            elif name:
                host, port = split_port(name) or (name, None)
                self.adding.host(host, place, group="ungrouped" if host not in self.draft.hosts else "", port=port)

    def _file(self, path: Path) -> None:
        """Read one file, by the kinds that Ansible tries, in its order."""
        self.read.append(path)
        if not path.is_file():
            self._error(path, "unreadable", "is no file and no folder", remedy=_INIT)
            return
        if os.access(path, os.X_OK) and add_program(path, self.adding, environ=self.environ, timeout=self.timeout):
            return
        text = read_text(path, self.problems)
        if text is None:
            return
        if path.suffix == ".toml":
            toml_groups.add_groups(text, str(path), self.adding)
        elif path.suffix in _YAML_EXTENSIONS:
            self._yaml_or_ini(path, text)
        else:
            ini_groups.add_groups(text, str(path), self.adding)

    def _yaml_or_ini(self, path: Path, text: str) -> None:
        file = str(path)
        problems = Problems()
        root = parse(text, file, problems)
        if isinstance(root, yaml.MappingNode) and root.value:
            self._yaml(path, root)
            return
        if root is not None and root.tag != _NULL:
            problems.error(place_of(root, file), "yaml-shape", "holds no groups", remedy="Start with 'all:'.")
        if not problems.has_errors:
            self.problems.warn(Place(file=file), "empty-source", "is empty", remedy="Add hosts, or take the file away.")
            return
        as_ini = Problems()
        ini_groups.add_groups(text, file, Adding(self.draft, as_ini))
        self.problems.add(as_ini if not as_ini.has_errors or _looks_like_ini(path, text) else problems)

    def _yaml(self, path: Path, root: yaml.MappingNode) -> None:
        plugin = _plugin(root, str(path))
        if plugin is None:
            yaml_groups.add_groups(root, str(path), self.adding)
        elif plugin.rpartition(".")[2] == "constructed":  # builds on the hosts of the sources before it
            add_through_ansible(self.read, self.adding, environ=self.environ, timeout=self.timeout)
        else:
            add_through_ansible([path], self.adding, environ=self.environ, timeout=self.timeout)


def _plugin(root: yaml.MappingNode, file: str) -> str | None:
    """Name the plugin that a source asks for."""
    for key, value in root.value:
        if isinstance(key, yaml.ScalarNode) and key.value == "plugin":
            plugin = Values(file, Problems()).value(value)
            return str(plugin) if plugin else None
    return None


def _looks_like_ini(path: Path, text: str) -> bool:
    """Guess which of two complaints helps: that of INI where there are sections, or nothing that ends in a colon."""
    if path.suffix:
        return False
    return bool(re.search(r"^\[[^\]]+\]", text, re.MULTILINE)) or not re.search(r":\s*$", text, re.MULTILINE)

"""`group_vars/` and `host_vars/`: which files belong to a group or host, and what they set. Decides no precedence."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from vmreconcile.effects.inventory.document import parse, place_of, read_text
from vmreconcile.effects.inventory.problems import Problems
from vmreconcile.effects.inventory.values import Values
from vmreconcile.effects.inventory.yaml_groups import variables_of
from vmreconcile.errors import Place
from vmreconcile.model.values import Origin, OriginKind, Setting

_EXTENSIONS = (".yml", ".yaml", ".json")
_FOLDERS = {OriginKind.GROUP_VARS: "group_vars", OriginKind.HOST_VARS: "host_vars"}


class VarsFiles:
    """The files in one folder's `group_vars/` and `host_vars/`."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        """`folder` is the one that holds both."""
        self._folder = folder
        self._problems = problems
        self._listed = {kind: self._list(folder / name) for kind, name in _FOLDERS.items()}

    def variables(self, kind: OriginKind, name: str) -> Mapping[str, Setting]:
        """Read what the files of one group or host (`kind` says which) set; later files win."""
        if name.startswith(os.sep):
            return {}
        note = f"group {name}" if kind is OriginKind.GROUP_VARS else f"host {name}"
        found: dict[str, Setting] = {}
        for path in self._files(kind, name):
            found.update(self._read(path, kind, note))
        return found

    def _list(self, folder: Path) -> frozenset[str]:
        """Name what a folder holds, so that a thousand hosts without files cost one look."""
        try:
            return frozenset(os.listdir(folder))  # noqa: PTH208 - names are wanted, not paths
        except FileNotFoundError:
            return frozenset()
        except NotADirectoryError:
            self._problems.warn(Place(file=str(folder)), "vars-folder", "is left out: it is no folder")
            return frozenset()
        except OSError as error:
            self._unreadable(folder, error)
            return frozenset()

    def _unreadable(self, folder: Path, error: OSError) -> None:
        summary = f"cannot be read: {error.strerror}"
        self._problems.error(Place(file=str(folder)), "unreadable", summary, remedy="Check its permissions.")

    def _files(self, kind: OriginKind, name: str) -> list[Path]:
        """Find the first of NAME (file or folder), NAME.yml, NAME.yaml, NAME.json; the others are not read."""
        parent = self._folder / _FOLDERS[kind]
        if os.sep in name:
            present = [extension for extension in ("", *_EXTENSIONS) if (parent / (name + extension)).exists()]
        else:
            present = [extension for extension in ("", *_EXTENSIONS) if name + extension in self._listed[kind]]
        if not present:
            return []
        path = parent / (name + present[0])
        for extension in present[1:]:
            self._problems.warn(
                Place(file=str(parent / (name + extension))),
                "vars-file-hidden",
                f"is not read: {path.name} comes first",
                why="Of several files for one name only the first counts, as in Ansible.",
                remedy="Put both into one folder of that name.",
            )
        return self._inside(path) if path.is_dir() else [path]

    def _inside(self, folder: Path) -> list[Path]:
        """List the files of a folder and its subfolders in sorted order; hidden ones and backups are left out."""
        try:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - names are wanted, not paths
        except OSError as error:
            self._unreadable(folder, error)
            return []
        found: list[Path] = []
        for name in names:
            path, extension = folder / name, os.path.splitext(name)[1]  # noqa: PTH122 - Path.suffix differs for '.x'
            if name.startswith(".") or name.endswith("~"):
                continue
            if path.is_dir():
                found.extend(self._inside(path) if not extension else ())
            elif path.is_file() and (not extension or extension in _EXTENSIONS):
                found.append(path)
        return found

    def _read(self, path: Path, kind: OriginKind, note: str) -> Mapping[str, Setting]:
        file = str(path)
        text = read_text(path, self._problems)
        root = None if text is None else parse(text, file, self._problems)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            if Values(file, self._problems).value(root):
                self._problems.error(
                    place_of(root, file), "vars-shape", "holds no variables", remedy="Write 'variable: value' lines."
                )
            return {}
        variables = variables_of(root, Values(file, self._problems), file, self._problems)
        return {
            name: Setting(value=value, origin=Origin(kind=kind, place=place, note=note))
            for name, (value, place) in variables.items()
        }

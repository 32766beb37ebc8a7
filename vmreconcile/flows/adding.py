"""New model files: judged beside everything that is there before one of them is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import document_of, load_models
from vmreconcile.effects.model_files import ModelFileError, create, has_schema, model_path, model_text
from vmreconcile.effects.vm_home import NewHost
from vmreconcile.errors import Diagnostic, Severity, UsageError
from vmreconcile.flows.inputs import Sources, problems_of
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.document import Document
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue

NOT_YET = frozenset({"models-missing", "models-empty"})
"""Problems of a folder that the first model mends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModel:
    """A model to add. It is wanted stopped until it is started: adding touches no host."""

    name: str
    model: str
    hosts: str
    port: int
    priority: int | None = None
    args: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, JsonValue]:
        """What its file says."""
        said: dict[str, JsonValue] = {
            "name": self.name,
            "model": self.model,
            "hosts": self.hosts,
            "port": self.port,
            "state": DesiredState.STOPPED.value,
        }
        if self.priority is not None:
            said["priority"] = self.priority
        if self.args:
            said["args"] = dict(self.args)
        return said


def _taken(there: Document) -> Diagnostic:
    """What is said of a new model whose name a file has already."""
    return Diagnostic(
        place=there.place("name"),
        code="name-taken",
        summary=f"{shown(there.get('name'))} is there already: {there.file}.",
        remedy="Edit it, or choose another name.",
    )


class Shelf:
    """The folder of models, to which some are added one by one."""

    def __init__(self, sources: Sources, new_host: NewHost | None = None) -> None:
        """Read the inventory and the models; what is wrong with them already refuses nothing.

        `new_host` counts as there; it is written into its file with the first model that is.

        Raises:
            InputError: the inventory cannot be read.
            UsageError: the new host is a group, or cannot be written into its file.
        """
        self._models = sources.models
        self.inventory: Inventory = read_inventory(sources.inventory, environ=sources.environ)
        self.new_host: NewHost | None = None
        self._known_host = self._recorded = False
        if new_host is not None:
            if new_host.name in self.inventory.groups:
                raise UsageError(
                    f"--host: {new_host.name} is a group of the inventory, and no name of a host",
                    remedy=f"--hosts {new_host.name} means the hosts of the group",
                )
            self._known_host = known = new_host.name in self.inventory.hosts
            if not known:
                all_sources = (*sources.inventory, f"{new_host.name},")
                self.inventory = read_inventory(all_sources, environ=sources.environ)
            if new_host.user or not known:
                self.new_host = new_host
                new_host.text(known=known)  # what cannot be changed is refused before anything is written
        documents = load_models(sources.models)
        self._documents = [each for each in documents if not NOT_YET & {problem.code for problem in each.problems}]
        self._known = set(problems_of(tuple(self._documents), self.inventory))

    def holder(self, name: str) -> Document | None:
        """The file of the model that has this name."""
        return next((each for each in self._documents if each.get("name") == name), None)

    def holds(self, model: NewModel) -> str:
        """The file that says just this, whatever state it wants by now; "" where there is none."""
        there = self.holder(model.name)
        content = there.content if there else None
        same = content is not None and {**content, "state": None} == {**model.content, "state": None}
        return there.file if there and same else ""

    def add(self, model: NewModel, *, dry: bool = False) -> tuple[Path, tuple[Diagnostic, ...]]:
        """Write the model's file, unless that would bring an error; its path, and what is new to say about it.

        `dry`: everything but the writing.

        Raises:
            ModelFileError: it is there already, or cannot be written.
            SaveError: the new host cannot be written into its file.
            UsageError: that file cannot be changed safely any more.
        """
        path = model_path(self._models, model.name)
        there = self.holder(model.name)
        if there:
            return path, (_taken(there),)
        text = model_text(model.content, schema=has_schema(self._models))
        document: Document = document_of(path, text)
        found = problems_of((*self._documents, document), self.inventory)
        new = tuple(problem for problem in found if problem not in self._known)
        if any(problem.severity is Severity.ERROR for problem in new):
            return path, new
        if path.exists():
            raise ModelFileError(f"{path} is there already", remedy="edit it, or choose another name")
        if not dry:
            self._record_host()
            create(path, text)
        self._documents.append(document)
        self._known |= set(new)
        return path, new

    def _record_host(self) -> None:
        """Write the new host into its file, once, and before a model that names it.

        Raises:
            SaveError: it cannot be written.
            UsageError: its file cannot be changed safely.
        """
        if self.new_host is not None and not self._recorded:
            self.new_host.write(known=self._known_host)
            self._recorded = True

    def only_host(self) -> str:
        """The host of an inventory that has just one.

        Raises:
            UsageError: it has none, or several.
        """
        if len(self.inventory.hosts) != 1:
            raise UsageError(
                f"the inventory has {len(self.inventory.hosts)} hosts: which of them shall serve the model?",
                remedy="name a group, a host or a pattern: --hosts PATTERN",
            )
        return next(iter(self.inventory.hosts))

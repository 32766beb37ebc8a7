"""Model files and an inventory for tests: written to a folder, loaded, checked and resolved for real."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vmreconcile.core.resolve import resolve
from vmreconcile.core.validate import validate
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import load_models
from vmreconcile.effects.schemas import read_schemas
from vmreconcile.errors import Diagnostic
from vmreconcile.model.desired import DesiredFleet, DesiredServer
from vmreconcile.vllm.catalogue import catalogue_for

INVENTORY = "all: {children: {gpu: {hosts: {gpu1: , gpu2: , gpu3: }}, cpu: {hosts: {cpu1: }}, spare: {}}}\n"
HEAD = "name: a\nmodel: org/m\nhosts: gpu\nport: 8001\n"


def check(folder: Path, files: Mapping[str, str] | str, inventory: str = INVENTORY) -> tuple[Diagnostic, ...]:
    """Every diagnostic of these model files; a text alone is `a.yaml`."""
    (folder / "inventory.yml").write_text(inventory, encoding="utf-8")
    models = folder / "models.d"
    models.mkdir(exist_ok=True)
    for name, text in ({"a.yaml": files} if isinstance(files, str) else files).items():
        (models / name).write_text(text, encoding="utf-8")
    read = read_inventory([str(folder / "inventory.yml")], environ={})
    return validate(load_models(models), read, schemas=read_schemas(), catalogue=catalogue_for(None))


def brief(diagnostics: tuple[Diagnostic, ...], folder: Path) -> list[str]:
    """`FILE:LINE:COL code`, as short as tests can compare."""
    return [f"{str(found.place).removeprefix(f'{folder}/models.d/')} {found.code}" for found in diagnostics]


def fleet(folder: Path, files: Mapping[str, str] | str, inventory: str = INVENTORY) -> DesiredFleet:
    """The servers that valid files want."""
    problems = check(folder, files, inventory)
    assert problems == ()
    read = read_inventory([str(folder / "inventory.yml")], environ={})
    return resolve(load_models(folder / "models.d"), read, catalogue=catalogue_for(None))


def server(wanted: DesiredFleet, name: str) -> DesiredServer:
    """One server by its name."""
    return {str(found.id): found for found in wanted.servers}[name]

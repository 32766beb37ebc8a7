"""Everything that the files say, read and checked: inventory, models, what is wanted, how hosts are reached."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.core.checks.shape import Shape
from vmreconcile.core.checks.tuning import check_tuning
from vmreconcile.core.connection import connection_of
from vmreconcile.core.patterns import select, unmatched
from vmreconcile.core.resolve import resolve
from vmreconcile.core.tuning import rules_of, together
from vmreconcile.core.validate import validate
from vmreconcile.effects.hooks import missing_programs
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import SHIPPED_RULES, load_models, load_tuning
from vmreconcile.effects.retry import read_retry
from vmreconcile.effects.schemas import TUNING_SCHEMA, read_schemas
from vmreconcile.errors import Diagnostic, InputError, Severity, UsageError
from vmreconcile.model.connection import Connection
from vmreconcile.model.desired import DesiredFleet
from vmreconcile.model.document import Document
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.tuning import Rule
from vmreconcile.vllm.catalogue import catalogue_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where to read: inventory sources and the models folder, as the command line gives them."""

    inventory: tuple[str, ...]
    models: Path
    environ: Mapping[str, str]
    tuning: Path | None = None
    """A file of tuning rules; None is `tuning.yaml` beside the models, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The files' content, checked. `warnings` are what did not refuse the run. `rules` are shipped and own ones."""

    inventory: Inventory
    documents: tuple[Document, ...]
    desired: DesiredFleet
    rules: tuple[Rule, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    models: Path = Path("models.d")
    """Where the models were read from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Every problem in all files at once, in reading order; how many models and hosts were read."""

    problems: tuple[Diagnostic, ...]
    models: int = 0
    hosts: int = 0


def check(sources: Sources) -> Checked:
    """Read everything, refuse nothing."""
    try:
        inventory = read_inventory(sources.inventory, environ=sources.environ)
    except InputError as error:
        documents = load_models(sources.models)
        problems = tuple(problem for document in documents for problem in document.problems)
        problems = (*read_rules(sources)[1], *problems)
        return Checked(problems=(*error.diagnostics, *problems), models=len(documents))
    documents = load_models(sources.models)
    problems = (*read_rules(sources)[1], *problems_of(documents, inventory), *missing_programs(documents))
    return Checked(problems=problems, models=len(documents), hosts=len(inventory.hosts))


def problems_of(documents: tuple[Document, ...], inventory: Inventory) -> tuple[Diagnostic, ...]:
    """What is wrong with these documents over this inventory."""
    found = validate(documents, inventory, schemas=read_schemas(), catalogue=catalogue_for(None))
    return (*inventory.warnings, *found)


def read_inputs(sources: Sources) -> Inputs:
    """Read and check everything.

    Raises:
        InputError: with every problem found, where one of them is an error.
    """
    inventory = read_inventory(sources.inventory, environ=sources.environ)
    documents = load_models(sources.models)
    rules, wrong = read_rules(sources)
    problems = (*wrong, *problems_of(documents, inventory))
    refuse(problems)
    desired = resolve(documents, inventory, catalogue=catalogue_for(None), rules=rules)
    return Inputs(
        inventory=inventory,
        documents=documents,
        desired=desired,
        rules=rules,
        warnings=problems,
        models=sources.models,
    )


def read_rules(sources: Sources) -> tuple[tuple[Rule, ...], tuple[Diagnostic, ...]]:
    """The tuning rules shipped and the user's own, and what is wrong with the latter."""
    catalogue = catalogue_for(None)
    shipped = rules_of(load_tuning(SHIPPED_RULES), catalogue)
    path = sources.tuning or sources.models.absolute().parent / "tuning.yaml"
    if sources.tuning is None and not os.path.lexists(path):  # a link that leads nowhere is no "there is none"
        return shipped, ()
    document = load_tuning(path if sources.tuning else sources.models.parent / "tuning.yaml")
    wrong = check_tuning(document, Shape(read_schemas()[TUNING_SCHEMA]), catalogue)
    return together(shipped, rules_of(document, catalogue)), wrong


def refuse(problems: Sequence[Diagnostic]) -> None:
    """Raise where one of the problems is an error.

    Raises:
        InputError: with all of them.
    """
    if any(problem.severity is Severity.ERROR for problem in problems):
        raise InputError(tuple(problems))


def hosts_of(inventory: Inventory, limit: str | None) -> tuple[str, ...]:
    """The hosts that a `--limit` pattern names; all without one.

    Raises:
        UsageError: a word of the pattern names nothing: fewer hosts than were meant must not look like success.
        PatternError: the pattern cannot be understood.
    """
    if limit is None:
        return select("all", inventory)
    missing = unmatched(limit, inventory, retry=read_retry)
    if missing:
        raise UsageError(f"--limit: {missing[0]}", remedy="vmreconcile inventory --hosts all lists the hosts")
    return select(limit, inventory, retry=read_retry)


def connections(inventory: Inventory, hosts: Sequence[str]) -> dict[str, Connection]:
    """How each host is reached.

    Raises:
        InputError: with every variable that cannot be used.
    """
    found: dict[str, Connection] = {}
    problems: list[Diagnostic] = []
    for name in hosts:
        try:
            found[name] = connection_of(inventory.hosts[name])
        except InputError as error:
            problems += error.diagnostics
    refuse(problems)
    return found

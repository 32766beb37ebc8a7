"""A VLLM Manager's models taken over: each entry that can be, as a file of ours; the rest reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmreconcile.core.importing import Entry, entries_of
from vmreconcile.effects.model_files import ModelFileError
from vmreconcile.effects.old_manager import load_old_models
from vmreconcile.errors import Diagnostic, InputError, Place, Severity
from vmreconcile.flows.adding import NewModel, Shelf


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of one entry: its file, or "" where it was refused, and what there is to say.

    `kept`: the file said the same before.
    """

    entry: Entry
    file: str = ""
    kept: bool = False
    problems: tuple[Diagnostic, ...] = ()


def import_entries(
    path: Path, shelf: Shelf, hosts: str, *, dry: bool
) -> tuple[tuple[Imported, ...], tuple[Diagnostic, ...]]:
    """Write a model's file for each entry of `path` that can be one; wanted stopped, for nobody knows what runs.

    Returns:
        What came of each entry, and warnings about the file as a whole.

    Raises:
        InputError: the file as a whole cannot be used.
    """
    document = load_old_models(path)
    try:
        entries = entries_of(document)
    except ValueError as error:
        remedy = "Give the manager's models_config.json, or its models.json."
        problem = Diagnostic(
            place=Place(file=document.file, line=1, column=1),
            code="import-file",
            summary=f"Nothing can be imported: {error}.",
            remedy=remedy,
        )
        raise InputError((problem,)) from None
    places = [document.place("models", index) for index in range(len(entries))]
    done = tuple(_import(entry, place, shelf, hosts, dry=dry) for entry, place in zip(entries, places, strict=True))
    return done, document.problems


def _import(entry: Entry, place: Place, shelf: Shelf, hosts: str, *, dry: bool) -> Imported:
    if not entry.name:
        return Imported(entry=entry, problems=entry.problems)
    model = NewModel(
        name=entry.name,
        model=entry.model,
        hosts=hosts,
        port=entry.port,
        priority=entry.priority,
        args=entry.args,
    )
    there = shelf.holds(model)
    if there:
        return Imported(entry=entry, file=there, kept=True, problems=entry.problems)
    try:
        path, found = shelf.add(model, dry=dry)
    except ModelFileError as error:
        return Imported(entry=entry, problems=(*entry.problems, _refused(entry, place, str(error), error.remedy or "")))
    if any(problem.severity is Severity.ERROR for problem in found):
        return Imported(entry=entry, problems=(*entry.problems, *_at_entry(entry, place, found)))
    return Imported(entry=entry, file=str(path), problems=(*entry.problems, *_at_entry(entry, place, found)))


def _at_entry(entry: Entry, place: Place, found: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Problems of a file that is not there yet, told of the entry it would come from."""
    return tuple(
        replace(problem, place=place, summary=f"Entry {entry.number} ({entry.name}): {problem.summary}")
        for problem in found
    )


def _refused(entry: Entry, place: Place, why: str, remedy: str) -> Diagnostic:
    return Diagnostic(
        place=place, code="import-entry", summary=f"Entry {entry.number} ({entry.name}): {why}.", remedy=remedy
    )

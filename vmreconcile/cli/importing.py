"""import: a VLLM Manager's models, and its token where that is asked for."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vmreconcile.cli.output import note, print_json, sources_of
from vmreconcile.cli.render_errors import diagnostics_text
from vmreconcile.cli.terminal import style_for
from vmreconcile.core.importing import forced
from vmreconcile.core.reports import FORMAT_VERSION, Json, diagnostic_json
from vmreconcile.errors import Diagnostic, VmreconcileError
from vmreconcile.flows.adding import Shelf
from vmreconcile.flows.importing import Imported, import_entries
from vmreconcile.flows.login import TokenBeside, store, token_beside_file

if TYPE_CHECKING:
    import argparse

REFUSED_EXIT = 5


def import_models(arguments: argparse.Namespace) -> int:
    """Write what can be imported; exit 5 where an entry was refused.

    Raises:
        VmreconcileError: the token could not be stored; what was written is told before.
    """
    shelf = Shelf(sources_of(arguments), arguments.new_host)
    hosts = arguments.hosts or shelf.only_host()
    token = token_beside_file(arguments.file, dict(os.environ), Path.home(), wanted=arguments.with_token)
    done, warnings = import_entries(arguments.file, shelf, hosts, dry=arguments.dry_run)
    taken = tuple(each.entry.name for each in done if each.file and not each.kept)
    failure = None if arguments.dry_run else _not_stored(token)
    if shelf.new_host and taken:
        note(f"{shelf.new_host.name} {'would be' if arguments.dry_run else 'is'} in {shelf.new_host.path}")
    notes = (*forced(taken), *(_about(token, arguments) if failure is None else ()))
    problems = (*warnings, *(problem for each in done for problem in each.problems))
    if arguments.json:
        _print_json(done, problems, notes, dry=arguments.dry_run)
    else:
        if problems:
            note(diagnostics_text(problems, style_for(sys.stderr, no_color=arguments.no_color)))
        _print(done, arguments)
        for text in notes:
            note(f"note: {text}")
    if failure is not None:
        raise failure
    return 0 if all(each.file for each in done) else REFUSED_EXIT


def _not_stored(token: TokenBeside) -> VmreconcileError | None:
    """Log in with the token; why that failed, which must not hide what was written."""
    try:
        store(token)
    except VmreconcileError as error:
        return error
    return None


def _print(done: tuple[Imported, ...], arguments: argparse.Namespace) -> None:
    for each in done:
        if each.kept:
            print(f"kept  {each.file} (it was there already)")
        elif each.file:
            print(f"{'would write' if arguments.dry_run else 'wrote'} {each.file}")
    refused = sum(not each.file for each in done)
    kept = sum(each.kept for each in done)
    print(f"imported: {len(done) - refused - kept}, refused: {refused}" + (f", kept: {kept}" if kept else ""))
    if refused < len(done) and not arguments.dry_run:
        print(f"Next: {arguments.program} list, then {arguments.program} start NAME")


def _print_json(
    done: tuple[Imported, ...], problems: tuple[Diagnostic, ...], notes: tuple[str, ...], *, dry: bool
) -> None:
    print_json(
        {
            "format_version": FORMAT_VERSION,
            "dry_run": dry,
            "imported": [_row(each) for each in done if each.file and not each.kept],
            "kept": [_row(each) for each in done if each.kept],
            "refused": [{"entry": each.entry.number} for each in done if not each.file],
            "diagnostics": [diagnostic_json(problem) for problem in problems],
            "notes": [*notes],
        }
    )


def _row(each: Imported) -> Json:
    return {"entry": each.entry.number, "name": each.entry.name, "file": each.file}


def _about(token: TokenBeside, arguments: argparse.Namespace) -> tuple[str, ...]:
    """What to say about the token of the old manager."""
    if not arguments.with_token:
        return ("its .env holds a token, which is left there: --with-token logs in with it",) if token.there else ()
    if token.secret is None:
        return (f"the token of its .env is the one in {token.path} already",)
    return (f"the token of its .env {'would be stored' if arguments.dry_run else 'is stored'} in {token.path}",)

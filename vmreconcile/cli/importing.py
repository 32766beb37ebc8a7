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
from vmreconcile.core.reports import FORMAT_VERSION, diagnostic_json
from vmreconcile.effects.hub import log_in
from vmreconcile.effects.old_manager import token_beside
from vmreconcile.effects.token import find_token, token_path
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.adding import Shelf
from vmreconcile.flows.importing import Imported, import_entries
from vmreconcile.model.secret import Secret

if TYPE_CHECKING:
    import argparse

REFUSED_EXIT = 5


def import_models(arguments: argparse.Namespace) -> int:
    """Write what can be imported; exit 5 where an entry was refused."""
    shelf = Shelf(sources_of(arguments))
    hosts = arguments.hosts or shelf.only_host()
    token, about_token = _token(arguments)
    done = import_entries(arguments.file, shelf, hosts, dry=arguments.dry_run)
    taken = tuple(each.entry.name for each in done if each.file)
    if token is not None and not arguments.dry_run:
        log_in(token)
    notes = (*forced(taken), *((about_token,) if about_token else ()))
    if arguments.json:
        _print_json(done, notes, dry=arguments.dry_run)
    else:
        _print(done, arguments)
        for text in notes:
            note(f"note: {text}")
    return 0 if all(each.file for each in done) else REFUSED_EXIT


def _print(done: tuple[Imported, ...], arguments: argparse.Namespace) -> None:
    problems = tuple(problem for each in done for problem in each.problems)
    if problems:
        note(diagnostics_text(problems, style_for(sys.stderr, no_color=arguments.no_color)))
    for each in done:
        if each.file:
            print(f"{'would write' if arguments.dry_run else 'wrote'} {each.file}")
    refused = sum(not each.file for each in done)
    print(f"imported: {len(done) - refused}, refused: {refused}")
    if refused < len(done) and not arguments.dry_run:
        print(f"Next: {arguments.program} list, then {arguments.program} start NAME")


def _print_json(done: tuple[Imported, ...], notes: tuple[str, ...], *, dry: bool) -> None:
    print_json(
        {
            "format_version": FORMAT_VERSION,
            "dry_run": dry,
            "imported": [
                {"entry": each.entry.number, "name": each.entry.name, "file": each.file} for each in done if each.file
            ],
            "refused": [{"entry": each.entry.number} for each in done if not each.file],
            "diagnostics": [diagnostic_json(problem) for each in done for problem in each.problems],
            "notes": [*notes],
        }
    )


def _token(arguments: argparse.Namespace) -> tuple[Secret | None, str]:
    """The token of the old manager's `.env` where it is asked for and not stored already, and what to say about it.

    Raises:
        VmreconcileError: it was asked for, and there is none, or another one is logged in with already.
    """
    token = token_beside(arguments.file)
    if not arguments.with_token:
        return None, "its .env holds a token, which is left there: --with-token logs in with it" if token else ""
    if token is None:
        raise VmreconcileError(f"no HF_TOKEN in the .env beside {arguments.file}", remedy="vmreconcile auth login")
    environ = dict(os.environ)
    path = token_path(environ, Path.home())
    present = find_token({"HF_TOKEN_PATH": str(path)}, Path.home())
    if present is not None and present.secret.reveal() == token.reveal():
        return None, f"the token of its .env is the one in {path} already"
    if present is not None:
        raise VmreconcileError(
            f"{path} holds another token than the .env: nothing was imported",
            remedy="hf auth logout first, or keep the one that is there",
        )
    return token, f"the token of its .env {'would be stored' if arguments.dry_run else 'is stored'} in {path}"

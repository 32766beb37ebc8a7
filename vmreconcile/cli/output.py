"""One JSON document on standard output, and the context that every command makes of its arguments."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vmreconcile.cli.terminal import as_called, silence
from vmreconcile.flows.inputs import Inputs, Sources, read_inputs
from vmreconcile.model.tokens import Need
from vmreconcile.model.values import JsonValue

if TYPE_CHECKING:
    import argparse

    from vmreconcile.flows.prepare import Prepared, Reach


def print_json(document: Mapping[str, JsonValue]) -> None:
    """Print one document, indented, keys in the order given.

    In ASCII where it would else hold control characters, or letters that the output's encoding may lack.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False)
    plain = text.replace("\n", "").isprintable() and (sys.stdout.encoding or "").lower().startswith("utf")
    print(text if plain else json.dumps(document, indent=2))


def note(text: str) -> None:
    """Say something beside the result, whether anybody still listens or not."""
    with lasting(sys.stderr):
        print(as_called(text), file=sys.stderr, flush=True)


def say_notes(ready: Prepared) -> None:
    """What the person should know about a run's tokens."""
    for text in ready.notes:
        note(f"note: {text}")


@contextmanager
def lasting(stream: TextIO) -> Iterator[None]:
    """Write to `stream`; where its reader is gone (a pager, a closed terminal), what is at work goes on in silence."""
    try:
        yield
    except OSError:
        silence(stream)


def sources_of(arguments: argparse.Namespace) -> Sources:
    """Where to read from."""
    inventory = tuple(arguments.inventory or ["inventory"])
    return Sources(inventory=inventory, models=arguments.models, environ=dict(os.environ), tuning=arguments.tuning)


def inputs_of(arguments: argparse.Namespace) -> Inputs:
    """Read and check the files; warnings go to standard error.

    Raises:
        InputError: where they cannot be used.
    """
    from vmreconcile.cli.render_errors import diagnostics_text  # noqa: PLC0415 - kept out of a quick start
    from vmreconcile.cli.terminal import style_for  # noqa: PLC0415 - kept out of a quick start

    inputs = read_inputs(sources_of(arguments))
    told = [problem for problem in inputs.warnings if arguments.program != "vm" or problem.code != "models-empty"]
    if told:
        note(diagnostics_text(told, style_for(sys.stderr, no_color=arguments.no_color)))
    return inputs


def reach_of(arguments: argparse.Namespace, hosts: tuple[str, ...] | None = None, need: Need = Need.ALL) -> Reach:
    """How hosts are reached in this run: those of --limit, or just `hosts`."""
    from vmreconcile.cli.terminal import hidden_answer  # noqa: PLC0415 - kept out of a quick start
    from vmreconcile.effects.transport import TransportOptions  # noqa: PLC0415 - kept out of a quick start
    from vmreconcile.flows.prepare import Reach  # noqa: PLC0415 - kept out of a quick start
    from vmreconcile.flows.tokens import TokenReader  # noqa: PLC0415 - kept out of a quick start

    options = TransportOptions(
        connect_timeout=arguments.timeout,
        accept_new_host_keys=arguments.accept_new_host_keys,
        environ=dict(os.environ),
        home=Path.home(),
    )
    asks = sys.stdin.isatty() and not arguments.no_input and need is Need.ALL
    tokens = TokenReader(options.environ, options.home, hidden_answer if asks else None)
    return Reach(
        limit=arguments.limit,
        hosts=hosts,
        forks=arguments.forks,
        options=options,
        tokens=tokens,
        need=need,
        lock_timeout=getattr(arguments, "lock_timeout", 0.0),
        command=arguments.typed,
    )

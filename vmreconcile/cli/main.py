"""From argv to an exit code: picks the command, and turns every error into a few lines and the contract's code."""

from __future__ import annotations

import contextlib
import errno
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vmreconcile.cli.parser import parse
from vmreconcile.errors import InputError, VmreconcileError
from vmreconcile.model.showing import masked

if TYPE_CHECKING:
    import argparse

INTERRUPTED_EXIT = 130
BUG_EXIT = 1
LIBRARIES = ("paramiko", "fabric", "invoke", "huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""What writing to a full disk or a broken one ends in."""

COMMANDS = {
    "init": "vmreconcile.cli.files",
    "validate": "vmreconcile.cli.files",
    "inventory": "vmreconcile.cli.files",
    "plan": "vmreconcile.cli.plans",
    "apply": "vmreconcile.cli.plans",
    "status": "vmreconcile.cli.servers",
    "show": "vmreconcile.cli.servers",
    "logs": "vmreconcile.cli.servers",
    "start": "vmreconcile.cli.oneoff",
    "stop": "vmreconcile.cli.oneoff",
    "restart": "vmreconcile.cli.oneoff",
    "history": "vmreconcile.cli.history",
    "rollback": "vmreconcile.cli.history",
    "auth": "vmreconcile.cli.auth",
    "doctor": "vmreconcile.cli.doctor",
    "prefetch": "vmreconcile.cli.prefetch",
    "fit": "vmreconcile.cli.fit",
    "add": "vmreconcile.cli.models",
    "list": "vmreconcile.cli.models:list_models",
    "remove": "vmreconcile.cli.models",
    "import": "vmreconcile.cli.importing:import_models",
    "completion": "vmreconcile.cli.completion",
}
"""Where each command lives, MODULE:FUNCTION where that is not the command's name; imported only when asked for."""


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code is the outward contract's."""
    return run(argv, parse, COMMANDS)


def run(
    argv: Sequence[str], parse_words: Callable[[Sequence[str]], argparse.Namespace], places: Mapping[str, str]
) -> int:
    """Run the command that `parse_words` finds in `argv`, from its place in `places`."""
    try:
        arguments = parse_words(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    arguments.typed = shlex.join([arguments.program, *argv])
    from vmreconcile.cli.terminal import called  # noqa: PLC0415 - kept out of a quick --help

    _log(arguments.verbose)
    with called(arguments.program):
        code = _carried_out(arguments, places)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _quiet_stdout()
    except OSError as error:
        return _unwritten(error) or code
    return code


def _carried_out(arguments: argparse.Namespace, places: Mapping[str, str]) -> int:
    """Run the command; every error in a few lines, with its exit code."""
    try:
        prepare: Callable[[argparse.Namespace], None] = getattr(arguments, "prepare", _as_it_is)
        prepare(arguments)
        place, _, function = places[arguments.command].partition(":")
        module = importlib.import_module(place)
        command: Callable[[argparse.Namespace], int] = getattr(module, function or arguments.command)
        return command(arguments)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # a terminal that was closed interrupts too
            print("interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED_EXIT
    except BrokenPipeError:
        _quiet_stdout()
        return 0
    except VmreconcileError as error:
        _say(error, arguments)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last net: a traceback shown to a user is a bug
        if isinstance(error, OSError) and error.errno in FULL:
            return _unwritten(error)
        return _bug(error, arguments)


def _unwritten(error: OSError) -> int:
    """Nobody must take an output that was lost for one that says nothing."""
    _quiet_stdout()
    with contextlib.suppress(OSError):
        print(f"vmreconcile: the output could not be written: {error.strerror}", file=sys.stderr, flush=True)
    return BUG_EXIT


def _as_it_is(arguments: argparse.Namespace) -> None:
    """Nothing to prepare."""


def _log(verbose: int) -> None:
    """Standard error only; libraries stay at warnings whatever is asked, for their logs quote what is sent."""
    level = {0: logging.ERROR, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(name)s: %(message)s")
    for output in logging.getLogger().handlers:
        output.addFilter(_mask)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL if verbose < 2 else logging.WARNING)


def _mask(record: logging.LogRecord) -> bool:
    """Take what looks like a secret out of a record."""
    record.msg, record.args = masked(record.getMessage()), None
    return True


def _say(error: VmreconcileError, arguments: argparse.Namespace) -> None:
    from vmreconcile.cli.render_errors import counts_text, diagnostics_text  # noqa: PLC0415 - only when it goes wrong
    from vmreconcile.cli.terminal import advice, style_for  # noqa: PLC0415 - only when it goes wrong

    style = style_for(sys.stderr, no_color=arguments.no_color)
    if isinstance(error, InputError):
        if arguments.json:
            from vmreconcile.cli.output import print_json  # noqa: PLC0415 - only when it goes wrong
            from vmreconcile.core.reports import diagnostics_json  # noqa: PLC0415 - only when it goes wrong

            print_json(diagnostics_json(error.diagnostics))
        print(diagnostics_text(error.diagnostics, style), file=sys.stderr)
        print(counts_text(error.diagnostics), file=sys.stderr)
        return
    print(style.paint(f"vmreconcile: {advice(str(error))}", "red"), file=sys.stderr)
    if error.remedy:
        print(f"  mend  {advice(error.remedy)}", file=sys.stderr)


def _bug(error: Exception, arguments: argparse.Namespace) -> int:
    """A fault of ours: type and place, never a value, for values may be secret."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"  # noqa: PTH119 - a name only
    print(
        f"vmreconcile: a fault of vmreconcile itself in `{arguments.command}`: {type(error).__name__} at {place}\n"
        "  mend  nothing is half done on the hosts: plan again; please report the line above",
        file=sys.stderr,
    )
    return BUG_EXIT


def _quiet_stdout() -> None:
    """The reader of our output went away: nothing more can be said to it, at exit neither."""
    from vmreconcile.cli.terminal import silence  # noqa: PLC0415 - only when it goes wrong

    silence(sys.stdout)

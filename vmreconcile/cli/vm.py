"""`vm`: the old manager's verbs over the same machinery, on this machine or on `--host`.

Every command of vmreconcile can be called too, on the folder that `vm` works with.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from vmreconcile.cli import main as vmreconcile
from vmreconcile.cli.command_line import Parser, leaves, parse_with
from vmreconcile.cli.numbers import count
from vmreconcile.cli.output import note
from vmreconcile.cli.parser import COMMANDS, add_command, add_lock_timeout, make_parser
from vmreconcile.effects.vm_home import HERE, NewHost, destination, home_folder, make_home, project_here
from vmreconcile.errors import UsageError

DEFAULT = "ui"
LOCAL = "localhost"

PLACES = {
    **vmreconcile.COMMANDS,
    "cleanup": "vmreconcile.cli.cleanup",
    "force": "vmreconcile.cli.cleanup",
    "ui": "vmreconcile.cli.view",
    "manager": "vmreconcile.cli.view:ui",
}
NEW = frozenset({"add", "import"})
"""Commands whose `--host` says where a new model goes."""
NAMING = {"start": "servers", "stop": "servers", "restart": "servers", "remove": "names"}
"""Commands whose `--host` says which of a model's servers are meant."""
WITHOUT_HOST = frozenset({"inventory", "completion", "init", "auth"})
SHORT = {"ls": "list", "rm": "remove"}
"""Other names that the old manager had for a command."""
GONE = {
    "install": "vLLM is installed on a host by whoever keeps that; `vm doctor` says what is missing there",
    "config": "a model's settings are in its file under models.d, and `vm auth login` keeps the token",
    "gui": "`vm ui` shows the servers on the terminal",
}
"""Commands of the old manager, and what does now what they did."""
FILELESS = frozenset({"completion", "init"})


def main(argv: Sequence[str]) -> int:
    """Run one command; without one, the terminal view."""
    return vmreconcile.run(argv or [DEFAULT], parse, PLACES)


def vm_parser() -> Parser:
    """The parser of every command, vmreconcile's among them."""
    parser = make_parser(
        "vm",
        "Starts, stops and shows vLLM servers on this machine or on --host; without a command: the terminal view.",
        VM_COMMANDS,
    )
    for words, command in leaves(parser):
        command.set_defaults(models=None)
        if words.split()[0] not in WITHOUT_HOST:
            command.add_argument("--host", metavar="HOST", help="this host alone ([USER@]HOST; this machine)")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What the command line of `vm` says, in vmreconcile's terms: folders, hosts, limits.

    Raises:
        SystemExit: after help, or with 64 where the command line is wrong.
    """
    parser = vm_parser()
    first = argv[0] if argv else ""
    if first in GONE:
        parser.error(f"{first} is gone: {GONE[first]}")
    arguments = parse_with(parser, [SHORT.get(first, first), *argv[1:]], [*VM_COMMANDS])
    arguments.prepare = _prepare
    return arguments


def _prepare(arguments: argparse.Namespace) -> None:
    """Find the folder, and say in vmreconcile's terms what `--host` means.

    Raises:
        UsageError: `--host` is no host, or says another one than the rest of the command line.
    """
    if arguments.command in FILELESS:
        return
    text = getattr(arguments, "host", None) if arguments.command not in WITHOUT_HOST else None
    user, host = ("", None) if text is None else destination(text)
    if host is not None:
        _said_once(arguments, host)
    hosts_file = _folder(arguments)
    if arguments.command in NEW:
        if hosts_file and host and host != LOCAL:
            arguments.new_host = NewHost(name=host, user=user, path=hosts_file)
        arguments.hosts = arguments.hosts or host or (LOCAL if hosts_file else None)
    elif host is not None and arguments.command in NAMING:
        names = getattr(arguments, NAMING[arguments.command])
        setattr(arguments, NAMING[arguments.command], [name if "@" in name else f"{name}@{host}" for name in names])
    elif host is not None:
        arguments.limit = host


def _said_once(arguments: argparse.Namespace, host: str) -> None:
    """See to it that nothing else on the command line says which hosts are meant.

    Raises:
        UsageError: it does.
    """
    for option in ("limit", "hosts"):
        if getattr(arguments, option, None):
            raise UsageError(f"--host and --{option} both say which hosts are meant", remedy="give one of them")
    for name in getattr(arguments, NAMING.get(arguments.command, ""), ()):
        if "@" in name and name.rpartition("@")[2] != host:
            raise UsageError(f"--host {host} is not the host of {name}", remedy="give one of them")


def _folder(arguments: argparse.Namespace) -> Path | None:
    """Find what to work with; the inventory file of the `vm` command's own folder, where that is what is used.

    The folder is made at its first use, unless nothing is to be written.
    """
    if (arguments.inventory and arguments.models) or project_here(Path()):
        arguments.models = arguments.models or Path("models.d")
        return None
    folder = home_folder(os.environ, Path.home())
    own = not arguments.inventory
    if getattr(arguments, "dry_run", False):
        arguments.inventory = arguments.inventory or [
            str(folder / "inventory") if (folder / "inventory").exists() else HERE
        ]
    elif make_home(folder):
        note(f"made {folder}: its inventory has this machine, its models.d the models that you add")
    arguments.inventory = arguments.inventory or [str(folder / "inventory")]
    arguments.models = arguments.models or folder / "models.d"
    return folder / "inventory" / "hosts.yml" if own else None


def _cleanup(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "cleanup", "end workers of ours whose server died, and say what is left")
    command.add_argument(
        "--preserve-priority", type=count, metavar="N", help="taken for old scripts' sake: no server is ended here"
    )
    add_lock_timeout(command)


def _force(commands: argparse._SubParsersAction[Parser]) -> None:
    about = "free GPU memory: end orphans, and stop our servers that do not serve; never what is not ours"
    command = add_command(commands, "force", about)
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_lock_timeout(command)


def _ui(commands: argparse._SubParsersAction[Parser]) -> None:
    add_command(commands, "ui", "show the servers on the terminal, to start and stop them with a key")


def _ui_by_its_old_name(commands: argparse._SubParsersAction[Parser]) -> None:
    add_command(commands, "manager", "the same as ui")


VM_COMMANDS = {**COMMANDS, "cleanup": _cleanup, "force": _force, "ui": _ui, "manager": _ui_by_its_old_name}
"""What adds each command, in the order of `--help`."""

"""The command line's shape: every command and option, and nothing else, so that `--help` is quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from vmreconcile import __version__
from vmreconcile.cli.command_line import Parser, parse_with
from vmreconcile.cli.numbers import count, duration, fraction, positive, seconds, share


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What the command line of `vmreconcile` says.

    Raises:
        SystemExit: after help, or with 64 where the command line is wrong.
    """
    return parse_with(make_parser(), argv, [*COMMANDS])


ABOUT = "Brings the vLLM servers of a fleet to what a folder of YAML files asks, over SSH."


def make_parser(program: str = "vmreconcile", about: str = ABOUT, adding: Mapping[str, Adding] | None = None) -> Parser:
    """The parser of every command that `adding` adds; of vmreconcile's without it."""
    parser = Parser(prog=program, description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"vmreconcile {__version__}")
    parser.set_defaults(program=parser.prog, new_host=None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for add in (adding or COMMANDS).values():
        add(commands)
    return parser


def add_command(commands: argparse._SubParsersAction[Parser], name: str, about: str) -> Parser:
    """Add a command with the options that every command has."""
    forks = ("--forks",) if name == "logs" else ("-f", "--forks")  # `logs -f` follows, as everywhere
    command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    shared = command.add_argument_group("on every command")
    shared.add_argument(
        "-i", "--inventory", type=_named, action="append", metavar="PATH", help="inventory source (inventory)"
    )
    shared.add_argument(
        "-m", "--models", type=_path, default=Path("models.d"), metavar="PATH", help="models (models.d)"
    )
    shared.add_argument("--tuning", type=_path, metavar="PATH", help="tuning rules (tuning.yaml beside the models)")
    shared.add_argument(
        "-l", "--limit", type=_named, metavar="PATTERN", help="act only on the hosts that this pattern names"
    )
    shared.add_argument("--json", action="store_true", help="print one JSON document")
    shared.add_argument(
        *forks, type=positive, default=20, metavar="N", help="hosts, and questions to the Hub, at a time (20)"
    )
    shared.add_argument("-v", "--verbose", action="count", default=0, help="say more on standard error")
    shared.add_argument("--no-color", action="store_true", help="no colours")
    shared.add_argument("--timeout", type=seconds, default=10.0, metavar="S", help="to connect, in seconds (10)")
    shared.add_argument("--no-input", action="store_true", help="never ask")
    shared.add_argument(
        "--accept-new-host-keys", action="store_true", help="record host keys not seen before (never changed ones)"
    )
    return command


def add_lock_timeout(command: Parser) -> None:
    """Add the option of the commands that change hosts."""
    about = "how long to wait for a host that another run holds: 90, 30s, 5m (0)"
    command.add_argument("--lock-timeout", type=duration, default=0.0, metavar="DURATION", help=about)


def _named(text: str) -> str:
    """Text that names something: an empty one, of a variable that is not set, must not mean something else."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty")
    return text


def _path(text: str) -> Path:
    return Path(_named(text))


Adding: TypeAlias = "Callable[[argparse._SubParsersAction[Parser]], None]"  # noqa: SLF001 - as above
"""Adds one command."""


def _init(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "init", "write a commented example inventory and model to start from")
    command.add_argument("dir", nargs="?", type=_path, default=Path(), metavar="DIR", help="where (here)")


def _validate(commands: argparse._SubParsersAction[Parser]) -> None:
    add_command(commands, "validate", "check every file, every problem at once, without any network")


def _plan(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "plan", "look at the hosts, compare and print; change nothing")
    command.add_argument("-o", "--out", type=_path, metavar="FILE", help="write the plan for `apply FILE`")
    command.add_argument("--detailed-exitcode", action="store_true", help="exit 2 where changes are pending")
    command.add_argument("--explain", action="store_true", help="say where each value was said")
    command.add_argument("--prune", action="store_true", help="plan the removal of unclaimed servers too")
    _rollout(command)


def _apply(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "apply", "make it so; on a terminal, ask first")
    command.add_argument("planfile", nargs="?", type=_path, metavar="PLANFILE", help="carry out exactly this plan")
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")
    command.add_argument("--prune", action="store_true", help="remove unclaimed servers")
    command.add_argument(
        "--max-changes",
        type=count,
        metavar="N",
        help="refuse more disruptive changes than this (a third of the servers, at least 3)",
    )
    command.add_argument("--retry-file", type=_path, metavar="FILE", help="where to write the hosts that are left")
    _rollout(command)
    add_lock_timeout(command)


def _rollout(command: Parser) -> None:
    command.add_argument(
        "--max-unavailable", type=share, metavar="N", help="how many servers of the fleet may be down at once, or N%%"
    )
    command.add_argument("--max-failures", type=count, metavar="N", help="begin nothing more after so many failed")


def _status(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "status", "show every server: phase, address, pid, GPUs, uptime, version, drift")
    command.add_argument("--watch", action="store_true", help="again every 2 seconds, until Ctrl-C")


def _inventory(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "inventory", "show what was read, as ansible-inventory does")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="everything")
    what.add_argument("--host", metavar="NAME", help="the variables of one host")
    what.add_argument("--hosts", metavar="PATTERN", help="the hosts that a pattern names, one a line")


def _show(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "show", "one server: wanted settings with their origin, observed ones, its argv")
    command.add_argument("server", metavar="NAME@HOST")


def _logs(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "logs", "the log of one server, wherever its runtime keeps it")
    command.add_argument("server", metavar="NAME@HOST")
    command.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    command.add_argument("-n", "--lines", type=count, default=100, metavar="N", help="how many lines (100)")


def _start(commands: argparse._SubParsersAction[Parser]) -> None:
    _servers(add_command(commands, "start", "start servers that do not run, and keep them wanted running"), save=True)


def _stop(commands: argparse._SubParsersAction[Parser]) -> None:
    _servers(add_command(commands, "stop", "stop servers, and keep them wanted stopped"), save=True)


def _restart(commands: argparse._SubParsersAction[Parser]) -> None:
    _servers(add_command(commands, "restart", "restart servers, once"), save=False)


def _history(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "history", "what servers ran with: when, by whom, from which commit")
    command.add_argument("servers", nargs="+", metavar="NAME[@HOST]")


def _rollback(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "rollback", "go back to what servers ran with before; no file is written")
    _servers(command, save=False)
    command.add_argument("--to", type=positive, metavar="N", help="to revision N (the newest good one not running)")
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _servers(command: Parser, *, save: bool) -> None:
    command.add_argument("servers", nargs="+", metavar="NAME[@HOST]")
    add_lock_timeout(command)
    if save:
        command.add_argument("--no-save", action="store_true", help="do not write state: to the model file")


def _auth(commands: argparse._SubParsersAction[Parser]) -> None:
    about = "the Hugging Face token: log in, see which token goes where, check access to every model"
    group = commands.add_parser("auth", help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
    parts = group.add_subparsers(dest="part", metavar="PART", required=True, parser_class=Parser)
    for add in AUTH.values():
        add(parts)


def _auth_login(commands: argparse._SubParsersAction[Parser]) -> None:
    add_command(
        commands, "login", "log in to the Hub, as `hf auth login` does; the token is asked for, or read from stdin"
    )


def _auth_status(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "status", "which token comes from where, whose it is, what it may do")
    command.add_argument("--on-hosts", action="store_true", help="what each server's env file and process have instead")


def _auth_check(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "check", "ask the Hub whether each server's token may read its model")
    command.add_argument("--no-cache", action="store_true", help="ask anew what was asked within the last hour")
    command.add_argument("--on-hosts", action="store_true", help="have each host ask, with the token it would use")


def _doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "doctor", "look for what is usually wrong, here and on the hosts")
    command.add_argument("names", nargs="*", metavar="HOST|SERVER", help="these alone (all)")
    command.add_argument("-q", "--quiet", action="store_true", help="leave out what is well")


def _prefetch(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "prefetch", "fetch models to their hosts ahead of time; what runs is not touched")
    command.add_argument("servers", nargs="*", metavar="NAME[@HOST]", help="for these alone (all)")


def _add(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "add", "write the file of a new model, wanted stopped until it is started")
    command.add_argument("name", metavar="NAME", help="what it is called here")
    command.add_argument("model", metavar="MODEL", help="id on the Hub, or an absolute path on the host")
    command.add_argument("--port", type=int, required=True, metavar="P", help="where it listens")
    command.add_argument(
        "--hosts", type=_named, metavar="PATTERN", help="who serves it (the inventory's host, where it has just one)"
    )
    command.add_argument("--priority", type=int, metavar="N", help="1 (most important) to 5 (3)")
    command.add_argument("--gpu-memory", type=float, metavar="F", help="share of the GPU's memory, 0 to 1 (auto)")
    command.add_argument("--max-len", type=positive, metavar="N", help="longest context, in tokens (the model's)")
    command.add_argument("--tensor-parallel", type=positive, metavar="N", help="GPUs that share the model (1)")


def _list(commands: argparse._SubParsersAction[Parser]) -> None:
    add_command(commands, "list", "show the models that the files hold, without a look at any host")


def _remove(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "remove", "stop servers, remove them from their hosts, delete their models' files")
    command.add_argument("names", nargs="+", metavar="NAME[@HOST]")
    command.add_argument("-y", "--yes", action="store_true", help="do not ask")
    add_lock_timeout(command)


def _import(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "import", "make model files of a VLLM Manager's models_config.json or models.json")
    command.add_argument("file", type=_path, metavar="FILE")
    command.add_argument(
        "--hosts", type=_named, metavar="PATTERN", help="who serves them (the inventory's host, where it has just one)"
    )
    command.add_argument("--with-token", action="store_true", help="log in to the Hub with the token of its .env too")
    command.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")


def _fit(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "fit", "predict whether a model fits on a GPU, and how many tokens, term by term")
    command.add_argument("model", metavar="MODEL", help="id on the Hub, a folder, or NAME@HOST of a model file")
    command.add_argument("--gpu-memory", metavar="BYTES|NAME", help="the GPU, as 85520809984, 80GiB or H100")
    command.add_argument("--tensor-parallel-size", type=positive, metavar="N", help="GPUs that share each layer (1)")
    command.add_argument("--gpu-memory-utilization", type=fraction, metavar="F", help="0 to 1 (vLLM's default)")
    command.add_argument("--max-model-len", type=positive, metavar="N", help="longest context in tokens (the model's)")
    command.add_argument("--kv-cache-dtype", metavar="T", help="auto, fp8, … (auto)")
    command.add_argument("--max-num-seqs", type=positive, metavar="N", help="requests at once (by the GPU)")
    command.add_argument("--max-num-batched-tokens", type=positive, metavar="N", help="tokens at once (by the GPU)")
    command.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs")
    command.add_argument("--vllm-version", metavar="V", help="(the host's, else the newest known)")


def _completion(commands: argparse._SubParsersAction[Parser]) -> None:
    command = add_command(commands, "completion", "print a completion script for a shell")
    command.add_argument("shell", choices=("bash", "zsh", "tcsh", "fish"))


AUTH = {"login": _auth_login, "status": _auth_status, "check": _auth_check}
"""What adds each part of `auth`."""

COMMANDS = {
    "init": _init,
    "validate": _validate,
    "plan": _plan,
    "apply": _apply,
    "status": _status,
    "inventory": _inventory,
    "show": _show,
    "logs": _logs,
    "start": _start,
    "stop": _stop,
    "restart": _restart,
    "history": _history,
    "rollback": _rollback,
    "auth": _auth,
    "doctor": _doctor,
    "prefetch": _prefetch,
    "fit": _fit,
    "add": _add,
    "list": _list,
    "remove": _remove,
    "import": _import,
    "completion": _completion,
}
"""What adds each command, in the order of `--help`."""

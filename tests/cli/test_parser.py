"""The shape of the command line: the contract's commands and options, with its defaults."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tests.lab.parsers import every_parser
from vmreconcile.cli.auth import PARTS
from vmreconcile.cli.main import COMMANDS
from vmreconcile.cli.parser import make_parser
from vmreconcile.cli.parser import parse as parse_line

REQUIRED = {
    "inventory": ["--list"],
    "show": ["m@h"],
    "logs": ["m@h"],
    "start": ["m"],
    "stop": ["m"],
    "restart": ["m"],
    "history": ["m"],
    "rollback": ["m"],
    "add": ["m", "org/m", "--port", "1"],
    "remove": ["m"],
    "fit": ["org/m"],
    "import": ["models.json"],
    "completion": ["bash"],
}
EVERYWHERE = {
    *(
        "-i",
        "--inventory",
        "-m",
        "--models",
        "-l",
        "--limit",
        "--json",
        "--forks",
        "-v",
        "--no-color",
        "--timeout",
        "--tuning",
    ),
    *("--no-input", "--accept-new-host-keys"),
}
OWN = {
    "plan": {"-o", "--detailed-exitcode", "--explain"},
    "apply": {"-y", "--prune", "--max-changes"},
    "status": {"--watch"},
    "inventory": {"--list", "--host", "--hosts"},
    "logs": {"-f", "-n"},
    "start": {"--no-save"},
    "stop": {"--no-save"},
    "auth check": {"--no-cache"},
    "add": {"--port", "--hosts", "--priority", "--gpu-memory", "--max-len", "--tensor-parallel"},
    "remove": {"-y"},
    "fit": {
        *("--gpu-memory", "--tensor-parallel-size", "--gpu-memory-utilization", "--max-model-len", "--kv-cache-dtype"),
        *("--max-num-seqs", "--max-num-batched-tokens", "--enforce-eager", "--vllm-version"),
    },
    "import": {"--hosts", "--with-token", "--dry-run"},
}


def parse(*words: str) -> argparse.Namespace:
    """What a command line means."""
    return make_parser().parse_args(words)


def test_the_commands_are_those_that_there_are() -> None:
    """Each can be called."""
    assert {words.split()[0] for words in every_parser()} == set(COMMANDS)
    assert {words.split()[1] for words in every_parser() if words.startswith("auth ")} == set(PARTS)


@pytest.mark.parametrize("command", sorted(every_parser()))
def test_every_command_takes_the_common_options(command: str) -> None:
    """And its own; `-f` is --forks everywhere but in `logs`, where it follows."""
    options = {option for action in every_parser()[command]._actions for option in action.option_strings}
    assert options >= EVERYWHERE | OWN.get(command, set())
    assert ("-f" in options) or command == "logs"
    assert all(action.help for action in every_parser()[command]._actions if action.option_strings)


@pytest.mark.parametrize("command", sorted(every_parser()))
def test_defaults(command: str) -> None:
    """As the contract has them."""
    found = parse(*command.split(), *REQUIRED.get(command, []))
    assert (found.inventory, found.models, found.limit) == (None, Path("models.d"), None)
    assert (found.json, found.verbose, found.no_color, found.no_input) == (False, 0, False, False)
    assert found.accept_new_host_keys is False
    assert (found.forks, found.timeout) == (20, 10.0)


def test_inventories_add_up() -> None:
    """Given more than once."""
    assert parse("plan", "-i", "a", "--inventory", "b").inventory == ["a", "b"]


def test_values_are_read() -> None:
    """Numbers, paths, names."""
    found = parse("apply", "p.json", "-y", "--max-changes", "0", "-f", "3", "--timeout", "0.5", "-vv")
    assert (found.planfile, found.yes, found.max_changes) == (Path("p.json"), True, 0)
    assert (found.forks, found.timeout, found.verbose) == (3, 0.5, 2)
    logs = parse("logs", "m@h", "-f", "-n", "0")
    assert (logs.follow, logs.lines) == (True, 0)
    assert parse("stop", "a", "b@h", "--no-save").servers == ["a", "b@h"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plan", "--explian"), "there is no option --explian; did you mean --explain?"),
        (("plan", "--token=hf_abc"), "there is no option --token"),
        (("status", "x"), "status does not take so many words: 'x'"),
        (("auth", "login", "--token", "hf_abc"), "type it when asked, or give it on standard input"),
        (("auth", "login", "hf_abc"), "type it when asked, or give it on standard input"),
        (("plan", "--forks", "hf_abcdefgh1234567890"), "*** is not a number"),
    ],
)
def test_wrong_usage_is_told_without_what_may_be_a_token(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old guide taught to log in with one on the command line."""
    with pytest.raises(SystemExit) as caught:
        parse_line(words)
    assert caught.value.code == 64
    told = capsys.readouterr().err
    assert said in told
    assert "hf_abc" not in told


@pytest.mark.parametrize(
    "words",
    [
        *(("plan", "--dry"), ("apply", "a", "b"), ("plan", "--timeout", "inf"), ("plan", "-f", "-1"), ("status", "x")),
        *(("plan", option, "") for option in ("-i", "-m", "-l", "--tuning", "-o")),
        *(("apply", ""), ("import", ""), ("init", " "), ("add", "a", "org/a", "--port", "1", "--hosts", "")),
    ],
)
def test_wrong_usage_leaves_with_64(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """And says what is wrong beside the usage."""
    with pytest.raises(SystemExit) as caught:
        parse(*words)
    assert caught.value.code == 64
    assert "error: " in capsys.readouterr().err

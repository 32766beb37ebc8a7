"""Settings to the argv of `vllm serve` and back; the room's front door, so `settings` is offered here too.

Starts nothing and reads no host: argv goes in and comes out as words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import SECRET_ARGUMENTS, TOOL_OWNED
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.scan import Scan, scan
from vmreconcile.vllm.settings import (
    Settings,
    differences,
    normalise,
    same,
    setting_words,
    unknown_setting,
    without_defaults,
)

__all__ = [
    "SECRET_ARGUMENTS",
    "TOOL_OWNED",
    "Command",
    "Settings",
    "differences",
    "from_argv",
    "is_vllm_root",
    "normalise",
    "parse_strict",
    "same",
    "to_argv",
    "without_defaults",
]

INTERPRETER = re.compile(r"(?:python|pypy)[\d.]*t?")
API_SERVER = "vllm.entrypoints.openai.api_server"
CLI = "vllm.entrypoints.cli.main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A vLLM root's argv, read. `prefix` is what stands before the arguments (interpreter, script, `serve` or module).

    `problems` says in a line each what could not be read; it never holds a value of an unknown or secret argument.
    """

    prefix: tuple[str, ...]
    model: str | None
    settings: Settings = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def to_argv(executable: str, model: str, settings: Settings, catalogue: Catalogue) -> tuple[str, ...]:
    """The words that start `model` with `settings`: `[executable, 'serve', model, '--flag', value…]`, sorted."""
    argv = [executable, "serve", model]
    for name, value in sorted(settings.items()):
        argv += setting_words(catalogue.arguments.get(name), name, value)
    return tuple(argv)


def from_argv(argv: Sequence[str], catalogue: Catalogue) -> Command | None:
    """Read a vLLM root's argv as found in /proc, or None where it is not one."""
    split = _split(argv)
    if split is None:
        return None
    old_form = API_SERVER in argv[:split]
    result = scan(argv[split:] if old_form else _relocate(argv[split:]), catalogue)
    settings = dict(result.settings)
    named = settings.pop("model", None)
    model = named if isinstance(named, str) and (old_form or result.model is None) else result.model
    settings |= _unknown(result.extras)
    return Command(
        prefix=tuple(argv[:split]), model=model, settings=dict(sorted(settings.items())), problems=_problems(result)
    )


def is_vllm_root(argv: Sequence[str]) -> bool:
    """Whether argv is that of a vLLM server's root process (not a worker, nor a program that starts one)."""
    return _split(argv) is not None


def parse_strict(args: Sequence[str], catalogue: Catalogue) -> tuple[str | None, dict[str, JsonValue]]:
    """Read the words after `serve` as vLLM does, refusing what it refuses.

    Returns:
        The model (None: not given) and the settings given.

    Raises:
        ValueError: with argparse's message, to stand after 'vllm serve: error: '; vLLM exits 2 with it.
    """
    result = scan(_relocate(args), catalogue)
    if result.errors:
        raise ValueError(result.errors[0].message)
    if result.extras:
        raise ValueError(f"unrecognized arguments: {' '.join(result.extras)}")
    settings = dict(result.settings)
    named = settings.pop("model", None)
    return result.model if result.model is not None else named if isinstance(named, str) else None, settings


def _split(argv: Sequence[str]) -> int | None:
    """Where vLLM's own arguments begin in a root's argv; None where it is not one."""
    if not argv:
        return None
    start = 0
    if INTERPRETER.fullmatch(_base(argv[0])):
        start = _script(argv)
        if argv[start - 1 : start] and re.fullmatch(r"-[a-zA-Z]*m", argv[start - 1]) and start < len(argv):
            if argv[start] == API_SERVER:
                return start + 1
            return start + 2 if argv[start] == CLI and list(argv[start + 1 : start + 2]) == ["serve"] else None
    if start < len(argv) and _base(argv[start]) == "vllm" and list(argv[start + 1 : start + 2]) == ["serve"]:
        return start + 2
    return None


def _script(argv: Sequence[str]) -> int:
    """The position of the script or module name after an interpreter's own options."""
    position = 1
    while position < len(argv) and argv[position].startswith("-"):
        word = argv[position]
        position += 2 if word in ("-X", "-W") else 1
        if re.fullmatch(r"-[a-zA-Z]*c", word):
            return len(argv)
        if re.fullmatch(r"-[a-zA-Z]*m", word):
            break
    return position


def _base(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]


def _relocate(words: Sequence[str]) -> list[str]:
    """Move the value of the first `--model` to the front, as `vllm serve` does."""
    for index, word in enumerate(words):
        if word == "--model" and index + 1 < len(words):
            return [words[index + 1], *words[:index], *words[index + 2 :]]
        if re.match(r"--model=.+", word):
            return [word.removeprefix("--model="), *words[:index], *words[index + 1 :]]
    return list(words)


def _unknown(extras: Sequence[str]) -> dict[str, JsonValue]:
    """The settings that unknown options (of a newer vLLM, say) seem to make: the words after each are its values."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in extras:
        if re.match(r"--[A-Za-z]", word):
            name, equals, value = word.removeprefix("--").partition("=")
            values = found[name.replace("-", "_")] = [value] if equals else []
        else:
            values.append(word)
    settings: dict[str, JsonValue] = {}
    for name, words in found.items():
        settings |= unknown_setting(name, True if not words else words[0] if len(words) == 1 else [*words])
    return settings


def _problems(result: Scan) -> tuple[str, ...]:
    """What a person should know about an argv that could not be read in full; no value that may be secret."""
    found = []
    for error in result.errors:
        secret = error.argument is not None and error.argument.name in SECRET_ARGUMENTS
        found.append(f"argument {error.argument.label}: unreadable" if secret and error.argument else error.message)
    unknown = [word.partition("=")[0] for word in result.extras if word.startswith("-")]
    if unknown:
        found.append(f"unrecognized arguments: {' '.join(unknown)}")
    if "config" in result.settings:
        found.append("argument --config: the settings in this file cannot be seen")
    return tuple(found)

"""Reading the words after `vllm serve` as vLLM itself does: FlexibleArgumentParser over Python's argparse.

Owns the order of things (underscores, -O, dotted names, prefixes, what an option swallows) and argparse's wording of
refusals. Never raises on any input; `command` decides whether a refusal matters. The order follows CPython 3.11's
argparse and vLLM 0.10-0.32's utils/argparse_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import Argument, Kind
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.kinds import DEEPEST, compact, human_int, read, read_json

NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
HELP = ("-h", "--help")


@dataclass(slots=True)
class Scan:
    """What was read. `errors` are argparse's, in its order; `extras` the words that it would not recognise."""

    model: str | None = None
    settings: dict[str, JsonValue] = field(default_factory=dict)
    errors: list[Refusal] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why argparse would stop: its message, and the argument it is about."""

    message: str
    argument: Argument | None = None


@dataclass(frozen=True, slots=True)
class Option:
    """A word that is an option: the argument it means (None: unknown), its spelling, and what follows its '='."""

    argument: Argument | None
    spelling: str
    explicit: str | None = None

    @property
    def word(self) -> str:
        """The option as it stood."""
        return self.spelling if self.explicit is None else f"{self.spelling}={self.explicit}"


def scan(words: Sequence[str], catalogue: Catalogue) -> Scan:
    """Read the words after `serve` (or after the module, in the old form)."""
    result = Scan()
    prepared = _join_dotted(_respell(words, catalogue), catalogue, result)
    parsed = _classify(prepared, catalogue, result)
    position = 0
    while position < len(parsed):
        one = parsed[position]
        position += 1
        if isinstance(one, Option):
            following = _values(parsed, position)
            position += _take(one, following, result)
        elif one is not None and result.model is None:
            result.model = one
        elif one is not None:
            result.extras.append(one)
    return result


def _respell(words: Sequence[str], catalogue: Catalogue) -> Iterator[str]:
    """Turn underscores in option names into dashes, and -O3 into what it stands for."""
    for index, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            head, dot, tail = name.partition(".")
            yield head.replace("_", "-") + dot + tail + equals + value
        elif word.startswith("-O") and len(word) > 2 and (word[2] != "." or catalogue.dash_o.startswith("--")):
            level = word[3:] if word[2] == "=" else word[2:]
            yield from (
                (catalogue.dash_o, level) if catalogue.dash_o.startswith("--") else (f"{catalogue.dash_o}={level}",)
            )
        elif word == "-O" and index + 1 < len(words) and words[index + 1] in ("0", "1", "2", "3"):
            yield catalogue.dash_o
        else:
            yield word


def _join_dotted(words: Iterator[str], catalogue: Catalogue, result: Scan) -> list[str]:
    """Gather `--a.b v` and `--a.b+ x,y` into one JSON word an argument, at the end of the line."""
    kept: list[str] = []
    objects: dict[str, JsonValue] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not name.startswith("-") or "." not in name:
            kept.append(word)
            continue
        option, *keys = name.removesuffix("+").split(".")
        if not equals:
            following = next(words, None)
            if following is None:
                result.errors.append(Refusal(f"argument {name}: expected one argument"))
                continue
            text = following
        if len(keys) > DEEPEST:
            result.errors.append(Refusal(f"argument {option}: nested too deep"))
            continue
        value: JsonValue = [*text.split(",")] if name.endswith("+") else _loose(text, catalogue)
        for key in reversed(keys):
            value = {key: value}
        objects[option] = merge(objects.get(option), value)
    for option, content in objects.items():
        kept += [option, compact(content)]
    return kept


def merge(one: JsonValue, other: JsonValue) -> JsonValue:
    """Lay `other` over `one`: objects part by part, lists one after the other, else the later value."""
    match one, other:
        case dict(), dict():
            return {**one, **{key: merge(one[key], value) if key in one else value for key, value in other.items()}}
        case list(), list():
            return [*one, *other]
        case _:
            return other


def _loose(text: str, catalogue: Catalogue) -> JsonValue:
    """The value of a dotted name: JSON, else a number with a suffix, else the text."""
    try:
        return read_json(text)
    except (ValueError, RecursionError):
        pass
    try:
        return human_int(text) if catalogue.human_json else text
    except ValueError:
        return text


def _classify(words: list[str], catalogue: Catalogue, result: Scan) -> list[Option | str | None]:
    """Say of each word whether it is an option or a value; None stands for '--', after which all are values."""
    parsed: list[Option | str | None] = []
    for index, word in enumerate(words):
        if word == "--":
            return [*parsed, None, *words[index + 1 :]]
        meaning = _meaning(word, catalogue)
        if isinstance(meaning, Refusal):
            result.errors.append(meaning)
            meaning = Option(None, word)
        parsed.append(meaning)
    return parsed


def _meaning(word: str, catalogue: Catalogue) -> Option | Refusal | str:
    """As argparse's `_parse_optional`: exact spelling, exact before the '=', unique prefix, else value or unknown."""
    if not word.startswith("-") or word == "-":
        return word
    name, equals, value = word.partition("=")
    explicit = value if equals else None
    if word in catalogue.options:
        return Option(catalogue.options[word], word)
    if word in HELP:
        return Option(None, word)
    if name in catalogue.options:
        return Option(catalogue.options[name], name, explicit)
    matches = list(_prefixed(word, name, explicit, catalogue))
    if len(matches) == 1:
        return matches[0]
    if matches:
        spellings = ", ".join(match.spelling for match in matches)
        return Refusal(f"ambiguous option: {word} could match {spellings}", matches[0].argument)
    if NEGATIVE_NUMBER.fullmatch(word) or " " in word:
        return word
    return Option(None, name if equals else word, explicit)


def _prefixed(word: str, name: str, explicit: str | None, catalogue: Catalogue) -> Iterator[Option]:
    """Every option that a word may abbreviate; one letter after a single dash may hold its value in the same word."""
    options: list[tuple[str, Argument | None]] = [*catalogue.options.items(), *((spelling, None) for spelling in HELP)]
    for option, argument in options:
        if word.startswith("--"):
            if option.startswith(name):
                yield Option(argument, option, explicit)
        elif option == word[:2]:
            yield Option(argument, option, word[2:])
        elif option.startswith(word):
            yield Option(argument, option)


def _values(parsed: list[Option | str | None], position: int) -> list[str]:
    """The values that stand at `position`, up to the next option or '--'."""
    found: list[str] = []
    for one in parsed[position:]:
        if not isinstance(one, str):
            break
        found.append(one)
    return found


def _take(option: Option, following: list[str], result: Scan) -> int:
    """Store what an option says; answer how many of the following words it has taken."""
    argument = option.argument
    if argument is None:
        if option.spelling not in HELP:
            result.extras.append(option.word)
        return 0  # argparse takes the words after an unknown option for positionals
    if argument.kind in (Kind.BOOL, Kind.FLAG):
        if option.explicit is not None:
            result.errors.append(_refusal(argument, f"ignored explicit argument {option.explicit!r}"))
        elif argument.kind is Kind.FLAG:
            result.settings[argument.name] = argument.const
        else:
            result.settings[argument.name] = not option.spelling.startswith("--no-")
        return 0
    words = [option.explicit] if option.explicit is not None else following[: None if argument.nargs == "+" else 1]
    if not words and argument.nargs == "?":
        result.settings[argument.name] = argument.const
    elif not words:
        few = "at least one argument" if argument.nargs == "+" else "one argument"
        result.errors.append(_refusal(argument, f"expected {few}"))
    else:
        _store(argument, words, result)
    return 0 if option.explicit is not None else len(words)


def _store(argument: Argument, words: list[str], result: Scan) -> None:
    """Read the words into the settings; a later one replaces an earlier one, except where values add up."""
    values: list[JsonValue] = []
    for word in words:
        try:
            values.append(read(argument, word))
        except ValueError as error:
            result.errors.append(_refusal(argument, str(error)))
            return
    if argument.append:
        known = result.settings.get(argument.name)
        result.settings[argument.name] = [*(known if isinstance(known, list) else []), *values]
    else:
        result.settings[argument.name] = values if argument.nargs == "+" else values[0]


def _refusal(argument: Argument, text: str) -> Refusal:
    """A refusal about one argument, in argparse's words."""
    return Refusal(f"argument {argument.label}: {text}", argument)

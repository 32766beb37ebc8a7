"""Settings of vLLM: one form for every way of writing them, when two are equal, and the words that say them.

Settings are a mapping from canonical argument names to values in canonical form. Knows single settings only; whole
command lines are `command`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.argument import Argument, Kind
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.kinds import SUFFIXED, canonical, equal, human_int, write
from vmreconcile.vllm.scan import merge

Settings = Mapping[str, JsonValue]


def normalise(args: Settings, catalogue: Catalogue) -> dict[str, JsonValue]:
    """Turn arguments as a user writes them (snake_case, kebab-case, dotted, aliases) into settings, sorted by name.

    Dotted names are laid over the object of their parent. A null is dropped where vLLM knows no none for it. Unknown
    arguments keep their value.
    """
    settings: dict[str, JsonValue] = {}
    for name, value in sorted(args.items(), key=lambda item: "." in item[0]):
        head, *keys = name.split(".")
        known = catalogue.canonical(name)
        target = known or head.lstrip("-").replace("-", "_")
        argument = catalogue.arguments.get(target)
        if keys:
            settings[target] = merge(settings.get(target), _nested(keys, _expanded(value)))
        elif argument is None:
            settings |= unknown_setting(target, value)
        elif argument.kind is Kind.BOOL and isinstance(value, bool):
            settings[target] = value is not _negative(head, argument)
        elif value is not None or argument.optional:
            settings[target] = canonical(argument, value)
    return dict(sorted(settings.items()))


def without_defaults(settings: Settings, catalogue: Catalogue) -> dict[str, JsonValue]:
    """Leave out what equals the version's default; in a configuration object, its parts one by one."""
    kept: dict[str, JsonValue] = {}
    for name, value in settings.items():
        argument = catalogue.arguments.get(name)
        if argument is None:
            kept[name] = value
            continue
        default = argument.default
        if argument.kind is Kind.CONFIG and isinstance(value, dict) and isinstance(default, dict):
            parts = {k: v for k, v in value.items() if k not in default or not equal(v, default[k])}
            if parts:
                kept[name] = parts
        elif not equal(value, default):
            kept[name] = value
    return kept


def same(one: Settings, other: Settings, catalogue: Catalogue) -> bool:
    """Whether vLLM would run alike with both."""
    return not differences(one, other, catalogue)


def differences(
    desired: Settings, observed: Settings, catalogue: Catalogue
) -> tuple[tuple[str, JsonValue, JsonValue], ...]:
    """What differs, as (name, observed value, desired value) sorted by name.

    A side that says nothing about a name shows vLLM's default for it (null for a configuration object).
    """
    if desired.keys() | observed.keys() <= catalogue.arguments.keys():  # already settings: most are equal as they are
        alike = {name for name in desired if name in observed and equal(desired[name], observed[name])}
        desired = {name: value for name, value in desired.items() if name not in alike}
        observed = {name: value for name, value in observed.items() if name not in alike}
    wanted = without_defaults(normalise(desired, catalogue), catalogue)
    seen = without_defaults(normalise(observed, catalogue), catalogue)
    found: list[tuple[str, JsonValue, JsonValue]] = []
    for name in sorted(wanted.keys() | seen.keys()):
        argument = catalogue.arguments.get(name)
        default = None if argument is None or argument.kind is Kind.CONFIG else argument.default
        before, after = seen.get(name, default), wanted.get(name, default)
        unlike = not equal(before, after)
        if unlike and argument is None:
            unlike = setting_words(None, name, before) != setting_words(None, name, after)
        if unlike:
            found.append((name, before, after))
    return tuple(found)


def setting_words(argument: Argument | None, name: str, value: JsonValue) -> tuple[str, ...]:
    """The words for one setting; a word that begins with '-' is tied to its option with '='."""
    option = argument.option if argument else "--" + name.replace("_", "-")
    match value:
        case None if argument is None or not argument.optional:
            return ()
        case False if argument is None or argument.kind is Kind.BOOL:
            return ("--no-" + option.removeprefix("--"),)
        case True if argument is None or argument.kind in (Kind.BOOL, Kind.FLAG) or argument.const is True:
            return (option,)
        case False if argument and argument.kind is Kind.FLAG:
            return ()
        case list() if argument and argument.append:
            return tuple(word for item in value for word in _tied(option, [write(argument, item)]))
        case list() if argument is None or argument.is_list:
            return _tied(option, [write(argument, item) for item in value])
        case _:
            return _tied(option, [write(argument, value)])


def _tied(option: str, words: list[str]) -> tuple[str, ...]:
    """An option with its words; none at all where there is no word, for vLLM cannot be given an empty list."""
    if len(words) == 1 and words[0].startswith("-"):
        return (f"{option}={words[0]}",)
    return (option, *words) if words else ()


def unknown_setting(name: str, value: JsonValue) -> dict[str, JsonValue]:
    """A setting of an argument that is in no catalogue: null says nothing, and a bare `--no-x` switches x off."""
    if value is None:
        return {}
    return {name.removeprefix("no_"): False} if value is True and name.startswith("no_") else {name: value}


def _negative(name: str, argument: Argument) -> bool:
    """Whether a name is the switching-off spelling: `no_enable_prefix_caching`."""
    return "--" + name.lstrip("-").replace("_", "-") == argument.negative


def _nested(keys: Sequence[str], value: JsonValue) -> JsonValue:
    """The object that a dotted name sets: ['a', 'b'] and 1 make {'a': {'b': 1}}."""
    for key in reversed(keys):
        value = {key: value}
    return value


def _expanded(value: JsonValue) -> JsonValue:
    """A number with a suffix, as vLLM reads it in a dotted argument; else the value itself."""
    if isinstance(value, str) and SUFFIXED.fullmatch(value):
        try:
            return human_int(value)
        except ValueError:
            return value
    return value

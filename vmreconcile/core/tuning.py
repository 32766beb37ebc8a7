"""Applies tuning rules: the lowest layer of all, under every value that somebody wrote. Pure."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from vmreconcile.errors import Diagnostic, Place, Severity
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.document import Document
from vmreconcile.model.observed import HostView
from vmreconcile.model.tuning import Manner, Match, Rule, Tuned
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting
from vmreconcile.vllm.catalogue import Catalogue

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)b(?![A-Za-z0-9])", re.IGNORECASE)
_COMPARED: Mapping[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def rules_of(document: Document, catalogue: Catalogue) -> tuple[Rule, ...]:
    """The rules of a valid file, in its order."""
    rules = document.get("rules")
    return tuple(
        _rule(row, document, number, catalogue)
        for number, row in enumerate(rules if isinstance(rules, list) else [])
        if isinstance(row, dict)
    )


def together(shipped: Iterable[Rule], own: Iterable[Rule]) -> tuple[Rule, ...]:
    """Both in this order; an own rule takes the place of a shipped one of its name."""
    replaced = {rule.name: rule for rule in own}
    first = [replaced.pop(rule.name, rule) for rule in shipped]
    return (*first, *replaced.values())


def for_model(rules: Iterable[Rule], model: str) -> tuple[Rule, ...]:
    """The rules whose questions about the model itself are met; those about its host are open."""
    return tuple(rule for rule in rules if _model_fits(rule.match, model))


def suggestions(servers: Iterable[DesiredServer]) -> tuple[Diagnostic, ...]:
    """What rules suggest for models that say nothing about it: once a model, at its `model:`.

    A rule that asks for more than the model's id suggests in the plan, where the answers are known.
    """
    found: dict[tuple[str, str], Diagnostic] = {}
    for server in servers:
        for rule in [rule for rule in server.rules if not rule.match.open_questions]:
            for name, value in rule.suggests.items():
                if name not in server.settings:
                    found.setdefault((server.id.model, name), _suggestion(server, rule, name, value))
    return tuple(found[key] for key in sorted(found))


def _suggestion(server: DesiredServer, rule: Rule, name: str, value: JsonValue) -> Diagnostic:
    written = _written(value)
    origin = server.origins.get("model")
    return Diagnostic(
        place=(origin.place if origin else None) or Place(file=server.id.model),
        code="tuning-suggests",
        summary=f"{server.model} probably needs {name}: {written}.",
        why=f"Rule {rule.name}: {rule.reason}" + (f" ({rule.source})." if rule.source else "."),
        remedy=f"Write {name}: {written} under args if you trust it, or {name}: false to hear no more of it."
        if value is True
        else f"Write {name}: {written} under args.",
        severity=Severity.WARNING,
    )


def _written(value: JsonValue) -> JsonValue:
    """A value as a model file has it."""
    return str(value).lower() if isinstance(value, bool) else value


def size_of(model: str) -> float | None:
    """Billions of parameters as the last part of a model's id says them: 7B → 7, 8x7B → 56; None where it does not."""
    found = _SIZE.findall(model.rsplit("/", 1)[-1])
    return max((float(number) * int(times or 1) for times, number in found), default=None)


def tuned(server: DesiredServer, host: HostView, catalogue: Catalogue) -> tuple[DesiredServer, tuple[Tuned, ...]]:
    """The server with what its rules set on this host, and what each of them did."""
    rules = [rule for rule in server.rules if _host_fits(rule.match, server, host)]
    if not rules:
        return server, ()
    settings = dict(server.settings)
    done: list[Tuned] = []
    for manner in (Manner.VALUE, Manner.DEFAULT, Manner.AT_LEAST):
        for rule in reversed(rules) if manner is not Manner.AT_LEAST else rules:
            for name, (how, value) in rule.sets.items():
                if how is manner:
                    done.append(_apply(rule, name, value, settings, catalogue))
    done += [each for rule in rules if rule.match.open_questions for each in _suggested(rule, settings)]
    return replace(server, settings=dict(sorted(settings.items()))), tuple(done)


def _suggested(rule: Rule, settings: Mapping[str, Setting]) -> Iterator[Tuned]:
    """What a rule suggests of arguments that nobody wrote."""
    for name, value in rule.suggests.items():
        if name not in settings:
            yield Tuned(rule=rule, argument=name, value=None, done=f"is not set; {_written(value)} is suggested")


def _apply(rule: Rule, name: str, value: JsonValue, settings: dict[str, Setting], catalogue: Catalogue) -> Tuned:
    """Set one argument, or leave it, and say which."""
    said = settings.get(name)
    floor = rule.sets[name][0] is Manner.AT_LEAST
    if said is not None and said.origin.kind is not OriginKind.TUNING:
        return Tuned(rule=rule, argument=name, value=said.value, done=f"stays {said.value}, as written")
    argument = catalogue.arguments.get(name)
    present = said.value if said else argument.default if argument else None
    if floor and _number(present) and _number(value) and present >= value:  # type: ignore[operator] # both are numbers
        whose = f"vLLM {catalogue.version}'s default" if said is None else "another rule's"
        return Tuned(rule=rule, argument=name, value=present, done=f"stays {present}, {whose}; at least {value} asked")
    if said is not None and not floor:
        return Tuned(rule=rule, argument=name, value=said.value, done=f"stays {said.value}, a later rule's")
    origin = Origin(kind=OriginKind.TUNING, place=rule.place, note=f"rule {rule.name}")
    settings[name] = Setting(value=value, origin=origin)
    return Tuned(rule=rule, argument=name, value=value, done=f"is {value}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _model_fits(match: Match, model: str) -> bool:
    if match.model.startswith("~"):
        if re.search(match.model[1:], model) is None:
            return False
    elif match.model and not fnmatch.fnmatchcase(model.lower(), match.model.lower()):
        return False
    if match.at_least is None and match.at_most is None:
        return True
    size = size_of(model)
    return size is not None and (match.at_least or 0) <= size <= (match.at_most or float("inf"))


def _host_fits(match: Match, server: DesiredServer, host: HostView) -> bool:
    if match.architecture and not _is_architecture(match.architecture, server, host):
        return False
    if match.vllm_version:
        version = host.installed(server.executable).version
        if version is None or not version_fits(version, match.vllm_version):
            return False
    names = [gpu.name.lower() for gpu in host.gpus]
    return not match.gpu or (bool(names) and all(fnmatch.fnmatchcase(name, match.gpu.lower()) for name in names))


def _is_architecture(wanted: str, server: DesiredServer, host: HostView) -> bool:
    """Whether one of a model's architectures is meant; the file on its host says it before the Hub does."""
    names = host.architectures.get(server.id.slug) or server.architectures
    return any(fnmatch.fnmatchcase(name.lower(), wanted.lower()) for name in names)


def version_fits(version: str, wanted: str) -> bool:
    """Whether a version meets every comparison of `>=0.11,<0.30`, by the numbers of its release."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    if release is None:
        return False
    for part in wanted.split(","):
        found = re.fullmatch(r"\s*(==|!=|>=|<=|>|<)\s*(\d+(?:\.\d+)*)\s*", part)
        if found is None:
            return False
        here, there = _numbers(release[0]), _numbers(found[2])
        width = max(len(here), len(there))
        if not _COMPARED[found[1]](here + (0,) * (width - len(here)), there + (0,) * (width - len(there))):
            return False
    return True


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def _rule(row: Mapping[str, JsonValue], document: Document, number: int, catalogue: Catalogue) -> Rule:
    match, size = _part(row, "match"), _part(_part(row, "match"), "size")
    sets: dict[str, tuple[Manner, JsonValue]] = {}
    for name, content in _part(row, "set").items():
        for manner, value in content.items() if isinstance(content, dict) else ():
            sets[catalogue.canonical(name) or name] = (Manner(manner), value)
    return Rule(
        name=str(row.get("name", "")),
        match=Match(
            model=str(match.get("model", "")),
            architecture=str(match.get("architecture", "")),
            at_least=_float(size.get("at_least")),
            at_most=_float(size.get("at_most")),
            vllm_version=str(match.get("vllm_version", "")),
            gpu=str(match.get("gpu", "")),
        ),
        sets=sets,
        suggests={catalogue.canonical(name) or name: value for name, value in _part(row, "suggest").items()},
        reason=str(row.get("reason", "")),
        source=str(row.get("source", "")),
        place=document.place("rules", number),
    )


def _part(row: Mapping[str, JsonValue], name: str) -> Mapping[str, JsonValue]:
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def _float(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) else None

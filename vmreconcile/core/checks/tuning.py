"""A file of tuning rules: its shape, and what a schema cannot say of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vmreconcile.core.checks.arguments import check_arguments
from vmreconcile.core.checks.shape import Shape
from vmreconcile.core.checks.source import Finding
from vmreconcile.errors import Diagnostic
from vmreconcile.model.document import Document, Path
from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import Catalogue


def check_tuning(document: Document, shape: Shape, catalogue: Catalogue) -> tuple[Diagnostic, ...]:
    """Everything wrong with the file, in its order."""
    if document.content is None:
        return document.problems
    findings = [*shape.check(document.content), *_check_rules(document, catalogue)]
    located = (finding.located(document) for finding in findings)
    return (*document.problems, *sorted(dict.fromkeys(located), key=lambda each: (each.place, each.code)))


def _check_rules(document: Document, catalogue: Catalogue) -> Iterator[Finding]:
    rules = document.get("rules")
    first: dict[str, int] = {}
    for number, row in enumerate(rules if isinstance(rules, list) else []):
        if not isinstance(row, dict):
            continue
        path: Path = ("rules", number)
        name = row.get("name")
        if isinstance(name, str) and first.setdefault(name, number) != number:
            yield Finding(
                path=(*path, "name"),
                code="rule-twice",
                summary=f"There are two rules {shown(name)}.",
                why=f"The first is at {document.place('rules', first[name])}.",
                remedy="Give one of them another name.",
            )
        if not isinstance(row.get("set"), dict) and not isinstance(row.get("suggest"), dict):
            yield Finding(
                path=path,
                code="rule-empty",
                summary="The rule neither sets nor suggests anything.",
                remedy="Add set: or suggest:, or remove the rule.",
            )
        yield from _check_match(row.get("match"), (*path, "match"))
        yield from _check_values(row, path, catalogue)


def _check_match(match: JsonValue, path: Path) -> Iterator[Finding]:
    model = match.get("model") if isinstance(match, dict) else None
    if isinstance(model, str) and model.startswith("~"):
        try:
            re.compile(model[1:])
        except re.error as error:
            summary = f"{shown(model)} is no regular expression: {error.msg}."
            yield Finding(path=(*path, "model"), code="wrong-value", summary=summary, remedy="Mend what follows the ~.")


def _check_values(row: dict[str, JsonValue], path: Path, catalogue: Catalogue) -> Iterator[Finding]:
    """Arguments that vLLM has, with values that fit: the same questions as for `args` of a model."""
    for part in ("set", "suggest"):
        content = row.get(part)
        for name, entry in content.items() if isinstance(content, dict) else ():
            values = list(entry.values()) if part == "set" and isinstance(entry, dict) else [entry]
            for value in values:
                if not isinstance(value, dict | list) and value is not None:
                    yield from check_arguments({name: value}, (*path, part), catalogue)

"""Host patterns in `hosts`, `rollout.order` and `overrides`: each names something, and something is selected. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.core.patterns import PatternError
from vmreconcile.core.placement import Placement
from vmreconcile.errors import Severity
from vmreconcile.model.document import Document, Path
from vmreconcile.model.showing import printable, shown

_MANY = frozenset("*?[~")


def check_hosts(document: Document, placement: Placement) -> Iterator[Finding]:
    """Everything wrong with the patterns of a model.

    A name that nothing bears is an error. A glob or a regular expression without a match, and a group without hosts,
    are warnings: hosts come and go, and a model without hosts harms no server (what runs elsewhere is unclaimed).
    """
    pattern = document.get("hosts")
    selected: frozenset[str] = frozenset()
    if isinstance(pattern, str) and pattern:
        problems = list(_check_pattern(("hosts",), pattern, placement, at_key=False))
        yield from problems
        selected = frozenset(() if problems else placement.hosts(pattern))
        if not selected and not problems:
            yield _selects_nothing(("hosts",), pattern, placement)
    for path, each in _order(document):
        yield from _check_pattern(path, each, placement, at_key=False)
    overrides = document.get("overrides")
    for key in overrides if isinstance(overrides, Mapping) else ():
        problems = list(_check_pattern(("overrides", key), key, placement, at_key=True))
        yield from problems
        if selected and not problems and not selected.intersection(placement.hosts(key)):
            yield _without_effect(key, str(pattern))


def _order(document: Document) -> Iterator[tuple[Path, str]]:
    """The patterns of `rollout.order`, each with where it stands."""
    order = document.get("rollout", "order")
    if isinstance(order, str) and order:
        yield ("rollout", "order"), order
    for at, each in enumerate(order if isinstance(order, list) else ()):
        if isinstance(each, str) and each:
            yield ("rollout", "order", at), each


def _check_pattern(path: Path, pattern: str, placement: Placement, *, at_key: bool) -> Iterator[Finding]:
    problems = placement.problems(pattern)
    if isinstance(problems, PatternError):
        summary = f"{dotted(path[:1])}: {printable(str(problems))}."
        yield Finding(path=path, code="bad-pattern", summary=summary, remedy=problems.remedy, at_key=at_key)
        return
    for problem in problems:
        many = not _MANY.isdisjoint(problem.word)
        yield Finding(
            path=path,
            code="pattern-without-match" if many else "unknown-host",
            summary=f"{shown(problem.word)} matches no host and no group."
            if many
            else f"The inventory has no host and no group {shown(problem.word)}.",
            why="" if not at_key else "It stands under overrides.",
            remedy="Correct it, or add it to the inventory; vmreconcile inventory --list shows what was read.",
            suggestion=printable(problem.suggestion),
            at_key=at_key,
            severity=Severity.WARNING if many else Severity.ERROR,
        )


def _selects_nothing(path: Path, pattern: str, placement: Placement) -> Finding:
    empty = pattern in placement.inventory.groups
    return Finding(
        path=path,
        code="no-hosts",
        summary=f"{shown(pattern)} names no host, so this model has no server.",
        why="The group is empty." if empty else "Its parts together leave no host.",
        remedy="vmreconcile inventory --hosts PATTERN shows the hosts of a pattern.",
        severity=Severity.WARNING,
    )


def _without_effect(key: str, pattern: str) -> Finding:
    return Finding(
        path=("overrides", key),
        code="override-without-effect",
        summary=f"The override for {shown(key)} has no effect.",
        why=f"hosts: {printable(pattern)} selects none of its hosts.",
        remedy="Correct the pattern, or remove the override.",
        at_key=True,
        severity=Severity.WARNING,
    )

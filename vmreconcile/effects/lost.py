"""Hosts that were lost on the way, as data: the one place that says what counts as lost. Asks no host."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.model.observed import Unreachable

Found = TypeVar("Found")


def lost_host(host: str, error: Exception) -> Unreachable:
    """The host as one that could not be seen; any other error is raised again."""
    match error:
        case UnreachableError():
            return Unreachable(host=host, reason=error.reason, remedy=error.remedy, cause=error.cause)
        case AgentError():
            return Unreachable(host=host, reason=f"the agent failed: {error}")
    raise error


def reached(
    results: Iterable[tuple[str, Found | Exception]], *, before: Iterable[Unreachable] = ()
) -> tuple[dict[str, Found], tuple[Unreachable, ...]]:
    """What came of each host, by name, and the hosts that were lost, those lost `before` included; both sorted."""
    found: dict[str, Found] = {}
    lost = [*before]
    for host, result in results:
        if isinstance(result, Exception):
            lost.append(lost_host(host, result))
        else:
            found[host] = result
    return dict(sorted(found.items())), tuple(sorted(lost))

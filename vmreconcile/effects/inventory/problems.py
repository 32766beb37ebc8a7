"""Collects what is wrong with an inventory, so that one run reports all of it. Reads nothing."""

from __future__ import annotations

from vmreconcile.errors import Diagnostic, InputError, Place, Severity


class Problems:
    """Diagnostics in the order found."""

    def __init__(self) -> None:
        """Start without any."""
        self._found: list[Diagnostic] = []

    def error(self, place: Place, code: str, summary: str, *, why: str = "", remedy: str = "") -> None:
        """Add a problem that refuses the inventory."""
        self._found.append(Diagnostic(place=place, code=code, summary=summary, why=why, remedy=remedy))

    def warn(self, place: Place, code: str, summary: str, *, why: str = "", remedy: str = "") -> None:
        """Add something that is read all the same."""
        self._found.append(
            Diagnostic(place=place, code=code, summary=summary, why=why, remedy=remedy, severity=Severity.WARNING)
        )

    def add(self, other: Problems) -> None:
        """Take over what another collection found."""
        self._found.extend(other._found)

    @property
    def has_errors(self) -> bool:
        """Whether anything found refuses the inventory."""
        return any(problem.severity is Severity.ERROR for problem in self._found)

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """What was found but does not refuse the inventory, once each."""
        return tuple(dict.fromkeys(problem for problem in self._found if problem.severity is Severity.WARNING))

    def refuse(self) -> None:
        """End the reading if there is any error.

        Raises:
            InputError: with every problem found, warnings among them, errors first.
        """
        if self.has_errors:
            errors = (problem for problem in self._found if problem.severity is Severity.ERROR)
            raise InputError((*dict.fromkeys(errors), *self.warnings))

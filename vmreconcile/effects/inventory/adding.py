"""What every kind of source does with hosts: expand `NAME[a:b]:PORT`, add them, set their variables.

Turns what the draft refuses into located problems. Reads no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from vmreconcile.effects.inventory.draft import Draft, DraftError
from vmreconcile.effects.inventory.problems import Problems
from vmreconcile.errors import Place
from vmreconcile.model.addresses import RangeError, expand_ranges, split_port
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting

Variables = Mapping[str, tuple[JsonValue, Place]]


@dataclass(frozen=True, slots=True)
class Adding:
    """The draft that sources add to, and where their problems go."""

    draft: Draft
    problems: Problems

    @contextmanager
    def at(self, place: Place) -> Iterator[None]:
        """Report what the draft refuses as a problem at `place`."""
        try:
            yield
        except DraftError as error:
            self.problems.error(place, error.code, str(error), remedy=error.remedy)

    def hosts(self, pattern: str, place: Place, *, group: str, variables: Variables) -> None:
        """Add the host or hosts that `pattern` names to `group` (known already) with their variables."""
        name, port = split_port(pattern) or (pattern, None)
        try:
            names = expand_ranges(name)
        except RangeError as error:
            self.problems.error(place, "host-range", str(error), remedy="Write a range such as gpu[01:16].")
            return
        if not names:
            self.problems.warn(
                place, "empty-range", f"{pattern!r} names no host", remedy="Write the smaller end first."
            )
        with self.at(place):
            for host in names:
                self.host(host, place, group=group, port=port)
                for variable, (value, value_place) in variables.items():
                    self.draft.set_variable(host, variable, value, value_place)

    def host(self, name: str, place: Place, *, group: str = "", port: int | None = None) -> None:
        """Add one host to `group`, known already.

        Raises:
            DraftError: where the name is empty.
        """
        setting = None
        if port:
            origin = Origin(kind=OriginKind.HOST_VARS, place=place, note=f"host {name}")
            setting = Setting(value=port, origin=origin)
        self.draft.add_host(name, group=group, port=setting)

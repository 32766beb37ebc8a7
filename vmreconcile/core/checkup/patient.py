"""One host with everything that was seen of it, and the two ways to say what that means. Judges nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.core.fingerprints import Known
from vmreconcile.model.checkup import Check, Clock, Health, HostFacts
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, Phase
from vmreconcile.runtimes.base import Runtime
from vmreconcile.runtimes.registry import choose
from vmreconcile.vllm.signatures import Explanation

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A host, and the servers that it is to have. `clock` is None where it was not measured."""

    host: HostView
    facts: HostFacts
    known: Known
    wanted: tuple[DesiredServer, ...] = ()
    phases: Mapping[ServerId, Phase] = field(default_factory=dict)
    why: Mapping[ServerId, Explanation] = field(default_factory=dict)
    clock: Clock | None = None

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """The runtimes of its servers, by name; the one that a server would get where there is none."""
        found = {choose(server.runtime, self.host) for server in self.wanted} or {choose("", self.host)}
        return tuple(sorted(found, key=lambda runtime: runtime.name))


def judged(name: str, good: bool, summary: str, remedy: str, *, bad: Health = Health.FAIL, server: str = "") -> Check:  # noqa: FBT001 - the verdict itself
    """A check by its verdict; the remedy is left out where nothing needs one."""
    return Check(
        check=name,
        status=Health.OK if good else bad,
        summary=summary,
        remedy="" if good else remedy,
        server=server,
    )


def well(name: str, summary: str, *, server: str = "") -> Check:
    """A check that nothing can be wrong with."""
    return Check(check=name, status=Health.OK, summary=summary, server=server)

"""The real execution over fake hosts: what `vmreconcile apply` does between its plan and its report, and who is told.

Owns nothing of the world (tests/lab/worlds.py); runs no real host.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.lab.worlds import World, known
from vmreconcile.effects.hooks import Controller
from vmreconcile.flows.execute import execute
from vmreconcile.flows.run import Run
from vmreconcile.model.names import ServerId
from vmreconcile.model.outcome import Outcome, Result
from vmreconcile.model.plan import Change, Plan
from vmreconcile.model.secret import Secret


class Witness:
    """A reporter that remembers. `on_begin`, `on_wait` and `on_queue` may be set to do something at that moment."""

    def __init__(self) -> None:
        """Start with nothing heard."""
        self.begun: list[str] = []
        self.waited: list[tuple[str, str]] = []
        self.ended: list[Result] = []
        self.interruptions = 0
        self.on_begin: Callable[[Change], object] = str
        self.on_wait: Callable[[], object] = str
        self.on_queue: Callable[[], object] = str

    def begins(self, change: Change) -> None:
        """A change's steps are sent."""
        self.begun.append(str(change.server))
        self.on_begin(change)

    def waits(self, server: ServerId, seconds: float, line: str) -> None:
        """A server is waited for."""
        assert seconds >= 0
        self.waited.append((str(server), line))
        self.on_wait()

    def says(self, server: ServerId, line: str) -> None:
        """Something to know of a server."""
        self.waited.append((str(server), line))

    def ends(self, result: Result) -> None:
        """A server is done."""
        self.ended.append(result)

    def queues(self, host: str, holder: str) -> None:
        """A host's lock is waited for."""
        self.waited.append((host, holder))
        self.on_queue()

    def interrupted(self) -> None:
        """The first Ctrl-C."""
        self.interruptions += 1


def run_of(there: World, witness: Witness | None = None) -> Run:
    """An execution over the world's hosts."""
    return Run(
        fleet=there.fleet(),
        desired={server.id: server for server in there.desired.servers},
        known=known(there.tokens),
        secrets={name: Secret(token) for name, token in there.tokens.items()},
        reporter=witness or Witness(),
        controller=Controller(
            environ={"PATH": os.environ["PATH"]},
            addresses={name: f"{name}.example" for name in there.hosts},
            secrets=tuple(Secret(token) for token in there.tokens.values()),
        ),
    )


def apply(there: World, plan: Plan | None = None, **options: object) -> Outcome:
    """Plan (unless one is given) and carry it out."""
    return execute(plan or there.plan(**options), run_of(there))


def statuses(outcome: Outcome) -> dict[str, str]:
    """How it ended by `NAME@HOST`."""
    return {str(result.server): result.status.value for result in outcome.results}

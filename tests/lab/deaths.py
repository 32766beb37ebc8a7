"""When a controller is killed, as its hosts in memory see it: at which host, before which step or request.

A host asks its lifeline before and after each request and before each step (tests/lab/fake_host.py). Here every host
has one of its own, so that a death has the same place in each run, however many hosts are at work at once.
"""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.lab.fake_host import ControllerDied, Lifeline

if TYPE_CHECKING:
    from tests.lab.worlds import World


class Death(enum.Enum):
    """What becomes of what the hosts are at."""

    FINISHED = "finished"
    """The controller alone: its agents finish the requests that they have begun, as the real one does."""
    CUT = "cut"
    """The agents too: what was not carried out by then is not carried out."""
    ASKING = "asking"
    """Between steps: right before a request was begun, or right after it was answered."""


@dataclass(slots=True)
class Life:
    """One controller's life; several hosts, each in a thread of its own, look at it."""

    death: Death
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class Mortal(Lifeline):
    """One host's lifeline. `at`: which step of this host, or which look at a request's begin or end, from 0, is fatal.

    None: the controller does not die at this host.
    """

    life: Life = field(default_factory=lambda: Life(Death.CUT))
    at: int | None = None
    seen: int = 0

    def check(self) -> None:
        """A request begins or was answered."""
        with self.life.lock:
            if self.life.death is Death.ASKING:
                self._look()
            if self.life.ended:
                raise ControllerDied

    def spend(self) -> None:
        """One step more is to be carried out."""
        with self.life.lock:
            if self.life.death is not Death.ASKING:
                self._look()
            if self.life.ended and self.life.death is Death.CUT:
                raise ControllerDied

    def _look(self) -> None:
        if self.seen == self.at:
            self.life.ended = True
        self.seen += 1


def doomed(there: World, death: Death, host: str, at: int | None) -> Life:
    """Let the world's next controller die at one host; its life, which tells whether it came to that."""
    life = Life(death)
    for name, each in there.hosts.items():
        each.lifeline = Mortal(life=life, at=at if name == host else None)
    return life


def moments(there: World, host: str) -> int:
    """How many steps, or begins and ends of requests, a host was asked for since `doomed`."""
    lifeline = there.hosts[host].lifeline
    assert isinstance(lifeline, Mortal)
    return lifeline.seen

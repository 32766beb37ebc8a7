"""A host's run lock as the controller has it: who asks for it, who holds it, and the words a refusal is told in.

The agent holds it (docs/wire.md, `lock`). What a host says of a holder is only shown, never acted on.
"""

from __future__ import annotations

import getpass
import hashlib
import socket
from dataclasses import dataclass
from datetime import UTC, datetime

from vmreconcile.effects.facts import Facts
from vmreconcile.effects.session import AgentError
from vmreconcile.model.showing import masked, without_escapes
from vmreconcile.model.values import JsonValue

LOCKED = "locked"
"""The agent's word where another run holds the host."""

LEASE_S = 60.0
"""Silence after which the agent lets the lock go: a laptop that was closed must not keep others out for hours."""

RENEW_S = 15.0
"""How often a host that is held hears of its controller, also while there is nothing to be done on it."""

ANSWER_S = 60.0
"""For the agent's answer itself, beyond what it was asked to wait."""

LONGEST_OWNER, LONGEST_COMMAND = 120, 300
"""Letters, as the agent keeps them."""

LONGEST_SAID = 1 << 16
"""Letters of what a host says that are looked at."""

WAY_OUT = "wait until that run has ended, or have this one wait for it: --lock-timeout 5m"
MINUTE_S, HOUR_S = 60, 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run that asks for hosts: whose it is, the command as it was typed, and a name that only this run knows."""

    owner: str
    command: str
    run: str

    def payload(self, *, timeout: float, lease: float) -> dict[str, object]:
        """The request that takes the lock, or renews it; `timeout` and `lease` in seconds, a lease of 0 never ends."""
        return {
            "do": "lock",
            "owner": _plain(self.owner, LONGEST_OWNER),
            "command": _plain(self.command, LONGEST_COMMAND),
            "run": self.run,
            "timeout": timeout,
            "lease": lease,
        }


RELEASE: dict[str, object] = {"do": "lock", "release": True}
"""The request that lets the lock go."""


def run_name(salt: str) -> str:
    """A name of this run that tells nothing of its salt."""
    return hashlib.sha256(f"run lock {salt}".encode()).hexdigest()[:32]


def whoami() -> str:
    """The person and the computer that this run is by: `alice@laptop`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # neither in the environment nor among the system's users
        user = "somebody"
    return f"{user}@{socket.gethostname() or 'unknown'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a host: '' and None for what is not known; `since` in seconds since 1970, `age` in seconds."""

    owner: str = ""
    command: str = ""
    since: float | None = None
    age: float | None = None

    def __str__(self) -> str:
        """`alice@laptop since 2026-11-25 16:40:12 UTC (5 min): vmreconcile apply`."""
        words = self.owner or "a run that left no name"
        if self.since is not None:
            words += f" since {datetime.fromtimestamp(self.since, UTC):%Y-%m-%d %H:%M:%S} UTC"
            words += "" if self.age is None else f" ({_span(self.age)})"
        return f"{words}: {self.command}" if self.command else words


def holder_of(said: JsonValue) -> Holder:
    """Read what the agent says of a holder."""
    facts = Facts(said)
    return Holder(
        owner=_plain(facts.text("owner"), LONGEST_OWNER),
        command=_plain(facts.text("command"), LONGEST_COMMAND),
        since=facts.moment("since") or None,
        age=facts.maybe_number("age"),
    )


def refusal(error: AgentError) -> AgentError:
    """The agent's refusal in words for a person, with the way out; any other error of it as it is."""
    if error.kind != LOCKED or "holder" not in error.more:
        return error
    told = AgentError(LOCKED, f"locked by {holder_of(error.more['holder'])}", more=error.more)
    told.remedy = WAY_OUT
    return told


def _plain(text: str, most: int) -> str:
    """On one line, without secrets and without what drives a terminal."""
    text = masked(without_escapes(text[:LONGEST_SAID]))
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:most]


def _span(seconds: float) -> str:
    if seconds < 2 * MINUTE_S:
        return f"{max(seconds, 0):.0f} s"
    return f"{seconds / MINUTE_S:.0f} min" if seconds < 2 * HOUR_S else f"{seconds / HOUR_S:.0f} h"

"""What every part of an execution needs, who is told of it, and the one way to send steps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from vmreconcile.core.fingerprints import Known
from vmreconcile.core.launching import ENV_SECRET
from vmreconcile.core.rollout.course import Limits
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.hooks import Controller
from vmreconcile.effects.session import AgentError
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Root
from vmreconcile.model.outcome import Result
from vmreconcile.model.plan import Change
from vmreconcile.model.revision import Author
from vmreconcile.model.secret import Secret
from vmreconcile.model.showing import shown
from vmreconcile.model.steps import SecretRef, Step, StopProcess, StopUnit, WriteEnv, to_json
from vmreconcile.vllm.memory.stored import Checkpoint

STEP_TIMEOUT_S = 240.0
"""For all steps of one server together, besides the grace of each stop: twice that, or systemd's own timeout."""


class Reporter(Protocol):
    """Who is told what happens while it happens; called from several threads."""

    def begins(self, change: Change) -> None:
        """The steps of a change are sent."""

    def waits(self, server: ServerId, seconds: float, line: str) -> None:
        """A server is waited for, `seconds` so far; `line` is what it said last."""

    def says(self, server: ServerId, line: str) -> None:
        """Something that the person should know of a server, once."""

    def ends(self, result: Result) -> None:
        """A server is done."""

    def queues(self, host: str, holder: str) -> None:
        """A host's lock is waited for, which `holder` has: who, since when, with which command."""

    def interrupted(self) -> None:
        """The person pressed Ctrl-C once: what runs ends, nothing more begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution: the hosts, what is wanted of them, and what may be known of secrets."""

    fleet: Fleet
    desired: Mapping[ServerId, DesiredServer]
    known: Known
    secrets: Mapping[str, Secret]
    reporter: Reporter
    model_files: Callable[[ServerId], Checkpoint | None] = field(default=lambda _: None)
    """What was read of a server's model, for a prediction; None where nobody has read it."""
    limits: Limits = field(default_factory=Limits)
    controller: Controller = field(default_factory=Controller)
    """What hooks are run in."""
    lock_timeout: float = 0.0
    """Seconds to wait for a host that another run holds."""
    command: str = ""
    """The command as it was typed, for whoever is refused a host meanwhile."""
    author: Callable[[], Author] = field(default=Author)
    """Who does this, and from which commit; asked only where something is kept on a host."""
    note: str = ""
    """Why it is done, for the history that hosts keep; "" for an apply."""
    out: set[ServerId] = field(default_factory=set)
    """Servers that a before_stop hook took out, and that no after_ready hook has put back yet."""
    stopping: threading.Event = field(default_factory=threading.Event)


def seen_through(run: Run) -> Run:
    """The run for what must come to its end once it was begun: the first Ctrl-C does not cut it short."""
    return replace(run, stopping=threading.Event())


@dataclass(frozen=True, slots=True)
class Expected:
    """What the steps were planned for: this root process, or none."""

    root: Root | None


MOVED = "moved"
"""The agent's word where another root runs than the steps were planned for."""


def send_steps(server: ServerId, steps: tuple[Step, ...], run: Run, expected: Expected | None = None) -> None:
    """Have the agent carry out `steps`, with just the secrets that they name, if the server still is as `expected`.

    Raises:
        AgentError: a step failed, and those after it were not carried out; or a secret that they name is not there; or
            (kind `moved`) nothing was carried out, for the server is not as expected.
        UnreachableError: the host was lost.
    """
    if not steps:
        return
    payload: dict[str, object] = {
        "do": "steps",
        "slug": server.slug,
        "steps": [to_json(step) for step in steps],
        "secrets": _secrets(server, steps, run),
    }
    if expected is not None:
        payload["root"] = None if expected.root is None else list(expected.root)
    graces = (step.grace_s for step in steps if isinstance(step, StopUnit | StopProcess))
    run.fleet.request(server.host, payload, timeout=STEP_TIMEOUT_S + sum(graces))


def _secrets(server: ServerId, steps: tuple[Step, ...], run: Run) -> dict[str, Secret]:
    """Exactly the secrets that the steps name: the server's own token, and secrets of its model's environment.

    Those of other servers are not given, whatever a step of a plan file names.
    """
    found = {}
    wanted = run.desired.get(server)
    env, token = ({}, None) if wanted is None else (wanted.env, wanted.token)
    for name in sorted(_secret_names(steps)):
        variable = name.removeprefix(ENV_SECRET)
        if name.startswith(ENV_SECRET) and variable in env:
            found[name] = Secret(str(env[variable].value))
        elif name == token and name in run.secrets:
            found[name] = run.secrets[name]
        else:
            told = f"the plan needs the secret {shown(name)}, which this controller has not for {server}"
            missing = AgentError("no-token", told)
            missing.remedy = "log in to the Hub (hf auth login), or make the plan again"
            raise missing
    return found


def _secret_names(steps: tuple[Step, ...]) -> set[str]:
    return {
        value.name
        for step in steps
        if isinstance(step, WriteEnv)
        for _, value in step.entries
        if isinstance(value, SecretRef)
    }

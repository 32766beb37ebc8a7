"""Which action one server needs, and why. One function a wanted state, each a list of questions. Pure.

docs/planning-behaviors.md is this module as a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from vmreconcile.core.diff import Drift
from vmreconcile.core.phases import stall_text
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.observed import Endpoint, ObservedServer, Phase
from vmreconcile.model.plan import Action, Field, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done to one server."""

    action: Action
    reason: Reason
    disruptive: bool = False
    fields: tuple[Field, ...] = ()
    note: str = ""
    remedy: str = ""

    @property
    def replaces(self) -> bool:
        """Whether a new process takes the place of the one that runs."""
        return self.action is Action.RESTART or (self.action is Action.RETUNE and self.disruptive)


IN_SYNC = Decision(action=Action.NOOP, reason=Reason.IN_SYNC)


def decide(wanted: DesiredState, observed: ObservedServer, phase: Phase, drift: Drift) -> Decision:
    """The action for a wanted server."""
    match wanted:
        case DesiredState.RUNNING if observed.process is None:
            return _start(observed, phase)
        case DesiredState.RUNNING:
            return _keep_running(observed, phase, drift)
        case DesiredState.STOPPED:
            return _stop(observed, phase)
        case DesiredState.ABSENT:
            return _remove(observed, Reason.WANTED_ABSENT)
        case _:
            assert_never(wanted)


def decide_unclaimed(observed: ObservedServer, *, prune: bool) -> Decision:
    """The action for a server of ours that nobody wants: removed only where that was asked for."""
    if prune:
        return _remove(observed, Reason.UNCLAIMED)
    return Decision(
        action=Action.NOOP,
        reason=Reason.UNCLAIMED,
        note="ours, wanted by nobody",
        remedy="vmreconcile apply --prune removes it",
    )


def exists(observed: ObservedServer) -> bool:
    """Whether anything of ours is on the host under this name."""
    parts = (observed.process, observed.unit, observed.record, observed.env_file)
    return bool(observed.orphans) or any(part is not None for part in parts)


def _start(observed: ObservedServer, phase: Phase) -> Decision:
    if observed.orphans:
        note = f"the root died and left {len(observed.orphans)} worker(s); they are ended first"
        return Decision(action=Action.START, reason=Reason.ROOT_DIED, note=note)
    match phase:
        case Phase.ABSENT:
            return Decision(action=Action.START, reason=Reason.ABSENT)
        case Phase.CRASHED:
            return Decision(action=Action.START, reason=Reason.CRASHED, note=_last_exit(observed))
        case _:
            return Decision(action=Action.START, reason=Reason.STOPPED)


def _last_exit(observed: ObservedServer) -> str:
    unit = observed.unit
    if unit is None:
        return "its process is gone"
    code = f", exit status {unit.exit_code}" if unit.exit_code is not None else ""
    return f"the unit is {unit.active} ({unit.result or unit.sub}{code}, {unit.restarts} restarts)"


def _keep_running(observed: ObservedServer, phase: Phase, drift: Drift) -> Decision:
    fields = drift.fields
    if drift.settings:
        return Decision(action=Action.RETUNE, reason=_settings_reason(drift.settings), disruptive=True, fields=fields)
    for reason, part in (
        (_program_reason(drift.program), drift.program),
        (Reason.GPUS_CHANGED, drift.gpus),
        (Reason.ENV_CHANGED, drift.environment),
        (Reason.TOKEN_CHANGED, drift.token),
        (Reason.VERSION_CHANGED, drift.version),
    ):
        if part:
            return Decision(action=Action.RESTART, reason=reason, disruptive=True, fields=fields)
    if observed.endpoint is not None and observed.endpoint.wedged:
        return _unwedge(observed.endpoint, fields)
    if phase is Phase.UNHEALTHY:
        return Decision(action=Action.RESTART, reason=Reason.UNHEALTHY, disruptive=True, fields=fields)
    if drift.files:
        unit = any(field.path.startswith("unit") for field in drift.files)
        reason = Reason.UNIT_CHANGED if unit else Reason.ENV_FILE_CHANGED
        return Decision(action=Action.RETUNE, reason=reason, disruptive=False, fields=fields)
    if phase is Phase.STARTING:
        return Decision(action=Action.NOOP, reason=Reason.STILL_STARTING)
    return IN_SYNC


def _unwedge(endpoint: Endpoint, fields: tuple[Field, ...]) -> Decision:
    """Restart what is healthy and does nothing: its progress is what differs."""
    stands = Field(path="progress", before=f"none for {endpoint.stalled_s or 0:.0f} s", after="some")
    return Decision(
        action=Action.RESTART,
        reason=Reason.WEDGED,
        disruptive=True,
        fields=(stands, *fields),
        note=stall_text(endpoint),
    )


def _settings_reason(fields: tuple[Field, ...]) -> Reason:
    paths = {field.path for field in fields}
    if paths & {"model", "revision"}:
        return Reason.MODEL_CHANGED
    return Reason.PORT_CHANGED if paths == {"port"} else Reason.ARGS_CHANGED


def _program_reason(fields: tuple[Field, ...]) -> Reason:
    runtime = any(field.path == "runtime" for field in fields)
    return Reason.RUNTIME_CHANGED if runtime else Reason.EXECUTABLE_CHANGED


def _stop(observed: ObservedServer, phase: Phase) -> Decision:
    unit = observed.unit
    running = observed.process is not None or bool(observed.orphans)
    comes_back = unit is not None and (unit.enabled == "enabled" or unit.active in {"activating", "active"})
    if running or comes_back or phase is Phase.CRASHED:
        return Decision(action=Action.STOP, reason=Reason.WANTED_STOPPED, disruptive=observed.process is not None)
    return IN_SYNC


def _remove(observed: ObservedServer, reason: Reason) -> Decision:
    if not exists(observed):
        return IN_SYNC
    return Decision(action=Action.REMOVE, reason=reason, disruptive=observed.process is not None)

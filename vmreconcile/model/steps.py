"""What the agent does, as inert values. One class a step; the agent has one function for each (docs/wire.md).

A secret is named (`SecretRef`), never held: its value joins the request at the moment of sending.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from vmreconcile.model.values import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """Stands for a secret in an env entry; `name` is the key under the request's `secrets`."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Stands for the value that the env file on the host already has; left out where it has none."""


KEEP = Keep()

LONGEST_S = 7 * 86400.0
"""Seconds that a step of a plan file may be waited for."""

EnvEntry = tuple[str, str | SecretRef | Keep]


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteFile:
    """Write a file whole: new file, fsync, rename. `mode` in octal as an int."""

    name: ClassVar[str] = "write-file"
    path: str
    content: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteEnv:
    """Write the env file, mode 0600.

    `credential`: the token also into a file beside it, for systemd to hand over. "added": the env file keeps the one
    that it has, for the unit that still counts; "only": it holds none. A token's file is removed by a step of its own.
    """

    name: ClassVar[str] = "write-env"
    path: str
    entries: tuple[EnvEntry, ...]
    credential: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFile:
    """Remove one file of ours."""

    name: ClassVar[str] = "remove-file"
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteRecord:
    """Write the ownership record."""

    name: ClassVar[str] = "write-record"
    slug: str
    record: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveServer:
    """Remove record, env file, log, and folders of ours that are empty then."""

    name: ClassVar[str] = "remove-server"
    slug: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Systemctl:
    """One systemctl verb on one of our units ('' for daemon-reload)."""

    name: ClassVar[str] = "systemctl"
    verb: str
    unit: str = ""
    scope: str = "system"


@dataclass(frozen=True, slots=True, kw_only=True)
class StopUnit:
    """Stop a unit and wait until its control group is empty; a second TERM after `grace_s` seconds."""

    name: ClassVar[str] = "stop-unit"
    unit: str
    scope: str = "system"
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableLinger:
    """Let the user's units live without a login."""

    name: ClassVar[str] = "enable-linger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Start a server as its own session, without systemd."""

    name: ClassVar[str] = "spawn"
    slug: str
    argv: tuple[str, ...]
    cwd: str
    env_path: str
    log_path: str
    record: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopProcess:
    """Stop a root and all of its session: TERM, wait, TERM, wait, KILL."""

    name: ClassVar[str] = "stop-process"
    slug: str
    pid: int
    start_ticks: int
    boot_id: str
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndOrphans:
    """End workers of ours whose root is gone; `processes` are (pid, start_ticks)."""

    name: ClassVar[str] = "end-orphans"
    slug: str
    processes: tuple[tuple[int, int], ...]
    grace_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteMeasured:
    """Keep in the ownership record what vLLM measured, where the root is still this one."""

    name: ClassVar[str] = "note-measured"
    slug: str
    pid: int
    start_ticks: int
    measured: Mapping[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRevision:
    """Keep on the host what a server was launched with; the host numbers it."""

    name: ClassVar[str] = "keep-revision"
    slug: str
    revision: Mapping[str, JsonValue]


Step = (
    WriteFile
    | WriteEnv
    | RemoveFile
    | WriteRecord
    | RemoveServer
    | Systemctl
    | StopUnit
    | EnableLinger
    | Spawn
    | StopProcess
    | EndOrphans
    | NoteMeasured
    | KeepRevision
)

STEPS: Mapping[str, type[Step]] = {
    step.name: step
    for step in (
        WriteFile,
        WriteEnv,
        RemoveFile,
        WriteRecord,
        RemoveServer,
        Systemctl,
        StopUnit,
        EnableLinger,
        Spawn,
        StopProcess,
        EndOrphans,
        NoteMeasured,
        KeepRevision,
    )
}


def to_json(step: Step) -> dict[str, JsonValue]:
    """The step as the wire and the plan file hold it: `{"step": NAME, FIELD: …}`; secrets by name only."""
    out: dict[str, JsonValue] = {"step": step.name}
    for field in fields(step):
        out[field.name] = _plain(getattr(step, field.name))
    return out


def from_json(data: Mapping[str, JsonValue]) -> Step:
    """The inverse of `to_json`.

    Raises:
        ValueError: for a step or a field that this version does not know.
    """
    kind = STEPS.get(str(data.get("step")))
    if kind is None:
        raise ValueError(f"unknown step {data.get('step')!r}")
    names = {field.name: str(field.type) for field in fields(kind)}
    given = {key: value for key, value in data.items() if key != "step"}
    if set(given) - names.keys():
        raise ValueError(f"step {kind.name}: unknown field {min(set(given) - names.keys())!r}")
    wrong = [name for name, value in given.items() if not _fits(value, names[name])]
    if wrong:
        raise ValueError(f"step {kind.name}: {wrong[0]} is no {names[wrong[0]]}")
    return kind(**{key: _value(key, value) for key, value in given.items()})  # type: ignore[arg-type]  # checked by name above


def _fits(value: JsonValue, kind: str) -> bool:
    """Whether a value is of the kind that a field of a step has; numbers have an end."""
    match kind:
        case "str":
            return isinstance(value, str)
        case "int":
            return type(value) is int
        case "float":
            return type(value) in {int, float} and 0 <= value < LONGEST_S  # type: ignore[operator]  # as the line says
        case _:
            return isinstance(value, dict if kind.startswith("Mapping") else list)


def _plain(value: object) -> JsonValue:
    if isinstance(value, SecretRef):
        return {"secret": value.name}
    if isinstance(value, Keep):
        return {"keep": True}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a step")


def _value(key: str, value: JsonValue) -> object:
    match key, value:
        case "entries", list():
            return tuple(_entry(item) for item in value)
        case "argv", list():
            return tuple(str(item) for item in value)
        case "processes", list():
            return tuple((int(pair[0]), int(pair[1])) for pair in value if isinstance(pair, list))  # type: ignore[arg-type]  # pairs of ints by construction
        case _:
            return value


def _entry(item: JsonValue) -> EnvEntry:
    match item:
        case [str(name), {"secret": str(secret)}]:
            return name, SecretRef(name=secret)
        case [str(name), {"keep": True}]:
            return name, KEEP
        case [str(name), str(value)]:
            return name, value
        case _:
            raise ValueError("an env entry is [name, value], [name, {secret: key}] or [name, {keep: true}]")

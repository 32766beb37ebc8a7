"""A plan as a file: everything that `apply PLANFILE` carries out, versioned, without a secret. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from vmreconcile.core.fingerprints import digest, shown
from vmreconcile.core.reports import change_json, plan_json
from vmreconcile.errors import UsageError
from vmreconcile.model.desired import DesiredFleet, DesiredServer
from vmreconcile.model.gpus import Figures, Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase
from vmreconcile.model.plan import Action, Change, Field, Gate, Plan, Reason
from vmreconcile.model.steps import Step, from_json, to_json
from vmreconcile.model.values import JsonValue

FORMAT_VERSION = 2
KIND = "vmreconcile-plan"

Json = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPlan:
    """A plan read back: its changes, and the digest of what was wanted of each server."""

    changes: tuple[Change, ...]
    wanted: Mapping[ServerId, str]
    inventory: str


def render(plan: Plan, desired: DesiredFleet, *, version: str, inventory: str) -> str:
    """The file's text. `inventory` is a digest of the hosts and how they are reached."""
    wanted = {server.id: wanted_digest(server) for server in desired.servers}
    document: Json = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "made_by": f"vmreconcile {version}",
        "inventory": inventory,
        "plan": plan_json(plan),
        "changes": [
            {
                **change_json(change),
                "phase": change.phase.value,
                "early": change.early,
                "frees": change.frees,
                "after": [str(server) for server in change.after],
                "stops": [to_json(step) for step in change.stops],
                "steps": [to_json(step) for step in change.steps],
                "gate": asdict(change.gate) if change.gate else None,
                "placed": asdict(change.placed) if change.placed else None,
                "observed": dict(change.digest),
                "wanted": wanted.get(change.server),
            }
            for change in plan.pending
        ],
    }
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def wanted_digest(server: DesiredServer) -> str:
    """A digest of all that is wanted of a server, so that a plan made from other files is noticed.

    Values that look secret are left out: a short one could be guessed from a digest. Steps take them as they are when
    the plan is carried out.
    """
    env = {name: replace(each, value=shown(name, str(each.value))) for name, each in server.env.items()}
    text = json.dumps(asdict(replace(server, env=env)), sort_keys=True, default=str)
    return digest(text)


def parse(text: str, file: str) -> SavedPlan:
    """Read a plan file.

    Raises:
        UsageError: where it is no plan file, or one of another version.
    """
    none = UsageError(f"{file} is not a plan of vmreconcile", remedy="make one with: vmreconcile plan -o FILE")
    if text.strip() and not text.lstrip().startswith("{"):
        raise none
    try:
        document = json.loads(text)
        if document.get("kind") != KIND:
            raise none
        if document.get("format_version") != FORMAT_VERSION:
            made_by = document.get("made_by")
            raise UsageError(f"{file} was made by another version ({made_by})", remedy="make the plan again")
        changes = tuple(_change(item) for item in document["changes"])
        wanted = {ServerId.parse(item["server"]): str(item["wanted"]) for item in document["changes"] if item["wanted"]}
        return SavedPlan(changes=changes, wanted=wanted, inventory=str(document["inventory"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{file} is damaged: {error}", remedy="make the plan again") from error


def _change(item: Mapping[str, JsonValue]) -> Change:
    server = ServerId.parse(str(item["server"]))
    return Change(
        server=server,
        action=Action(str(item["action"])),
        reason=Reason(str(item["reason"])),
        phase=Phase(str(item["phase"])),
        disruptive=bool(item["disruptive"]),
        early=bool(item["early"]),
        frees=bool(item["frees"]),
        after=tuple(ServerId.parse(str(each)) for each in _list(item["after"])),
        fields=tuple(_field(field) for field in _list(item["fields"])),
        stops=_steps(item["stops"], server),
        steps=_steps(item["steps"], server),
        gate=_gate(item["gate"]),
        placed=_placed(item["placed"]),
        digest=_object(item["observed"]),
    )


def _placed(value: JsonValue) -> Placed | None:
    if value is None:
        return None
    data = _object(value)
    texts = {name: tuple(map(str, _list(data[name]))) for name in ("devices", "visible", "reasons")}
    requested = tuple(int(str(size)) for size in _list(data["requested"]))
    if requested and len(requested) != len(texts["devices"]):
        raise ValueError("a server's devices and its memory do not match")
    least = None if data["least"] is None else Figures(**_numbers(data["least"]))  # type: ignore[arg-type]  # as written
    return Placed(settings=_numbers(data["settings"]), requested=requested, least=least, **texts)


def _numbers(value: JsonValue) -> Json:
    """An object of numbers and nulls: what a plan decides about memory is nothing else."""
    found = _object(value)
    if any(isinstance(each, bool) or not isinstance(each, int | float | None) for each in found.values()):
        raise ValueError("what was decided about memory are numbers")
    return found


def _list(value: JsonValue) -> list[JsonValue]:
    if not isinstance(value, list):
        raise ValueError("a list is missing")  # noqa: TRY004 - parse reports ValueError
    return value


def _object(value: JsonValue) -> Json:
    if not isinstance(value, dict):
        raise ValueError("an object is missing")  # noqa: TRY004 - parse reports ValueError
    return value


def _gate(value: JsonValue) -> Gate | None:
    if value is None:
        return None
    said = _object(value)
    gate = Gate(**{**said, "models": tuple(map(str, _list(said["models"])))})  # type: ignore[arg-type]  # looked at below
    numbers = type(gate.timeout) in {int, float} and type(gate.soak) in {int, float}
    if not (numbers and type(gate.port) is int and isinstance(gate.address, str) and isinstance(gate.runner, str)):
        raise ValueError("a gate has an address, a port and numbers of seconds")
    return gate


def _steps(value: JsonValue, server: ServerId) -> tuple[Step, ...]:
    steps = tuple(from_json(_object(step)) for step in _list(value))
    for step in steps:
        if not _is_about(step, server):
            raise ValueError(f"a step of {server} ({step.name}) is about something else")
    return steps


def _is_about(step: Step, server: ServerId) -> bool:
    """Whether a step is about this server alone: what was agreed to for one must not be done to another."""
    names = {server.unit, *(f"{server.slug}.{ending}" for ending in ("env", "token", "log"))}
    paths = (getattr(step, field, server.unit) for field in ("path", "env_path", "log_path"))
    slug, unit = getattr(step, "slug", server.slug), getattr(step, "unit", "")
    return slug == server.slug and unit in {"", server.unit} and all(path.rpartition("/")[2] in names for path in paths)


def _field(value: JsonValue) -> Field:
    data = _object(value)
    return Field(path=str(data["path"]), before=data["before"], after=data["after"], origin=str(data.get("origin", "")))


def confirm(saved: SavedPlan, fresh: Plan, desired: DesiredFleet) -> Plan:
    """The saved changes as they may be carried out now: one whose host or files moved is blocked, the field named.

    `fresh` is a plan made just now from the same files; only its observed state is used.
    """
    now = {change.server: change for change in fresh.changes}
    wanted = {server.id: wanted_digest(server) for server in desired.servers}
    lost = {host.host for host in fresh.unreachable}
    kept = tuple(
        _confirmed(change, now.get(change.server), saved.wanted.get(change.server), wanted.get(change.server))
        for change in saved.changes
        if change.server.host not in lost
    )
    gone = tuple(change.server for change in saved.changes if change.server.host in lost)
    return replace(fresh, changes=kept, unreachable_servers=gone)


def _confirmed(change: Change, now: Change | None, planned: str | None, wanted: str | None) -> Change:
    seen: Mapping[str, JsonValue] = now.digest if now else {}
    moved = sorted(name for name in {*change.digest, *seen} if seen.get(name) != change.digest.get(name))
    if planned != wanted:
        moved.append("what the files ask for")
    if now is not None and change.pending and change.placed and change.placed.devices != _devices(now):
        moved.append("the GPUs that it would get")
    if now is not None:  # what the file says of both is a matter of trust, and --max-changes counts the second
        takes_down = change.disruptive or (now.phase is Phase.READY and bool(change.stops))
        change = replace(change, phase=now.phase, disruptive=takes_down)
    refused = replace(change, action=Action.BLOCKED, disruptive=False, early=False, stops=(), steps=())
    if moved:
        note = f"changed since the plan was made: {', '.join(moved)}"
        return replace(refused, reason=Reason.PLAN_STALE, note=note, remedy="make the plan again")
    if now is not None and now.action is Action.BLOCKED:
        return replace(refused, reason=now.reason, note=now.note, remedy=now.remedy)
    return change


def _devices(change: Change) -> tuple[str, ...]:
    return change.placed.devices if change.placed else ()

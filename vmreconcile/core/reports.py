"""The JSON documents of the outward contract: plan, status, apply, diagnostics. Pure; holds no secret."""

from __future__ import annotations

from collections.abc import Iterable

from vmreconcile.core.gpus.figures import memory_json
from vmreconcile.errors import Diagnostic, Severity
from vmreconcile.model.gpus import Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, HostView, ObservedServer, Orphan, Phase, Stranger, Unreachable
from vmreconcile.model.outcome import Outcome, Result, Status
from vmreconcile.model.plan import Action, Change, Field, Plan, Waves
from vmreconcile.model.values import JsonValue

FORMAT_VERSION = 1

Json = dict[str, JsonValue]


def plan_json(plan: Plan) -> Json:
    """`plan --json`: changes are what is not in sync, servers are all."""
    return {
        "format_version": FORMAT_VERSION,
        "summary": summary_json(plan),
        "changes": [change_json(change) for change in plan.changes if change.action is not Action.NOOP],
        "servers": [*map(_server_json, plan.changes), *map(_unreachable_server_json, plan.unreachable_servers)],
        "placements": [
            placement_json(change.server, change.placed)
            for change in plan.changes
            if change.placed and change.placed.devices
        ],
        "waves": [waves_json(waves) for waves in plan.waves],
        "strangers": [stranger_json(stranger) for stranger in plan.strangers],
        "orphans": [orphan_json(orphan) for orphan in plan.orphans],
        "unreachable": [unreachable_json(host) for host in plan.unreachable],
        "diagnostics": [
            *map(diagnostic_json, plan.diagnostics),
            *(note_json(change) for change in plan.changes if change.note),
        ],
    }


def waves_json(waves: Waves) -> Json:
    """In which order a model's servers are taken down."""
    return {
        "model": waves.model,
        "waves": [[str(server) for server in wave] for wave in waves.waves],
        "canaries": waves.canaries,
        "max_unavailable": waves.limit,
        "servers": waves.total,
        "pause_seconds": waves.pause,
        "downtime": waves.downtime,
    }


def summary_json(plan: Plan) -> Json:
    """How many servers get each action, and how many hosts are unreachable."""
    counts: Json = {action.value: 0 for action in Action}
    for change in plan.changes:
        counts[change.action.value] = int(str(counts[change.action.value])) + 1
    counts["unreachable"] = len(plan.unreachable)
    return counts


def change_json(change: Change) -> Json:
    """One change, with exactly the contract's keys; its note goes to the diagnostics."""
    return {
        "server": str(change.server),
        "host": change.server.host,
        "model": change.server.model,
        "action": change.action.value,
        "reason": change.reason.value,
        "disruptive": change.disruptive,
        "fields": [field_json(field) for field in change.fields],
    }


def placement_json(server: ServerId, placed: Placed) -> Json:
    """The GPUs of a server that is to run, by rank, the numbers that the tool chose for it, and why."""
    return {
        "server": str(server),
        "devices": list(placed.devices),
        "settings": dict(sorted(placed.settings.items())),
        "requested_bytes": list(placed.requested),
        "reasons": list(placed.reasons),
    }


def field_json(field: Field) -> Json:
    """One differing field."""
    return {"path": field.path, "before": field.before, "after": field.after}


def note_json(change: Change) -> Json:
    """What a person is told beside a change, such as who holds the port, in a diagnostic's shape."""
    blocked = change.action is Action.BLOCKED
    return {
        "file": None,
        "line": None,
        "column": None,
        "severity": (Severity.ERROR if blocked else Severity.WARNING).value,
        "code": change.reason.value,
        "summary": f"{change.server}: {change.note}",
        "why": "",
        "remedy": change.remedy,
        "suggestion": "",
    }


def _server_json(change: Change) -> Json:
    return {
        "server": str(change.server),
        "host": change.server.host,
        "action": change.action.value,
        "phase": change.phase.value,
    }


def _unreachable_server_json(server: ServerId) -> Json:
    return {"server": str(server), "host": server.host, "action": "noop", "phase": "unknown"}


def stranger_json(stranger: Stranger) -> Json:
    """A vLLM that is not ours."""
    return {
        "host": stranger.host,
        "pid": stranger.pid,
        "port": stranger.port,
        "what": stranger.what,
    }


def orphan_json(orphan: Orphan) -> Json:
    """A worker whose root is gone."""
    return {"host": orphan.host, "pid": orphan.pid, "gpu_memory_bytes": orphan.gpu_memory_bytes}


def unreachable_json(host: Unreachable) -> Json:
    """A host that could not be observed."""
    return {"host": host.host, "reason": host.reason}


def diagnostic_json(diagnostic: Diagnostic) -> Json:
    """A located problem."""
    return {
        "file": diagnostic.place.file,
        "line": diagnostic.place.line or None,
        "column": diagnostic.place.column or None,
        "severity": diagnostic.severity.value,
        "code": diagnostic.code,
        "summary": diagnostic.summary,
        "why": diagnostic.why,
        "remedy": diagnostic.remedy,
        "suggestion": diagnostic.suggestion,
    }


def diagnostics_json(diagnostics: Iterable[Diagnostic]) -> Json:
    """`validate --json`, and what any command prints with --json when its input is invalid."""
    return {"format_version": FORMAT_VERSION, "diagnostics": [diagnostic_json(each) for each in diagnostics]}


def apply_json(outcome: Outcome) -> Json:
    """`apply --json`; `unreachable` counts servers, as `changed`, `ok` and `failed` do."""
    return {
        "format_version": FORMAT_VERSION,
        "changed": outcome.count(Status.CHANGED),
        "ok": outcome.count(Status.OK),
        "failed": outcome.count(Status.FAILED),
        "unreachable": outcome.count(Status.UNREACHABLE),
        "results": [result_json(result) for result in outcome.results],
    }


def result_json(result: Result) -> Json:
    """One server's outcome."""
    failure = result.failure
    error: JsonValue = None
    if failure is not None:
        error = {
            "class": failure.kind,
            "summary": failure.summary,
            "evidence": failure.evidence,
            "remedy": failure.remedy,
        }
    return {
        "server": str(result.server),
        "action": result.action.value,
        "status": result.status.value,
        "seconds": result.seconds,
        "error": error,
    }


def status_json(view: FleetView, plan: Plan) -> Json:
    """`status --json`: every server that is wanted or ours, with its drift."""
    rows = [status_row(change, view) for change in plan.changes]
    return {
        "format_version": FORMAT_VERSION,
        "servers": [*rows, *map(_unknown_row, plan.unreachable_servers)],
        "strangers": [stranger_json(stranger) for stranger in plan.strangers],
        "orphans": [orphan_json(orphan) for orphan in plan.orphans],
        "unreachable": [unreachable_json(host) for host in plan.unreachable],
    }


def status_row(change: Change, view: FleetView) -> Json:
    """One server of `status`."""
    server = change.server
    host = view.host(server.host)
    observed = host.server(server.slug) if host else ObservedServer(slug=server.slug)
    process, endpoint = observed.process, observed.endpoint
    return {
        "server": str(server),
        "host": server.host,
        "model": server.model,
        "phase": change.phase.value,
        "pid": process.pid if process else None,
        "port": endpoint.port if endpoint else (change.gate.port if change.gate else None),
        "gpus": list(gpus_of(observed, host)) if host else [],
        "gpu_memory_bytes": gpu_memory_of(observed, host) if host else None,
        "started_at": process.started_at if process else None,
        "vllm_version": endpoint.version if endpoint else None,
        "runtime": observed.runtime or None,
        "memory": memory_json(observed.record.measured if observed.record else None),
        "drift": [field_json(field) for field in change.fields],
    }


def _unknown_row(server: ServerId) -> Json:
    empty: Json = dict.fromkeys(("pid", "port", "gpu_memory_bytes", "started_at", "vllm_version", "runtime", "memory"))
    return {
        "server": str(server),
        "host": server.host,
        "model": server.model,
        "phase": Phase.UNKNOWN.value,
        **empty,
        "gpus": [],
        "drift": [],
    }


def gpus_of(observed: ObservedServer, host: HostView) -> tuple[int, ...]:
    """Indices of the GPUs on which the server's processes hold memory."""
    return tuple(gpu.index for gpu in host.gpus if gpu.held_by(observed.pids))


def gpu_memory_of(observed: ObservedServer, host: HostView) -> int | None:
    """Bytes that the server's processes hold on all GPUs; None where no GPU is seen."""
    if not host.gpus:
        return None
    pids = observed.pids
    return sum(used or 0 for gpu in host.gpus for pid, used in gpu.processes if pid in pids)

"""One server, wanted beside observed: settings with their origin, the argv it would be started with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from vmreconcile.core.diff import drift_of
from vmreconcile.core.fingerprints import shown as showable
from vmreconcile.core.gates import USUAL_TIMEOUT_S, startup_timeout, weights_of
from vmreconcile.core.gpus.figures import memory_json
from vmreconcile.core.launching import public_env
from vmreconcile.core.phases import phase_of
from vmreconcile.core.planning import subject_of
from vmreconcile.core.reports import field_json, placement_json
from vmreconcile.core.selection import similar
from vmreconcile.errors import UsageError
from vmreconcile.flows.prepare import Prepared
from vmreconcile.flows.reconcile import EVERYTHING, plan_of
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer, Unreachable
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.tuning import Tuned
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import SECRET_ARGUMENTS, from_argv

ORIGIN_OF = {"hf_token": "token"}
"""Where a field's name in files differs from its name in `DesiredServer`."""

Json = dict[str, JsonValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The document, and the host's obstacle where it could not be seen."""

    document: Json = field(default_factory=dict)
    unreachable: Unreachable | None = None


def show_server(server: ServerId, prepared: Prepared) -> Shown:
    """Everything there is to say of one server.

    Raises:
        UsageError: it is neither wanted nor seen on its host.
    """
    wanted = next((each for each in prepared.inputs.desired.servers if each.id == server), None)
    view = prepared.fleet.observe([server.host], once=True, metrics=True, stalls=True)
    host = view.hosts[0] if view.hosts else None
    observed = host.server(server.slug) if host else None
    if wanted is None and (observed is None or observed == ObservedServer(slug=server.slug)):
        near = similar(str(server), prepared.inputs.desired)
        raise UsageError(f"{server} is neither wanted nor there{near}", remedy="vmreconcile status lists the servers")
    document: Json = {
        "format_version": 1,
        "server": str(server),
        "host": server.host,
        "model": server.model,
        "desired": _wanted(wanted) if wanted else None,
        "observed": _observed(observed, host, wanted) if observed and host else None,
        "argv": None,
        "placement": None,
        "memory": memory_json(observed.record.measured) if observed and observed.record else None,
        "tuning": [],
        "drift": [],
    }
    if wanted and host:
        plan = plan_of(prepared, EVERYTHING, view)
        placed = next((change.placed for change in plan.changes if change.server == server), None)
        subject = subject_of(wanted, host, prepared.known, placed)
        document["placement"] = placement_json(server, placed) if placed and placed.devices else None
        document["desired"] = _wanted(subject.wanted)
        document["tuning"] = [tuned_json(each) for each in subject.tuning]
        document["argv"] = list(subject.launch.argv)
        document["drift"] = [field_json(each) for each in drift_of(subject).fields]
    return Shown(document=document, unreachable=view.unreachable[0] if view.unreachable else None)


def tuned_json(each: Tuned) -> Json:
    """What one tuning rule did to one argument."""
    return {
        "argument": each.argument,
        "value": each.value,
        "rule": each.rule.name,
        "done": each.done,
        "reason": each.rule.reason,
        "source": each.rule.source or None,
        "origin": str(each.rule.place) if each.rule.place else None,
    }


def _wanted(server: DesiredServer) -> Json:
    fields: dict[str, JsonValue] = {
        "model": server.model,
        "revision": server.revision,
        "port": server.port,
        "state": server.state.value,
        "gpus": list(server.gpus) if isinstance(server.gpus, tuple) else server.gpus,
        "needs": {name: value for name, value in asdict(server.needs).items() if value is not None} or None,
        "cordon": server.cordon or None,
        "host_cordon": server.host_cordon or None,
        "cordoned_gpus": list(server.cordoned_gpus) or None,
        "hf_token": server.token,
        "runtime": server.runtime or "auto",
        "executable": server.executable or "vllm on PATH",
    }
    origins = server.origins
    out: Json = {
        name: {"value": value, "origin": str(origins.get(ORIGIN_OF.get(name, name), "default"))}
        for name, value in fields.items()
    }
    out["args"] = {
        name: {
            "value": HIDDEN if name in SECRET_ARGUMENTS else setting.value,
            "origin": str(setting.origin),
        }
        for name, setting in sorted(server.settings.items())
    }
    out["env"] = {
        name: {
            "value": showable(name, value),
            "origin": str(server.env[name].origin) if name in server.env else "vmreconcile",
        }
        for name, value in sorted(public_env(server).items())
    }
    return out


def _observed(observed: ObservedServer, host: HostView, wanted: DesiredServer | None) -> Json:
    process, endpoint = observed.process, observed.endpoint
    timeout = startup_timeout(wanted, weights_of(observed, None)) if wanted else USUAL_TIMEOUT_S
    version = (endpoint.version if endpoint else None) or host.installed(wanted.executable if wanted else "").version
    command = from_argv(process.argv, catalogue_for(version)) if process else None
    settings: Json = {}
    if command:
        settings = {
            name: HIDDEN if name in SECRET_ARGUMENTS else value for name, value in sorted(command.settings.items())
        }
    return {
        "phase": phase_of(observed, host.now, timeout).value,
        "runtime": observed.runtime or None,
        "pid": process.pid if process else None,
        "started_at": process.started_at if process else None,
        "argv": list(process.argv) if process else None,
        "model": command.model if command else None,
        "args": settings,
        "vllm_version": endpoint.version if endpoint else None,
        "max_model_len": endpoint.max_model_len if endpoint else None,
        "requests_running": endpoint.requests_running if endpoint else None,
        "requests_waiting": endpoint.requests_waiting if endpoint else None,
        "cache_config": dict(sorted(endpoint.cache_config.items())) if endpoint else {},
        "orphans": [worker.pid for worker in observed.orphans],
    }

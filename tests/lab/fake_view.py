"""The observation of a host in memory, in the form of docs/wire.md. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.lab.fake_kernel import FakeProcess, models_of, port_of
from vmreconcile.agent import envfile
from vmreconcile.core.fingerprints import fingerprint, shown
from vmreconcile.model.secret import HIDDEN

if TYPE_CHECKING:
    from tests.lab.fake_host import FakeHost

Json = dict[str, Any]
REPORTED = ("VMRECONCILE_", "VLLM_", "HF_", "CUDA_")


def observation(host: FakeHost, request: Json) -> Json:
    """Everything there is to see."""
    only = request["servers"]
    slugs = [slug for slug in host.slugs() if only is None or slug in only]
    roots = {process.pid: slug for slug in host.slugs() if (process := host.root(slug))}
    return {
        "format": 1,
        "host": {
            "hostname": host.hostname,
            "boot_id": host.kernel.boot_id,
            "now": host.kernel.now,
            "uid": host.kernel.uid,
            "user": host.user,
            "home": host.home,
            "python": "3.11.2",
            "agent": "",
        },
        "folders": {
            "config": host.config,
            "state": host.state,
            "writable": not host.folder_problem,
            "problem": host.folder_problem,
        },
        "systemd": _systemd(host),
        "servers": [_server(host, slug, request) for slug in slugs],
        "strangers": [_stranger(each, host.held(request)) for each in host.strangers()],
        "orphans": [],
        "ports": [_port(host, port, roots) for port in sorted(request["ports"]) if host.kernel.listener(port)],
        "vllm": [_installed(host, asked) for asked in sorted(request["executables"])],
        "architectures": [
            {"slug": row["slug"], "names": list(host.architectures[row["model"]])}
            for row in request.get("models") or ()
            if row["model"] in host.architectures
        ],
        "gpus": host.seen_gpus() if request.get("gpus") else None,
    }


def _systemd(host: FakeHost) -> Json:
    problem = None if host.systemd.version else "systemd does not run this host"
    scope = "system" if host.kernel.uid == 0 else "user"
    return {"version": host.systemd.version, "scope": scope, "lingering": host.lingering, "problem": problem}


def _server(host: FakeHost, slug: str, request: Json) -> Json:
    salt, held = request["salt"], host.held(request)
    record, root, unit = host.record(slug), host.root(slug), _unit(host, slug, salt)
    runtime = (record or {}).get("runtime") or ("systemd" if unit else "process" if record else None)
    file = host.kernel.files.get(f"{host.config}/env/{slug}.env")
    return {
        "slug": slug,
        "record": record,
        "runtime": runtime,
        "process": {**_process(host, slug, root, salt), **_family(host, root, held)} if root else None,
        "orphans": [_worker(each, held) for each in host.orphans(slug)],
        "unit": unit,
        "env_file": _env_file(host, slug, salt) if file else None,
        "endpoint": _endpoint(host, slug, root, request) if root else None,
        "log": {
            "kind": "journal" if runtime == "systemd" else "file",
            "path": f"{host.state}/log/{slug}.log",
            "written_at": host.kernel.log_times.get(slug),
        },
    }


def _process(host: FakeHost, slug: str, root: FakeProcess, salt: str) -> Json:
    file = host.kernel.files.get(f"{host.config}/env/{slug}.env")
    names = set(envfile.parse(file.content)) if file else set()
    names |= set((host.record(slug) or {}).get("env_names", []))
    env = {key: value for key, value in root.env.items() if key in names or key.startswith(REPORTED)}
    return {
        "pid": root.pid,
        "start_ticks": root.start_ticks,
        "started_at": root.started_at,
        "argv": list(root.argv),
        "cwd": host.state,
        "uid": host.kernel.uid,
        "ports": [root.port] if root.port and host.kernel.health(root) is not None else [],
        "rss_bytes": 0,
        "env": _described(env, salt),
    }


def _family(host: FakeHost, root: FakeProcess, held: Mapping[int, int]) -> Json:
    """What a root holds of GPUs, and what it has started."""
    children = [_worker(each, held) for each in host.kernel.workers(root)]
    return {"gpu_memory_bytes": held.get(root.pid), "children": children}


def _unit(host: FakeHost, slug: str, salt: str) -> Json | None:
    name = f"vmreconcile-{slug}.service"
    if host.systemd.version is None or name not in host.systemd.names():
        return None
    unit, text = host.systemd.unit(name), host.systemd.text(name)
    return {
        "name": name,
        "path": f"{host.systemd.folder}/{name}",
        "load": "loaded" if unit.loaded is not None else "not-found",
        "active": unit.active,
        "sub": unit.sub,
        "result": unit.result,
        "enabled": "enabled" if unit.enabled else "disabled",
        "restarts": unit.restarts,
        "main_pid": unit.main_pid,
        "exit_code": unit.exit_code,
        "text": text,
        "drop_ins": host.systemd.drop_ins.get(slug, []),
        "needs_reload": unit.loaded != text,
        "token_places": [
            {**place, "fingerprint": fingerprint(salt, "HF_TOKEN", place["value"])}
            for place in host.systemd.token_places.get(slug, [])
        ],
    }


def _env_file(host: FakeHost, slug: str, salt: str) -> Json:
    path = f"{host.config}/env/{slug}.env"
    file = host.kernel.files[path]
    problem = host.env_problem or None
    if file.mode & 0o077:
        problem = f"{path}: mode {file.mode:04o}, others than its owner may use it"
    token = host.kernel.files.get(f"{host.config}/env/{slug}.token")
    kept = {"HF_TOKEN": token.content} if token else {}
    env = _described(envfile.parse(file.content) | kept, salt)
    return {
        "path": path, "mode": file.mode, "uid": file.uid, "mtime": file.mtime, "problem": problem, "env": env,
    }  # fmt: skip


def _endpoint(host: FakeHost, slug: str, root: FakeProcess, request: Json) -> Json:
    health = host.kernel.health(root)
    port = port_of(root.argv)
    silent = {"address": "127.0.0.1", "port": port, "health": None, "problem": f"not listening on port {port}"}
    if health is None:
        return {**silent, "version": None, "models": [], "metrics": None, "stalled_s": None}
    stalls, stalled = bool(request.get("stalls")), root.behaviour.stalled_s
    length = root.behaviour.context if root.length is None else root.length
    models = [{"id": name, "root": name, "max_model_len": length} for name in models_of(root)]
    running = _requests(host, slug) if request.get("metrics") else 0 if stalls else None
    running = running if stalled is None or running is None else max(1, running)
    said = {"requests_running": running, "requests_waiting": 0, "cache_config": dict(root.cache_config)}
    metrics = said if running is not None else None
    answered = {"version": root.version, "models": models, "metrics": metrics, "stalled_s": stalled if stalls else None}
    return {**silent, "health": health, "problem": None, **answered}


def _requests(host: FakeHost, slug: str) -> int | None:
    """How many requests run at this look at a server's metrics; None where it gives none."""
    coming = host.in_flight.get(slug, [0])
    return coming.pop(0) if len(coming) > 1 else coming[0]


def _stranger(process: FakeProcess, held: Mapping[int, int]) -> Json:
    return {
        "pid": process.pid,
        "start_ticks": process.start_ticks,
        "user": process.user,
        "port": process.port,
        "what": " ".join(process.argv),
        "why": "no marker of ours",
        "gpu_memory_bytes": held.get(process.pid),
    }


def _port(host: FakeHost, port: int, roots: Mapping[int, str]) -> Json:
    holder = host.kernel.listener(port)
    assert holder is not None
    what = " ".join(holder.argv)
    return {"port": port, "pid": holder.pid, "user": holder.user, "what": what, "slug": roots.get(holder.pid)}


def _installed(host: FakeHost, asked: str) -> Json:
    found = {path: (path, version) for path, version in host.kernel.installed.values()} | host.kernel.installed
    if asked not in found:
        return {"asked": asked, "path": None, "version": None, "problem": "no such file"}
    path, version = found[asked]
    return {"asked": asked, "path": path, "version": version, "problem": None}


def _worker(process: FakeProcess, held: Mapping[int, int]) -> Json:
    return {
        "pid": process.pid,
        "start_ticks": process.start_ticks,
        "title": process.title,
        "gpu_memory_bytes": held.get(process.pid),
    }


def _described(env: Mapping[str, str], salt: str) -> Json:
    out: Json = {}
    for name, value in sorted(env.items()):
        seen = shown(name, value)
        out[name] = {"fingerprint": fingerprint(salt, name, value), "value": None if seen == HIDDEN else seen}
    return out

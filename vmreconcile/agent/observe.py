"""The request `observe`: everything there is to see of vLLM on this host, in one answer. Changes nothing."""

from __future__ import annotations

import os
import sys
import time

from . import endpoint, gpus, masks, proc, survey, units, versions
from .classify import Verdict, classify, serve_index
from .folders import Folders, unwritable
from .problems import Problem
from .sockets import Listeners, user_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .frames import Channel
    from .proc import Process

CREDENTIALS = ("/run/credentials/", "/run/user/")  # where systemd keeps them, for the system and for users
CREDENTIAL = "hf_token"
SHOWN = 2000  # letters of a stranger's command line
SHORT = 200  # letters of a program that holds memory of a GPU


def observe(
    request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]
) -> dict[str, Any]:
    """Answer with the observation (docs/wire.md). `servers` narrows the detail, never whose processes are known."""
    del channel, progress
    checked(request)
    return {"observation": Observation(request, folders).as_json()}


def checked(request: dict[str, Any]) -> None:
    """Refuse a malformed request by name.

    Raises:
        Problem: `bad-request`.
    """
    salt, timeout = request.get("salt"), request.get("http_timeout", 2.0)
    good = isinstance(salt, str) and len(salt) >= 16
    good = good and isinstance(timeout, (int, float)) and 0 < timeout <= 60
    for name, kind in (("executables", str), ("ports", int), ("servers", str)):
        value = request.get(name)
        good = good and (value is None or (isinstance(value, list) and all(isinstance(part, kind) for part in value)))
    if request.get("models") is not None:
        from . import hub_cache  # noqa: PLC0415 - few runs ask

        good = good and hub_cache.are_models(request["models"])
    try:
        bytes.fromhex(salt if isinstance(salt, str) else "-")
    except ValueError:
        good = False
    if not good:
        raise Problem("bad-request", "observe needs salt (hex, 16 digits or more), and lists of the right kinds")


class Observation:
    """One look at the host; the parts are gathered in the order in which they need one another."""

    def __init__(self, request: dict[str, Any], folders: Folders) -> None:
        """Read everything."""
        self.request = request
        self.folders = folders
        self.salt = bytes.fromhex(request["salt"])
        self.survey = survey.Survey(folders)
        self.survey.read_units()
        self.known = self.survey.known()
        self.processes = survey.processes(self.known)
        self.verdict: Verdict = classify(self.processes, self.known)
        self.listeners = Listeners()
        self.gpus = gpus.observe() if request.get("gpus") else None
        self.held = gpus.memory_by_pid(self.gpus)
        self._name_programs()
        self.ports_of = {
            slug: self.listeners.of([root.pid, *(child.pid for child in self.verdict.children[root.pid])])
            for slug, root in self.verdict.roots.items()
        }
        wanted = request.get("servers")
        self.slugs = [slug for slug in self.survey.slugs() if wanted is None or slug in wanted]
        self.environments = {slug: self.survey.environment(slug) for slug in self.slugs}
        self.endpoints = self._endpoints()

    def as_json(self) -> dict[str, Any]:
        """The whole, in the wire's form."""
        strangers = [self._stranger(process, why) for process, why in self.verdict.strangers]
        asked = sorted(set(self.request.get("executables") or ()))
        return {
            "format": 1,
            "host": self._host(),
            "folders": self._folders(),
            "systemd": self._systemd(),
            "servers": [self._server(slug) for slug in self.slugs],
            "strangers": sorted(strangers, key=lambda row: row["pid"]),
            "orphans": self._workers(self.verdict.loose),
            "ports": self._ports(),
            "vllm": [versions.installed(name, self.folders.home) for name in asked],
            "architectures": self._architectures(),
            "gpus": self.gpus,
        }

    def _name_programs(self) -> None:
        """Say of each process that holds memory of a GPU what it is: whoever is in the way has a name."""
        for device in (self.gpus or {}).get("devices", ()):
            for row in device["processes"]:
                argv = proc.parse_cmdline(proc.cmdline(row["pid"]))
                row["what"] = " ".join(masks.mask_argv(argv))[:SHORT]

    def _host(self) -> dict[str, Any]:
        """Who and where we are."""
        return {
            "hostname": os.uname().nodename,
            "boot_id": self.survey.boot_id,
            "now": round(time.time(), 3),
            "uid": self.folders.uid,
            "user": self.folders.user,
            "home": self.folders.home,
            "python": "{}.{}.{}".format(*sys.version_info[:3]),
            "agent": self.request.get("agent", ""),
            "sees_all": self.folders.uid == 0 or os.path.exists("/proc/1/stat"),
        }

    def _folders(self) -> dict[str, Any]:
        """Our folders, and whether we may write there."""
        refused = [told for told in map(unwritable, (self.folders.config, self.folders.state)) if told]
        return {
            "config": self.folders.config,
            "state": self.folders.state,
            "writable": not refused,
            "problem": self.survey.folder_problem or (refused[0] if refused else None),
        }

    def _systemd(self) -> dict[str, Any]:
        """Whether systemd runs this host, and for whom we could use it."""
        scope = units.scope(self.folders.uid)
        found: dict[str, Any] = {"version": None, "scope": scope, "lingering": None, "problem": None}
        try:
            found["version"] = units.version()
        except Problem as problem:
            found["problem"] = str(problem)
        if found["version"] is None:
            found["problem"] = found["problem"] or "systemd does not run this host"
        elif scope == "user":
            found["lingering"] = units.lingering(self.folders.user)
            if found["lingering"] and not units.has_manager(self.folders.uid):
                found["problem"] = "no systemd manager runs for {}".format(self.folders.user)
        found["problem"] = self.survey.unit_problem or found["problem"]
        return found

    def _endpoints(self) -> dict[str, dict[str, Any]]:
        """Ask every running server of ours over HTTP."""
        asked: dict[str, tuple[str, int, str]] = {}
        found: dict[str, dict[str, Any]] = {}
        for slug in self.slugs:
            root = self.verdict.roots.get(slug)
            if root is None:
                continue
            address, port, listens = whereabouts(root.argv, self.ports_of[slug])
            key = self.environments[slug][0].get("VLLM_API_KEY", "") or option(root.argv, "--api-key", "")
            silent = endpoint.unasked(address, port, "not listening on port {}".format(port))
            if not listens:
                found[slug] = silent
            elif option(root.argv, "--ssl-certfile", ""):
                found[slug] = endpoint.unasked(address, port, "speaks TLS, which is not asked")
            else:
                asked[slug] = (address, port, key)
        timeout, metrics = float(self.request.get("http_timeout", 2.0)), bool(self.request.get("metrics"))
        stalls = stalled if self.request.get("stalls") else None
        found.update(endpoint.observed(asked, timeout, metrics=metrics, stalls=stalls))
        return found

    def _server(self, slug: str) -> dict[str, Any]:
        """One server of ours."""
        root = self.verdict.roots.get(slug)
        record = self.survey.records.get(slug)
        properties = self.survey.unit_properties.get(slug)
        runtime = record.get("runtime") if record else None
        if runtime is None:
            runtime = "systemd" if properties else "process" if record else None
        unit = self._unit(slug, properties) if properties else None
        journal = runtime == "systemd" and not units.appends(unit["text"] if unit else None, self.folders.log(slug))
        return {
            "slug": slug,
            "record": record,
            "runtime": runtime,
            "process": self._process(slug, root) if root else None,
            "orphans": self._workers(self.verdict.orphans.get(slug, [])),
            "unit": unit,
            "env_file": self._env_file(slug),
            "endpoint": self.endpoints.get(slug),
            "log": {
                "kind": "journal" if journal else "file",
                "path": None if journal else self.folders.log(slug),
                "written_at": None if journal else proc.written_at(self.folders.log(slug)),
            },
            "problems": self.survey.problems.get(slug, []),
        }

    def _process(self, slug: str, root: Process) -> dict[str, Any]:
        """The root of a server of ours."""
        names = set(self.environments[slug][0])
        record = self.survey.records.get(slug) or {}
        listed = record.get("env_names")
        names.update(name for name in (listed if isinstance(listed, list) else ()) if isinstance(name, str))
        return {
            "pid": root.pid,
            "start_ticks": root.start_ticks,
            "started_at": proc.started_at(root.start_ticks),
            "argv": masks.mask_argv(root.argv),
            "cwd": proc.link("/proc/{}/cwd".format(root.pid)) or None,
            "uid": root.uid,
            "ports": sorted({port for _, port in self.ports_of[slug]}),
            "rss_bytes": root.rss_bytes,
            "gpu_memory_bytes": self.held.get(root.pid),
            "env": masks.described(self.salt, with_credential(proc.environ(root.pid) or {}), names),
            "children": self._workers(self.verdict.children[root.pid]),
        }

    def _workers(self, workers: list[Process]) -> list[dict[str, Any]]:
        """Workers by pid."""
        rows = [
            {
                "pid": worker.pid,
                "start_ticks": worker.start_ticks,
                "title": worker.title or " ".join(masks.mask_argv(worker.argv))[:SHOWN],
                "gpu_memory_bytes": self.held.get(worker.pid),
            }
            for worker in workers
        ]
        return sorted(rows, key=lambda row: int(str(row["pid"])))

    def _unit(self, slug: str, properties: dict[str, str]) -> dict[str, Any]:
        """A unit with its file's text, and where it or a drop-in names a token."""
        path = properties.get("FragmentPath", "")
        data = proc.read(path) if path else None
        text = None if data is None else proc.text(data)
        unit = units.described(properties["Id"], properties, text)
        unit["token_places"] = self._token_places(slug, path, text, properties.get("DropInPaths", "").split())
        return unit

    def _token_places(self, slug: str, path: str, text: str | None, drop_ins: list[str]) -> list[dict[str, Any]]:
        """Tokens that are named beside our env file."""
        if units.plain(text) and not drop_ins:
            return []
        from . import shadows  # noqa: PLC0415 - few units need it

        texts = [(path, text or ""), *((name, proc.text(proc.read(name) or b"")) for name in drop_ins)]
        return shadows.places(texts, self.folders.env_file(slug), self.salt)

    def _env_file(self, slug: str) -> dict[str, Any] | None:
        """An env file by fingerprints; None where there is none."""
        entries, seen, problem = self.environments[slug]
        if seen is None and problem is None:
            return None
        return {
            "path": self.folders.env_file(slug),
            "mode": seen.st_mode & 0o7777 if seen else None,
            "uid": seen.st_uid if seen else None,
            "mtime": round(seen.st_mtime, 3) if seen else None,
            "problem": problem,
            "env": masks.described(self.salt, entries, set(entries)),
        }

    def _stranger(self, process: Process, why: str) -> dict[str, Any]:
        """A vLLM that is not ours."""
        family = [process.pid, *(child.pid for child in self.verdict.children[process.pid])]
        held = [self.held[pid] for pid in family if pid in self.held]
        listens = self.listeners.of(family)
        return {
            "pid": process.pid,
            "start_ticks": process.start_ticks,
            "user": user_name(process.uid),
            "port": whereabouts(process.argv, listens)[1],
            "what": " ".join(masks.mask_argv(process.argv))[:SHOWN],
            "why": why,
            "gpu_memory_bytes": sum(held) if held else None,
        }

    def _architectures(self) -> list[dict[str, Any]]:
        """What each model that was asked about is; without those that are not on this host."""
        rows = self.request.get("models")
        if not rows:
            return []
        from . import hub_cache  # noqa: PLC0415 - few runs ask

        found = []
        for row in rows:
            env = {**self.survey.environment(row["slug"])[0], **row["env"]}
            cache = hub_cache.cache_folder(env, self.folders.home)
            names = hub_cache.architectures(row["model"], row["revision"], cache)
            found.append({"slug": row["slug"], "names": names})
        return [row for row in found if row["names"]]

    def _ports(self) -> list[dict[str, Any]]:
        """Who holds the wanted ports."""
        slugs = {root.pid: slug for slug, root in self.verdict.roots.items()}
        for slug, root in self.verdict.roots.items():
            slugs.update((child.pid, slug) for child in self.verdict.children[root.pid])
        slugs.update((worker.pid, slug) for slug, workers in self.verdict.orphans.items() for worker in workers)
        rows = []
        for port, pid, uid in self.listeners.taken(self.request.get("ports") or ()):
            argv = proc.parse_cmdline(proc.cmdline(pid)) if pid else ()
            what = " ".join(masks.mask_argv(argv))[:SHOWN] if pid else None
            rows.append({"port": port, "pid": pid, "user": user_name(uid), "what": what, "slug": slugs.get(pid or 0)})
        return rows


def with_credential(environment: dict[str, str]) -> dict[str, str]:
    """An environment with the token that systemd handed over as a credential, as if it were HF_TOKEN."""
    path = environment.get("HF_TOKEN_PATH", "")
    if survey.TOKEN in environment or not path.startswith(CREDENTIALS) or os.path.basename(path) != CREDENTIAL:
        return environment
    token = proc.text(proc.read(path) or b"").strip()
    return dict(environment, **{survey.TOKEN: token}) if token else environment


def stalled(*asked: Any) -> dict[str, float]:  # noqa: ANN401 - passed on
    """For how long servers have done nothing."""
    from . import stalls  # noqa: PLC0415 - only where something is under way

    return stalls.stalled(*asked)


def option(argv: tuple[str, ...], name: str, default: str) -> str:
    """The last value of an option in a server's command line, in either spelling."""
    found = default
    arguments = argv[serve_index(argv) :]
    for at, word in enumerate(arguments):
        left, equals, right = word.partition("=")
        if left.replace("_", "-") == name:
            found = right if equals else (arguments[at + 1] if at + 1 < len(arguments) else default)
    return found


def whereabouts(argv: tuple[str, ...], listens: list[tuple[str, int]]) -> tuple[str, int, bool]:
    """Where a server's API is: (address, port, whether it listens there). The command line says the port, else 8000."""
    text = option(argv, "--port", "8000")
    port = int(text) if text.isdigit() and len(text) < 6 else 8000
    for address, number in listens:
        if number == port:
            return endpoint.ANYWHERE.get(address, address), port, True
    return endpoint.ANYWHERE.get(option(argv, "--host", ""), option(argv, "--host", "")), port, False

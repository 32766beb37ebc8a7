"""A host in memory behind the wire of docs/wire.md: observe, steps, gate and log, with faults to switch on.

It is a session like the one over SSH, so a `Fleet` and a whole `apply` run on it. A model, not a simulator: no real
process, file or port. tests/contract/test_fake_host.py asks the real agent the same.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.lab.fake_gpu_host import GpuHost
from tests.lab.fake_kernel import FakeProcess, Kernel, Refusal, models_of
from tests.lab.fake_lock import FakeLock, FakeSession
from tests.lab.fake_systemd import FakeSystemd
from tests.lab.fake_view import observation
from vmreconcile.agent import envfile
from vmreconcile.agent.history import check as check_revision
from vmreconcile.agent.history import kept
from vmreconcile.agent.measured import check
from vmreconcile.agent.problems import Problem
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError
from vmreconcile.model.launch import MARKER
from vmreconcile.model.secret import Secret

Json = dict[str, Any]
ONE_AT_A_TIME = threading.Lock()


class ControllerDied(Exception):  # noqa: N818 - what happened to the controller
    """The controller was killed: nothing more is asked of any host."""


@dataclass(slots=True)
class Lifeline:
    """How many steps the controller lives; shared by the hosts of a run."""

    steps: int | None = None

    def check(self) -> None:
        """A request begins, or was answered: raise where nobody is there any more to hear of it."""
        if self.steps is not None and self.steps <= 0:
            raise ControllerDied

    def spend(self) -> None:
        """One step more is carried out; raise where it is dead before that."""
        with ONE_AT_A_TIME:
            self.check()
            if self.steps is not None:
                self.steps -= 1


class FakeHost(GpuHost):
    """One host. `kernel` and `systemd` are there to be looked at and broken."""

    def __init__(
        self,
        name: str,
        *,
        systemd: int | None = 252,
        uid: int = 0,
        installed: Mapping[str, tuple[str, str]] | None = None,
        hostname: str = "",
        gpus: int = 0,
    ) -> None:
        """`systemd` is its version, None: none runs. `installed`: what may be asked for → (path, version)."""
        super().__init__()
        self.name = name
        self.hostname = hostname or name
        self.kernel = Kernel(uid=uid, installed=installed, name=name)
        self.user, self.home = ("root", "/root") if uid == 0 else ("op", "/home/op")
        folder = "/etc/systemd/system" if uid == 0 else f"{self.home}/.config/systemd/user"
        self.systemd = FakeSystemd(self.kernel, version=systemd, folder=folder)
        self.config = "/etc/vmreconcile" if uid == 0 else f"{self.home}/.config/vmreconcile"
        self.state = "/var/lib/vmreconcile" if uid == 0 else f"{self.home}/.local/state/vmreconcile"
        self.lingering: bool | None = None if uid == 0 else False
        self.tick = 1.0
        self.checkup: Json = {}
        self.clock_off = 0.0
        """Seconds that its clock is ahead of the controller's, as troubleshooting asks for it."""
        self.architectures: dict[str, list[str]] = {}
        """What the config.json of a model on this host names."""
        self.checkpoints: dict[str, Json] = {}
        """What it has of a model's files: `config`, and `tensors` as rows of the wire."""
        self.fetching: dict[str, Refusal] = {}
        """What comes of fetching a model; without an entry it is fetched."""
        self.fetched: list[tuple[str, bool]] = []
        """Models fetched, each with whether a server of that name ran meanwhile."""
        self.hub: dict[tuple[str, str], str] = {}
        self.in_flight: dict[str, list[int | None]] = {}
        """Requests that run at each look at a server's metrics, the last of them from then on; None: no metrics."""
        self.unreachable = ""
        self.lost_after: int | None = None
        self.folder_problem: str | None = None
        self.env_problem = ""
        """What is wrong with the env files of all servers."""
        self.failing: dict[str, Refusal] = {}
        self.lifeline = Lifeline()
        self.run_lock = FakeLock()
        self.requests: list[Json] = []
        self.done: list[Json] = []
        self.answers: list[Json] = []
        if gpus:
            self.add_gpus(gpus)

    # The session

    def request(
        self,
        payload: Mapping[str, object],
        *,
        timeout: float,
        on_progress: Callable[[Json], None] | None = None,
    ) -> Json:
        """Answer one request to the session that the host itself is."""
        return self.answer(payload, timeout, on_progress, self)

    def open(self) -> FakeSession:
        """A session of its own, whose lock ends with it."""
        return FakeSession(self)

    def answer(
        self, payload: Mapping[str, object], timeout: float, on_progress: Callable[[Json], None] | None, asker: object
    ) -> Json:
        """Answer one request of a session, through JSON as over the wire."""
        assert timeout > 0
        self.lifeline.check()
        self._reachable()
        request: Json = json.loads(json.dumps(payload, default=_revealed))
        self.requests.append({key: value for key, value in request.items() if key != "secrets"})
        self.kernel.catch_up()
        self.kernel.now += self.tick
        self.kernel.catch_up()
        try:
            if request["do"] in self.failing:
                raise self.failing[request["do"]]
            if request["do"] == "lock":
                answer = self.run_lock.request(request, on_progress or _nobody, asker)
            else:
                if request["do"] == "steps":
                    self.run_lock.keep(asker)
                answer = self._answer(request, on_progress or _nobody)
        except Refusal as refusal:
            raise AgentError(refusal.kind, str(refusal), path=refusal.path) from refusal
        finally:
            self.kernel.catch_up()
        self.answers.append(json.loads(json.dumps(answer)))
        self.lifeline.check()
        return self.answers[-1]

    def close(self) -> None:
        """The host does not mind; its lock is let go."""
        self.gone(self)

    def gone(self, asker: object) -> None:
        """A session has ended."""
        self.run_lock.gone(asker)

    def _reachable(self) -> None:
        if self.unreachable:
            raise UnreachableError(self.unreachable)
        if self.lost_after is not None:
            self.lost_after -= 1
            if self.lost_after < 0:
                raise UnreachableError("the connection was lost")

    def _answer(self, request: Json, progress: Callable[[Json], None]) -> Json:
        match request["do"]:
            case "observe":
                return {"observation": observation(self, request)}
            case "steps":
                return self.steps(request, progress)
            case "gate":
                return self.gate(request)
            case "fetch":
                return self._fetch(request, progress)
            case "checkup":
                now = time.time() + self.clock_off
                return {"checkup": {"clock": {"received": now, "answered": now}, **self.checkup}}
            case "checkpoint" | "revisions" as about:
                return self._files_of_models(request) if about == "checkpoint" else self._histories(request)
            case "hub-check":
                return {"answers": [self._hub_answer(check, request["secrets"]) for check in request["checks"]]}
            case "log":
                slug = request["slug"]
                if slug not in self.kernel.logs:
                    raise Refusal("no-log", f"{self.state}/log/{slug}.log: no log yet")
                progress({"lines": self.kernel.logs[slug][-request["lines"] :]})
                return {}
        raise Refusal("bad-request", f"no request is called {request['do']!r}")

    def _fetch(self, request: Json, progress: Callable[[Json], None]) -> Json:
        """Fetch a model of 3 GiB, or not."""
        path = "/root/.cache/huggingface/hub"
        progress({"event": "size", "need": 3 << 30, "free": 9 << 30, "total": 3 << 30, "path": path})
        progress({"event": "at", "done": 1 << 30, "total": 3 << 30})
        self.fetched.append((request["model"], self.root(request["slug"]) is not None))
        if request["model"] in self.fetching:
            raise self.fetching[request["model"]]
        return {"fetched": 3 << 30, "total": 3 << 30, "path": path}

    def _files_of_models(self, request: Json) -> Json:
        return {"checkpoints": [self._checkpoint(row) for row in request["models"]]}

    def _histories(self, request: Json) -> Json:
        slugs = self.slugs() if request["slugs"] is None else request["slugs"]
        rows = [{"slug": slug, "revisions": self.history(slug), "problem": None} for slug in slugs]
        return {"servers": [row for row in rows if row["revisions"] or request["slugs"] is not None]}

    def _checkpoint(self, row: Json) -> Json:
        return {"slug": row["slug"], "config": None, "tensors": None, **self.checkpoints.get(row["model"], {})}

    def _hub_answer(self, check: Json, secrets: Json) -> Json:
        """What the Hub would say to this host: `hub` maps (model, token) to a verdict, all else may be read."""
        file = self.kernel.files.get(f"{self.config}/env/{check['slug']}.env")
        kept = envfile.parse(file.content).get("HF_TOKEN", "") if file else ""
        name = check["token"]
        token, whose = ("", "none") if name is None or not (name in secrets or kept) else (kept, "env-file")
        if name in secrets:
            token, whose = secrets[name], "controller"
        access = self.hub.get((check["model"], token), "ok")
        return {"slug": check["slug"], "access": access, "detail": "", "token": whose}

    # Whose is what
    def slugs(self) -> list[str]:
        """Every server of which there is a trace."""
        found = {name.removeprefix("vmreconcile-").removesuffix(".service") for name in self.systemd.names()}
        for path in self.kernel.files:
            folder, _, name = path.rpartition("/")
            if folder in {f"{self.state}/servers", f"{self.config}/env"}:
                found.add(name.rpartition(".")[0])
        return sorted(found)

    def root(self, slug: str) -> FakeProcess | None:
        """The root of a server of ours, by the rule of docs/wire.md."""
        record = self.record(slug) or {}
        for process in list(self.kernel.processes.values()):
            if process.title or process.env.get(MARKER) != slug:
                continue
            recorded = (record.get("pid"), record.get("start_ticks"), record.get("boot_id"))
            if process.unit == f"vmreconcile-{slug}.service":
                return process
            if not process.unit and recorded == (process.pid, process.start_ticks, self.kernel.boot_id):
                return process
        return None

    def orphans(self, slug: str) -> list[FakeProcess]:
        """Workers of a server whose root is gone."""
        if self.root(slug) is not None:
            return []
        record = self.record(slug) or {}
        session = record.get("pid") if record.get("boot_id") == self.kernel.boot_id else None
        unit = f"vmreconcile-{slug}.service"
        return [
            each
            for each in list(self.kernel.processes.values())
            if each.title and (each.unit == unit or (not each.unit and each.session == session))
        ]

    def strangers(self) -> list[FakeProcess]:
        """Roots that are not ours."""
        ours = {process.pid for slug in self.slugs() if (process := self.root(slug))}
        return [each for each in list(self.kernel.processes.values()) if not each.title and each.pid not in ours]

    def record(self, slug: str) -> Json | None:
        """The ownership record, None where there is none that can be read."""
        file = self.kernel.files.get(f"{self.state}/servers/{slug}.json")
        try:
            found = json.loads(file.content) if file else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    # gate

    def gate(self, request: Json) -> Json:
        """Health, models and one completion."""
        root = self.root(request["slug"])
        if root is None or root.port != request["port"]:
            problem = "no process of this server runs" if root is None else f"not listening on port {request['port']}"
            failed = {"ok": False, "seconds": 0.0, "problem": problem}
            return {"health": None, "models": [], "problem": problem, "completion": failed}
        health = self.kernel.health(root)
        good = root.behaviour.completes
        completion = {"ok": good, "seconds": 0.1, "problem": None if good else "/v1/completions: no answer within 30 s"}
        return {"health": health, "models": models_of(root), "problem": None, "completion": completion}

    # steps

    def steps(self, request: Json, progress: Callable[[Json], None]) -> Json:
        """Carry steps out in order; the first that fails ends it."""
        changed = False
        if "root" in request:
            root = self.root(request["slug"])
            if request["root"] != ([root.pid, root.start_ticks] if root else None):
                raise Refusal("moved", f"{request['slug']} was planned for another process")
        for index, step in enumerate(request["steps"]):
            self.lifeline.spend()
            try:
                if step["step"] in self.failing:
                    raise self.failing[step["step"]]
                one = STEPS[step["step"]](self, step, request.get("secrets", {}))
            except Refusal as refusal:
                raise AgentError(refusal.kind, str(refusal), path=refusal.path, index=index) from refusal
            self.done.append(step)
            changed = changed or one
            progress({"index": index, "changed": one, "seconds": 0.0})
        return {"changed": changed}

    def write_env(self, step: Json, secrets: Mapping[str, str]) -> bool:
        """The env file, secrets put in."""
        old = self.kernel.files.get(step["path"])
        before = envfile.parse(old.content) if old else {}
        own = step["path"].removesuffix(".env") + ".token"
        if own in self.kernel.files:
            before |= {"HF_TOKEN": self.kernel.files[own].content}
        entries: list[tuple[str, str]] = []
        for name, content in step["entries"]:
            match content:
                case {"keep": True}:
                    entries += [(name, before[name])] if name in before else []
                case {"secret": str(key)}:
                    if key not in secrets:
                        raise Refusal("bad-request", f"write-env: nothing was sent for {name}")
                    entries.append((name, secrets[key]))
                case _:
                    entries.append((name, content))
        if step.get("credential"):
            self.kernel.write(self.ours(own), dict(entries).get("HF_TOKEN", ""), 0o600)
            inside = envfile.parse(old.content) if old else {}
            if step["credential"] == "only" or "HF_TOKEN" not in inside:
                entries = [entry for entry in entries if entry[0] != "HF_TOKEN"]
        return self.kernel.write(self.ours(step["path"]), envfile.render(entries), 0o600)

    def ours(self, path: str) -> str:
        """A path in our folders, or of a unit of ours."""
        unit = path.startswith(f"{self.systemd.folder}/vmreconcile-") and path.endswith(".service")
        if not unit and not path.startswith((self.config + "/", self.state + "/")):
            raise Refusal("not-ours", f"{path}: neither in our folders nor a unit of ours", path)
        return path

    def write_record(self, slug: str, record: Json) -> bool:
        """The ownership record; what a running process is known by is kept."""
        old, root = self.record(slug) or {}, self.root(slug)
        if root is not None and old.get("runtime") == record.get("runtime") == "process":
            record = {**{key: old[key] for key in ("pid", "start_ticks", "boot_id")}, **record}
        record = {**_measured(old), **record}
        return self.kernel.write(f"{self.state}/servers/{slug}.json", json.dumps(record), 0o600)

    def remove_server(self, slug: str) -> bool:
        """Record, env file and log; never below a running process."""
        if self.root(slug) or self.orphans(slug):
            raise Refusal("still-running", f"{slug} is still running")
        env = f"{self.config}/env/{slug}"
        own = [f"{self.state}/{part}" for part in (f"servers/{slug}.json", f"log/{slug}.log", f"history/{slug}.json")]
        paths = (f"{env}.env", f"{env}.token", *own)
        self.kernel.logs.pop(slug, None)
        changed = any([self.kernel.remove(path) for path in paths])  # noqa: C419 - every one of them
        self.run_lock.holder = self.run_lock.holder if self.slugs() else None  # its file went with the folders
        return changed

    def spawn(self, step: Json) -> bool:
        """A server of runtime process."""
        slug = step["slug"]
        if self.root(slug):
            raise Refusal("already-running", f"{slug} runs")
        if self.orphans(slug):
            raise Refusal("orphans-left", f"workers of {slug} are left from before")
        if step["env_path"] not in self.kernel.files:
            raise Refusal("not-found", f"{step['env_path']}: no env file")
        env = {**envfile.parse(self.kernel.files[step["env_path"]].content), MARKER: slug}
        root = self.kernel.start(slug, tuple(step["argv"]), env, log_path=step["log_path"])
        known = {"pid": root.pid, "start_ticks": root.start_ticks, "boot_id": self.kernel.boot_id}
        record = {**_measured(self.record(slug)), **step["record"], **known}
        self.kernel.write(f"{self.state}/servers/{slug}.json", json.dumps(record), 0o600)
        if root.behaviour.exit_code is not None:
            self.kernel.end(root, family=True)
        return True

    def stop_process(self, step: Json) -> bool:
        """TERM, TERM, KILL of the root and all that it started; only what is proven ours."""
        slug, named = step["slug"], (step["pid"], step["start_ticks"])
        if step["boot_id"] != self.kernel.boot_id:
            return False
        record = self.record(slug) or {}
        if (record.get("pid"), record.get("start_ticks")) != named or record.get("boot_id") != step["boot_id"]:
            raise Refusal("not-ours", f"{slug}: our record does not name pid {step['pid']}")
        root = self.root(slug)
        left = self.orphans(slug)
        if root is not None and not self.kernel.term(root) and not self.kernel.term(root):
            self.kernel.end(root, family=True)
        for worker in left:
            self.kernel.processes.pop(worker.pid, None)
        return root is not None or bool(left)

    def end_orphans(self, step: Json) -> bool:
        """Workers without a root, each proven ours first."""
        ours = {(each.pid, each.start_ticks) for each in self.orphans(step["slug"])}
        wanted = {(pid, ticks) for pid, ticks in step["processes"]}
        alive = {pair for pair in wanted if pair[0] in self.kernel.processes}
        if alive - ours:
            raise Refusal("not-ours", f"pid {min(alive - ours)[0]} is no orphan of {step['slug']}")
        for pid, _ in alive:
            self.kernel.processes.pop(pid, None)
        return bool(alive)

    def note_measured(self, step: Json) -> bool:
        """Into the record, for the root that measured it."""
        try:
            check(step["measured"])
        except Problem as problem:
            raise Refusal(problem.kind, str(problem)) from problem
        root, record = self.root(step["slug"]), self.record(step["slug"])
        if root is None or (root.pid, root.start_ticks) != (step["pid"], step["start_ticks"]):
            raise Refusal("moved", f"{step['slug']} was planned for another process")
        if record is None:
            raise Refusal("not-found", f"{step['slug']}: no record to keep it in")
        path = f"{self.state}/servers/{step['slug']}.json"
        return self.kernel.write(path, json.dumps({**record, "measured": step["measured"]}), 0o600)

    def history(self, slug: str) -> list[Json]:
        """The revisions that are kept of a server, oldest first."""
        file = self.kernel.files.get(f"{self.state}/history/{slug}.json")
        found: list[Json] = json.loads(file.content)["revisions"] if file else []
        return found

    def keep_revision(self, step: Json) -> bool:
        """One revision more, as the agent counts them."""
        try:
            check_revision(step["revision"])
        except Problem as problem:
            raise Refusal(problem.kind, str(problem)) from problem
        after, _ = kept(self.history(step["slug"]), step["revision"])
        document = json.dumps({"format": 1, "revisions": after})
        return self.kernel.write(f"{self.state}/history/{step['slug']}.json", document, 0o600)

    def systemctl(self, step: Json) -> bool:
        """One verb, on units of ours only."""
        if self.systemd.version is None:
            raise Refusal("systemctl-failed", "System has not been booted with systemd as init system")
        if step["unit"] and not step["unit"].startswith("vmreconcile-"):
            raise Refusal("not-ours", f"{step['unit']!r} is no unit of ours")
        return self.systemd.call(step["verb"], step["unit"])

    def linger(self) -> bool:
        """As `loginctl enable-linger` does."""
        changed, self.lingering = self.lingering is False, self.lingering if self.lingering is None else True
        return changed

    # What happens to a host

    def kill_root(self, slug: str) -> None:
        """`kill -9` of a server's root: workers stay behind, or systemd clears them away and starts it anew."""
        root = self.root(slug)
        assert root is not None, f"{slug} does not run"
        if not root.unit:
            self.kernel.end(root, family=False)
            return
        unit = self.systemd.unit(root.unit)
        self.systemd.ended(unit, root, 137)
        restarts = unit.restarts
        with contextlib.suppress(Refusal):
            self.systemd.start(unit)
        unit.restarts = restarts

    def reboot(self) -> None:
        """Everything that ran is gone; what is enabled comes back."""
        self.kernel.processes.clear()
        self.kernel.gpus.clear()
        self.kernel.boots += 1
        self.kernel.now += 60
        self.systemd.boot()

    def stranger(self, port: int, *, user: str = "alice") -> FakeProcess:
        """A vLLM that somebody else started."""
        process = self.kernel.add(("/home/alice/venv/bin/python", "/home/alice/venv/bin/vllm", "serve", "/models/m"))
        process.port, process.user, process.version = port, user, "0.32.0"
        return process


def _revealed(value: object) -> str:
    assert isinstance(value, Secret), f"{type(value).__name__} on the wire"
    return value.reveal()


def _measured(record: Json | None) -> Json:
    return {"measured": record["measured"]} if record and "measured" in record else {}


def _nobody(answer: Json) -> None:
    del answer


STEPS: Mapping[str, Callable[[FakeHost, Json, Mapping[str, str]], bool]] = {
    "write-file": lambda host, step, _: host.kernel.write(host.ours(step["path"]), step["content"], step["mode"]),
    "write-env": FakeHost.write_env,
    "remove-file": lambda host, step, _: host.kernel.remove(host.ours(step["path"])),
    "write-record": lambda host, step, _: host.write_record(step["slug"], step["record"]),
    "remove-server": lambda host, step, _: host.remove_server(step["slug"]),
    "systemctl": lambda host, step, _: host.systemctl(step),
    "stop-unit": lambda host, step, _: host.systemctl({**step, "verb": "stop"}),
    "enable-linger": lambda host, *_: host.linger(),
    "spawn": lambda host, step, _: host.spawn(step),
    "stop-process": lambda host, step, _: host.stop_process(step),
    "end-orphans": lambda host, step, _: host.end_orphans(step),
    "note-measured": lambda host, step, _: host.note_measured(step),
    "keep-revision": lambda host, step, _: host.keep_revision(step),
}

"""Whose is what: processes, records and units in, ours, strangers and orphans out. Pure; the only judge of ownership.

A process is ours only with proof (docs/wire.md, "Ours"); a title or a marker alone is never one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Mapping

    from .proc import Process

MODULES = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.cli.main", "vllm")
REAPERS = {"systemd", "init", "tini", "dumb-init", "docker-init", "catatonit", "s6-svscan", "runit", "supervisord"}
SHIMS = ("containerd-shim", "conmon", "process_api")


class Verdict:
    """What was found: `roots` slug → process, `children` root pid → workers, `orphans` slug → rootless workers."""

    def __init__(self) -> None:
        """Start with nothing found."""
        self.roots: dict[str, Process] = {}
        self.children: dict[int, list[Process]] = {}
        self.orphans: dict[str, list[Process]] = {}
        self.strangers: list[tuple[Process, str]] = []
        self.loose: list[Process] = []


class Known:
    """What we know beforehand: the boot, whose folders these are, and by slug records, units and log files."""

    def __init__(
        self,
        boot_id: str,
        records: Mapping[str, Any],
        units: Mapping[str, tuple[str, int]],
        logs: Mapping[str, str],
        *,
        uid: int,
    ) -> None:
        """Take the facts as read; `units` holds (cgroup, main pid) of the units that have a cgroup."""
        self.boot_id = boot_id
        self.uid = uid
        self.records = records
        self.units = units
        self.logs = logs

    def root_of(self, slug: str) -> tuple[int, int] | None:
        """The recorded root of runtime `process` as (pid, start_ticks), if it was of this boot."""
        record = self.records.get(slug)
        if not isinstance(record, dict) or record.get("boot_id") != self.boot_id or not self.boot_id:
            return None
        pid, ticks = record.get("pid"), record.get("start_ticks")
        if type(pid) is not int or type(ticks) is not int or pid < 2:
            return None
        return pid, ticks


def serve_index(argv: tuple[str, ...]) -> int:
    """Where vLLM's own arguments begin in `argv`; 0 where this is no vLLM server.

    A shell, an editor, ssh or docker whose arguments merely mention `vllm serve` is none.
    """
    if not argv:
        return 0
    program = base(argv[0])
    if program == "vllm":
        return 2 if argv[1:2] == ("serve",) else 0
    if not _is_python(program):
        return 0
    at = 1
    while at < len(argv) and argv[at].startswith("-") and argv[at] not in ("-m", "-c", "-"):
        at += 2 if argv[at] in ("-X", "-W") else 1
    if argv[at : at + 1] == ("-m",):
        module = argv[at + 1] if at + 1 < len(argv) else ""
        if module == MODULES[0]:
            return at + 2
        return at + 3 if module in MODULES and argv[at + 2 : at + 3] == ("serve",) else 0
    script = argv[at] if at < len(argv) else ""
    if base(script) == "vllm":
        return at + 2 if argv[at + 1 : at + 2] == ("serve",) else 0
    return at + 1 if script.endswith("/vllm/entrypoints/openai/api_server.py") else 0


def base(path: str) -> str:
    """The last part of a path; a login shell's leading dash is no part of a name."""
    return path.rpartition("/")[2]


def _is_python(program: str) -> bool:
    """Whether a program's name is that of a Python: python, python3, python3.11, pypy3."""
    name = program.rstrip("0123456789.")
    return name in ("python", "pypy") or program in ("python3-intel64", "python3d")


def looks_like_root(process: Process) -> bool:
    """Whether argv is a vLLM server's; a worker's title has replaced its argv."""
    return serve_index(process.argv) > 0 and not process.comm.startswith("VLLM::")


def classify(processes: Mapping[int, Process], known: Known) -> Verdict:
    """Judge every process in `processes` (candidates and the parents of candidates)."""
    verdict = Verdict()
    alive = {pid: process for pid, process in processes.items() if not process.gone}
    for process in _ordered(alive):
        slug, why = owner(process, known)
        if slug and (slug not in verdict.roots):
            verdict.roots[slug] = process
            verdict.children[process.pid] = []
        elif looks_like_root(process) and not _is_forked(process, alive) and not worker_of(process, alive, known):
            verdict.strangers.append((process, why))
            verdict.children[process.pid] = []
    roots = {root.pid for root in verdict.roots.values()} | {process.pid for process, _ in verdict.strangers}
    for process in _ordered(alive):
        if process.pid not in roots:
            _place(process, alive, known, verdict)
    return verdict


def _ordered(processes: Mapping[int, Process]) -> Iterable[Process]:
    """The oldest first: a server's root before what it started."""
    return sorted(processes.values(), key=lambda process: (process.start_ticks, process.pid))


def owner(process: Process, known: Known) -> tuple[str, str]:
    """Say whose root a process is: (slug, "") with proof, else ("", why it is not ours)."""
    marker = process.marker
    for slug, (cgroup, main_pid) in known.units.items():
        if within(process.cgroup, cgroup):
            if marker == slug:
                return (slug, "") if looks_like_root(process) or process.pid == main_pid else ("", "")
            return "", "in our unit of {}, but its environment does not carry our marker".format(slug)
    if not process.environ_seen:
        return "", "its environment cannot be read by us, so it cannot be ours"
    if marker is None:
        return "", "no marker of ours"
    if process.uid != known.uid:  # anybody can set a marker, and may be given a pid that was ours
        return "", "carries our marker for {}, but belongs to uid {}".format(marker, process.uid)
    root = known.root_of(marker)
    if root == (process.pid, process.start_ticks):
        return marker, ""
    if root is None:
        return "", "carries our marker for {}, but no record of this boot names it".format(marker)
    return "", "carries our marker for {}, but the record names pid {}".format(marker, root[0])


def within(cgroup: str, unit: str) -> bool:
    """Whether a cgroup is a unit's, or below it."""
    return bool(unit) and unit != "/" and (cgroup == unit or cgroup.startswith(unit + "/"))


def worker_of(process: Process, alive: Mapping[int, Process], known: Known) -> str:
    """The server of ours that a process was started by, "" without proof.

    The unit's cgroup is proof. A session is proof for a process of our user together with our marker or our log file
    as its output, and only while its leader is the recorded root or gone: a number that another leader holds today
    belongs to that one. vLLM changes no user.
    """
    for slug, (cgroup, _) in known.units.items():
        if within(process.cgroup, cgroup):
            return slug
    for slug in known.records if process.uid == known.uid else ():
        root = known.root_of(slug)
        if root is None or process.session != root[0] or process.start_ticks < root[1]:
            continue
        leader = alive.get(root[0])
        if leader is not None and leader.start_ticks != root[1]:
            continue
        log = known.logs.get(slug, "")
        if process.marker == slug or (log and any(path in (log, log + " (deleted)") for path in process.outputs)):
            return slug
    return ""


def _is_forked(process: Process, alive: Mapping[int, Process]) -> bool:
    """Whether a server's root is its parent: a fork that has not yet set its title."""
    parent = alive.get(process.ppid)
    return parent is not None and looks_like_root(parent)


def _place(process: Process, alive: Mapping[int, Process], known: Known, verdict: Verdict) -> None:
    """File a process that is no root: a child of one, an orphan of ours, or an orphan of nobody's."""
    slug = worker_of(process, alive, known)
    root = verdict.roots.get(slug)
    if slug and root is None:
        verdict.orphans.setdefault(slug, []).append(process)
        return
    ancestor = root if root is not None else _ancestor(process, alive, verdict)
    if ancestor is not None:
        if process.title:
            verdict.children[ancestor.pid].append(process)
    elif process.title and _is_abandoned(process, alive):
        verdict.loose.append(process)


def _ancestor(process: Process, alive: Mapping[int, Process], verdict: Verdict) -> Process | None:
    """The nearest root above a process."""
    seen = set()
    here: Process | None = process
    while here is not None and here.pid not in seen:
        if here.pid in verdict.children:
            return here
        seen.add(here.pid)
        here = alive.get(here.ppid)
    return None


def _is_abandoned(process: Process, alive: Mapping[int, Process]) -> bool:
    """Whether the topmost worker above was handed to init or another reaper."""
    top, seen = process, set()
    while top.pid not in seen:
        seen.add(top.pid)
        parent = alive.get(top.ppid)
        if parent is None or not parent.title:
            return top.ppid <= 1 or parent is None or parent.comm in REAPERS or parent.comm.startswith(SHIMS)
        top = parent
    return True

"""What troubleshooting makes of what was seen: one check a line, the remedy under a failing one. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vmreconcile.core.blocks import Block
from vmreconcile.core.diff import OTHERS
from vmreconcile.core.reports import FORMAT_VERSION, Json
from vmreconcile.model.checkup import Cache, Check, Disk, Health, HostFacts, Leftover
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer, Phase, Unreachable
from vmreconcile.runtimes.registry import choose
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.signatures import Explanation

GIB = 1 << 30
LEAST_STATE = GIB // 4
"""Bytes that the state folder's disk should have free: logs, records, env files."""

LEAST_CACHE = 5 * GIB
LEAST_SHM = GIB
"""Workers of one server talk over shared memory; Docker's default of 64 MiB is the usual trouble."""

LEAST_FILES = 4096
NAMED = 4
"""Leftovers that are named; the others are counted."""

CLOCK_S = 30.0
"""Seconds that a host's clock may be off: TLS and the Hub's signed links bear more, logs beside each other do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One host with everything that was seen of it. `offset`: its clock minus the controller's, in seconds."""

    host: HostView
    facts: HostFacts
    wanted: tuple[DesiredServer, ...] = ()
    phases: Mapping[ServerId, Phase] = field(default_factory=dict)
    why: Mapping[ServerId, Explanation] = field(default_factory=dict)
    offset: float = 0.0


def host_checks(patient: Patient) -> tuple[Check, ...]:
    """Every check of one host, in the order in which a person would look."""
    name = patient.host.host
    found = [
        *_base(patient),
        *_vllm(patient),
        *_gpus(patient),
        *_disks(patient),
        *_limits(patient),
        *_hubs(patient),
        *_servers(patient),
        *_others(patient),
    ]
    return tuple(_on(name, check) for check in found)


def _on(host: str, check: Check) -> Check:
    return Check(
        check=check.check,
        status=check.status,
        summary=check.summary,
        remedy=check.remedy if check.status in {Health.FAIL, Health.WARN} else "",
        host=host,
        server=check.server,
    )


def _judged(name: str, good: bool, summary: str, remedy: str, *, bad: Health = Health.FAIL, server: str = "") -> Check:  # noqa: FBT001 - the verdict itself
    return Check(check=name, status=Health.OK if good else bad, summary=summary, remedy=remedy, server=server)


def _well(name: str, summary: str, *, server: str = "") -> Check:
    return Check(check=name, status=Health.OK, summary=summary, server=server)


def _base(patient: Patient) -> Iterator[Check]:
    host = patient.host
    yield _well("python", f"Python {host.python}, user {host.user}")
    problem = host.folder_problem
    yield _judged(
        "folders",
        not problem,
        problem or f"{host.config_dir} and {host.state_dir} can be written",
        f"let {host.user}, and nobody else, write there, or set vllm_state_dir",
    )
    yield _judged(
        "clock",
        abs(patient.offset) <= CLOCK_S,
        f"the clock is {abs(patient.offset):.0f} s {'ahead' if patient.offset > 0 else 'behind'} of here"
        if abs(patient.offset) >= 1
        else "the clock agrees with the one here",
        "let the host keep its clock with NTP (timedatectl set-ntp true)",
        bad=Health.WARN,
    )
    runtimes = {choose(server.runtime, host) for server in patient.wanted} or {choose("", host)}
    for runtime in sorted(runtimes, key=lambda each: each.name):
        trouble = runtime.problem(host)
        said = trouble or f"runtime {runtime.name}" + (
            f", systemd {host.systemd.version}" if host.systemd.version else ""
        )
        yield _judged("runtime", not trouble, said, "set vllm_runtime: process for this host, or mend systemd there")
    if host.systemd.scope == "user" and host.systemd.version is not None:
        yield _judged(
            "lingering",
            host.systemd.lingering is True,
            f"units of {host.user} {'outlive' if host.systemd.lingering else 'end with'} the login",
            f"loginctl enable-linger {host.user} (apply does so at the first start, where it is allowed to)",
            bad=Health.WARN,
        )


def _vllm(patient: Patient) -> Iterator[Check]:
    for vllm in patient.host.vllm:
        asked = vllm.asked or "vllm on PATH"
        needed = any(server.executable == vllm.asked for server in patient.wanted)
        if vllm.path is None or vllm.version is None:
            yield _judged(
                "vllm",
                good=False,
                summary=f"{asked}: {vllm.problem or 'not found'}",
                remedy="install vLLM there, or set vllm_executable to its path",
                bad=Health.FAIL if needed else Health.WARN,
            )
            continue
        known = catalogue_for(vllm.version).version
        same = vllm.version.partition("+")[0] == known
        yield _judged(
            "vllm",
            same,
            f"vLLM {vllm.version} at {vllm.path}" + ("" if same else f"; arguments are checked as for {known}"),
            "nothing need be done; an argument that is new or gone is then told by vLLM alone",
            bad=Health.WARN,
        )


def _gpus(patient: Patient) -> Iterator[Check]:
    host = patient.host
    if host.gpus:
        for gpu in host.gpus:
            free, total = gpu.memory_free / GIB, gpu.memory_total / GIB
            yield _well("gpu", f"GPU {gpu.index}: {gpu.name}, {free:.1f} of {total:.1f} GiB free")
        return
    problem = host.gpu_problem or "no GPU was found"
    broken = "no NVIDIA driver" not in problem and host.gpu_problem is not None
    yield _judged(
        "gpu",
        not broken,
        problem,
        "look at nvidia-smi and dmesg on the host: driver and library must be of one version",
    )


def _disks(patient: Patient) -> Iterator[Check]:
    disks = {disk.path: disk for disk in patient.facts.disks}
    state = disks.get(patient.host.state_dir)
    if state is not None:
        yield _space("disk", state, LEAST_STATE, "free space there: logs and env files could not be written")
    shared = disks.get("/dev/shm")  # noqa: S108 - a name in what was seen
    if shared is not None:
        yield _space("shared memory", shared, LEAST_SHM, "enlarge it: mount -o remount,size=8G /dev/shm")
    for path in sorted({cache.path for cache in patient.facts.caches} & disks.keys()):
        if not any(cache.path == path and _is_path(cache, patient) for cache in patient.facts.caches):
            remedy = "free space there (hf cache prune), or set HF_HOME under env"
            yield _space("cache", disks[path], LEAST_CACHE, remedy, bad=Health.WARN)
    for cache in patient.facts.caches:
        yield _cached(cache, patient)


def _is_path(cache: Cache, patient: Patient) -> bool:
    return any(server.id.slug == cache.slug and server.model.startswith("/") for server in patient.wanted)


def _cached(cache: Cache, patient: Patient) -> Check:
    server = ServerId.from_slug(cache.slug, patient.host.host)
    if _is_path(cache, patient):
        good = cache.size is not None
        summary = f"{cache.path} {'is there' if good else 'holds no config.json'}"
        return _judged("model", good, summary, "put the model there, or correct model:", server=str(server))
    if cache.size is None:
        summary = "not on the host yet: its first start downloads it"
        return _well("model", summary, server=str(server))
    partial = f", {cache.partial} downloads cut off" if cache.partial else ""
    summary = f"{cache.size / GIB:.1f} GiB of it in {cache.path}{partial}"
    return _well("model", summary, server=str(server))


def _space(name: str, disk: Disk, least: int, remedy: str, *, bad: Health = Health.FAIL) -> Check:
    full = disk.inodes_free == 0
    good = disk.free >= min(least, disk.total) and not disk.read_only and not full
    about = " (read-only)" if disk.read_only else " (no inode left)" if full else ""
    summary = f"{disk.path}: {disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free{about}"
    worst = Health.FAIL if disk.read_only or full or not disk.free else bad
    return _judged(name, good, summary, remedy, bad=worst)


def _limits(patient: Patient) -> Iterator[Check]:
    files = patient.facts.limits.get("nofile")
    if files is not None:
        soft, hard = files
        text = "without limit" if hard < 0 else str(hard)
        yield _judged(
            "open files",
            hard < 0 or hard >= LEAST_FILES,
            f"{soft} open files, {text} at most",
            f"raise nofile in /etc/security/limits.conf to {LEAST_FILES} or more (our units set it themselves)",
            bad=Health.WARN,
        )


def _hubs(patient: Patient) -> Iterator[Check]:
    for hub in patient.facts.hubs:
        yield _judged(
            "hub",
            not hub.problem,
            f"{hub.endpoint} {'cannot be reached: ' + hub.problem if hub.problem else 'answers'}",
            "look at the host's network, or at HTTPS_PROXY and HF_ENDPOINT under env; models on the host still start",
            bad=Health.WARN,
        )


def _servers(patient: Patient) -> Iterator[Check]:
    for wanted in patient.wanted:
        observed = patient.host.server(wanted.id.slug)
        yield from _port(wanted, patient)
        yield from _env_file(wanted, observed, patient)
        phase = patient.phases.get(wanted.id, Phase.UNKNOWN)
        if wanted.state is not DesiredState.RUNNING:
            continue
        why = patient.why.get(wanted.id)
        if why is not None:
            summary = f"{phase}: {why.summary} ({why.kind}); its log: {why.evidence}"
            yield _judged("server", good=False, summary=summary, remedy=why.remedy, server=str(wanted.id))
        else:
            fine = phase in {Phase.READY, Phase.STARTING}
            bad = Health.WARN if phase in {Phase.ABSENT, Phase.STOPPED} else Health.FAIL
            remedy = f"vmreconcile plan, vmreconcile logs {wanted.id}"
            yield _judged("server", fine, str(phase), remedy, bad=bad, server=str(wanted.id))


def _port(wanted: DesiredServer, patient: Patient) -> Iterator[Check]:
    for holder in patient.host.ports:
        if holder.port == wanted.port and holder.slug != wanted.id.slug:
            whose = f"our server {holder.slug}" if holder.slug else "not ours"
            yield _judged(
                "port",
                good=False,
                summary=f"port {holder.port} is held by pid {holder.pid or '?'}, {whose}: {holder.what}",
                remedy="end it there, or give this server another port",
                server=str(wanted.id),
            )


def _env_file(wanted: DesiredServer, observed: ObservedServer, patient: Patient) -> Iterator[Check]:
    file, unit = observed.env_file, observed.unit
    if file is not None and (file.mode & OTHERS or file.uid != patient.host.uid):
        yield _judged(
            "env file",
            good=False,
            summary=f"{file.path} has mode {file.mode:04o} and owner {file.uid}: others may read its token",
            remedy="vmreconcile apply writes it anew; renew the token if others were logged in",
            server=str(wanted.id),
        )
    for place in unit.token_places if unit else ():
        yield _judged(
            "token",
            good=False,
            summary=f"{place} {'wins over the env file' if place.wins else 'is named beside the env file, which wins'}",
            remedy=f"delete it in {place.path}, then systemctl daemon-reload",
            bad=Health.FAIL if place.wins else Health.WARN,
            server=str(wanted.id),
        )


def _others(patient: Patient) -> Iterator[Check]:
    host = patient.host
    for orphan in host.orphans:
        held = f", {orphan.gpu_memory_bytes / GIB:.1f} GiB of GPU memory" if orphan.gpu_memory_bytes else ""
        remedy = "vm cleanup ends it" if orphan.server else "not ours: look whose it is before you end it"
        yield _judged(
            "orphan", good=False, summary=f"pid {orphan.pid} {orphan.title}{held}", remedy=remedy, bad=Health.WARN
        )
    for stranger in host.strangers:
        held = f", {stranger.gpu_memory_bytes / GIB:.1f} GiB of GPU memory" if stranger.gpu_memory_bytes else ""
        yield _well("stranger", f"pid {stranger.pid}, {stranger.user}{held}: left alone, not ours")
    yield from _leftovers(patient)
    for variable, path, line in patient.facts.token_files:
        yield _well("token", f"{variable} in {path}:{line} is for logins; no server of ours gets it")
    for server in host.servers:
        for problem in server.problems:
            yield _judged(
                "record", good=False, summary=problem, remedy="mend or remove it on the host", bad=Health.WARN
            )


def _leftovers(patient: Patient) -> Iterator[Check]:
    """One line a folder: a killed vLLM leaves many."""
    folders: dict[str, list[Leftover]] = {}
    for left in patient.facts.leftovers:
        folders.setdefault(left.path.rpartition("/")[0], []).append(left)
    for folder, found in folders.items():
        names = ", ".join(left.path.rpartition("/")[2] for left in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        size = sum(left.size for left in found) / (1 << 20)
        yield _judged(
            "leftover",
            good=False,
            summary=f"{folder}: {size:.0f} MiB that no process uses: {names}{more}",
            remedy="left by killed servers: look at them on the host, and delete them there",
            bad=Health.WARN,
        )


def access_check(server: ServerId, block: Block | None, told: str) -> Check:
    """What the Hub says of a server's model, as a check."""
    status = Health.OK if block is None else Health.FAIL
    remedy = block.remedy if block else ""
    return Check(check="access", status=status, summary=told, remedy=remedy, host=server.host, server=str(server))


def unreachable_check(host: Unreachable) -> Check:
    """A host that could not be seen, as a check."""
    return Check(check="reach", status=Health.SKIPPED, summary=host.reason, remedy=host.remedy, host=host.host)


def checks_json(checks: Iterable[Check]) -> list[Json]:
    """Each check as `doctor --json` prints it."""
    return [
        {
            "host": check.host or None,
            "server": check.server or None,
            "check": re.sub(r"\W", "_", check.check),
            "status": check.status.value,
            "summary": check.summary,
            "remedy": check.remedy or None,
        }
        for check in checks
    ]


def document(checks: Iterable[Check], unreachable: Iterable[Json]) -> Json:
    """`doctor --json`."""
    return {"format_version": FORMAT_VERSION, "checks": [*checks_json(checks)], "unreachable": [*unreachable]}

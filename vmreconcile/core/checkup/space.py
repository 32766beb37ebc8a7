"""Space: for our state, for what programs leave in /tmp, for shared memory, for models; and the models themselves."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checkup.patient import GIB, Patient, judged, well
from vmreconcile.model.checkup import Cache, Check, Disk, Health
from vmreconcile.model.names import ServerId

LEAST_STATE = GIB // 4
"""Bytes that the state folder's disk should have free: logs, records, env files. The same for /tmp: vLLM's sockets."""

LEAST_CACHE = 5 * GIB
LEAST_SHM = GIB
"""Workers of one server talk over shared memory; Docker's default of 64 MiB is the usual trouble."""


def space_checks(patient: Patient) -> Iterator[Check]:
    """Each place that is needed, then each server's model."""
    disks = {disk.path: disk for disk in patient.facts.disks}
    if state := disks.get(patient.host.state_dir):
        yield _space("disk", state, LEAST_STATE, "free space there: logs and env files could not be written")
    if temporary := disks.get("/tmp"):  # noqa: S108 - a name in what was seen
        remedy = "free space there: vLLM's processes find one another over files in it"
        yield _space("disk", temporary, LEAST_STATE, remedy, bad=Health.WARN)
    if shared := disks.get("/dev/shm"):  # noqa: S108 - as above
        yield _space("shared memory", shared, LEAST_SHM, "enlarge it: mount -o remount,size=8G /dev/shm")
    for path in sorted({cache.path for cache in patient.facts.caches} & disks.keys()):
        if not any(cache.path == path and _is_path(cache, patient) for cache in patient.facts.caches):
            remedy = "free space there (hf cache prune), or set HF_HOME under env"
            yield _space("cache", disks[path], LEAST_CACHE, remedy, bad=Health.WARN)
    for cache in patient.facts.caches:
        yield _model(cache, patient)


def _space(name: str, disk: Disk, least: int, remedy: str, *, bad: Health = Health.FAIL) -> Check:
    """A disk that takes nothing more fails, whatever it is for."""
    full = disk.inodes_free == 0
    good = disk.free >= min(least, disk.total) and not disk.read_only and not full
    about = " (read-only)" if disk.read_only else " (no inode left)" if full else ""
    summary = f"{disk.path}: {disk.free / GIB:.1f} of {disk.total / GIB:.1f} GiB free{about}"
    worst = Health.FAIL if disk.read_only or full or not disk.free else bad
    return judged(name, good, summary, remedy, bad=worst)


def _is_path(cache: Cache, patient: Patient) -> bool:
    return any(server.id.slug == cache.slug and server.model.startswith("/") for server in patient.wanted)


def _model(cache: Cache, patient: Patient) -> Check:
    """A path must be there; what the Hub has may still come."""
    server = str(ServerId.from_slug(cache.slug, patient.host.host))
    if _is_path(cache, patient):
        good = cache.size is not None
        summary = f"{cache.path} {'is there' if good else 'holds no config.json'}"
        return judged("model", good, summary, "put the model there, or correct model:", server=server)
    if cache.size is None:
        return well("model", "not on the host yet: its first start downloads it", server=server)
    partial = f", {cache.partial} downloads cut off" if cache.partial else ""
    return well("model", f"{cache.size / GIB:.1f} GiB of it in {cache.path}{partial}", server=server)

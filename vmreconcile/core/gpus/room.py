"""Whether the memory that a server needs is free on its GPUs, and who holds it where it is not. Pure.

vLLM's own check at a start: what is free after CUDA took its context is at least total * utilization
(vllm/v1/worker/utils.py: request_memory, 0.22.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmreconcile.model.gpus import Gpu, Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Reason
from vmreconcile.vllm.memory.predict import CONTEXT
from vmreconcile.vllm.memory.sizes import GIB

SHOWN = 60
"""Letters of a stranger's command line."""

UNSEEN = GIB
"""Bytes that no process is seen to hold, from which on they are told: drivers and displays keep less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """A GPU on which less is free than a server needs: bytes free, and bytes asked for with CUDA's context."""

    gpu: Gpu
    needed: int

    @property
    def surely(self) -> bool:
        """Whether vLLM cannot start there, however little CUDA takes for its context."""
        return self.gpu.memory_free < self.needed - CONTEXT

    def __str__(self) -> str:
        """Render 'GPU 0: 12.3 of 79.6 GiB are free, 40.5 are needed'."""
        free, total = gib(self.gpu.memory_free), gib(self.gpu.memory_total)
        return f"{self.gpu.label}: {free} of {total} GiB are free, {gib(self.needed)} are needed"


def short_of(placed: Placed, host: HostView) -> tuple[Short, ...]:
    """The GPUs of a server on which there is not enough yet."""
    needed = placed.requested + CONTEXT
    there = {gpu.uuid: gpu for gpu in host.gpus}
    gpus = [there[uuid] for uuid in placed.devices if uuid in there]
    return tuple(Short(gpu=gpu, needed=needed) for gpu in gpus if gpu.memory_free < needed)


def unreadable(host: HostView) -> str:
    """Why nothing can be said about the memory of a host's GPUs, "" where it can be read."""
    if not host.gpus:
        return host.gpu_problem or "no GPU is seen"
    return "" if all(gpu.memory_total for gpu in host.gpus) else "their memory is not told"


def missing(server: ServerId, placed: Placed, host: HostView, stopped: str) -> Failure | None:
    """The failure where a GPU of the server is not there any more, None where all are. `stopped` as `held_by`."""
    there = {gpu.uuid for gpu in host.gpus}
    gone = [uuid for uuid in placed.devices if uuid not in there]
    if not gone:
        return None
    return Failure(
        kind=Reason.GPU_MISSING,
        summary=f"{server} was not started: {', '.join(gone)} is not seen on {server.host} any more{stopped}",
        evidence=", ".join(f"{gpu.label} is {gpu.uuid}" for gpu in host.gpus),
        remedy=f"look at the GPUs of {server.host} (vmreconcile doctor {server.host}), then run apply again",
    )


def held_by(server: ServerId, short: tuple[Short, ...], host: HostView, stopped: str) -> Failure:
    """The failure of a server whose memory did not come free; `stopped` says what became of what ran before."""
    told = "; ".join(f"{each}; {_holders(each.gpu, host)}" for each in short)
    return Failure(
        kind=Reason.GPU_MEMORY_HELD,
        summary=f"{server} was not started: {told}{stopped}",
        remedy=_remedy(server, short, host),
    )


def _holders(gpu: Gpu, host: HostView) -> str:
    """Render '41.2 GiB are held by pid 4711 (not ours: python train.py)' of each that holds some."""
    names = _names(host)
    held = [f"{_size(size)} by pid {pid} ({names.get(pid, 'not ours')})" for pid, size in sorted(gpu.processes)]
    told = [size for _, size in gpu.processes if size is not None]
    unseen = gpu.memory_used - sum(told)
    if len(told) == len(gpu.processes) and unseen > UNSEEN and not gpu.parent:
        held.append(f"{gib(unseen)} GiB by processes that cannot be seen from here")
    return f"held: {', '.join(held)}" if held else "nobody who can be seen holds it"


def _size(size: int | None) -> str:
    return "some memory" if size is None else f"{gib(size)} GiB"


def _names(host: HostView) -> dict[int, str]:
    """What is known of processes, by pid."""
    names = {each.pid: f"not ours: {each.what[:SHOWN].rstrip()}" for each in host.strangers}
    names |= {orphan.pid: f"not ours: an orphaned {orphan.title or 'worker'}" for orphan in host.orphans}
    for server in host.servers:
        slug = ServerId.from_slug(server.slug, host.host)
        names |= dict.fromkeys(_family(server), f"our server {slug}")
        names |= {worker.pid: f"an orphaned worker of our server {slug}" for worker in server.orphans}
    return names


def _family(server: ObservedServer) -> Iterator[int]:
    """The processes of a server that runs."""
    if server.process:
        yield server.process.pid
        yield from (child.pid for child in server.process.children)


def _remedy(server: ServerId, short: tuple[Short, ...], host: HostView) -> str:
    """Orphans of ours are ended by a command, everything else by a person."""
    pids = {pid for each in short for pid, _ in each.gpu.processes}
    orphans = {worker.pid for each in host.servers for worker in each.orphans}
    if pids & orphans:
        return f"vm cleanup -l {server.host} ends the orphaned workers; then run apply again"
    return (
        f"end what holds it if it is not needed, or give {server} other gpus or a smaller gpu_memory_utilization; "
        "then run apply again"
    )


def gib(size: float) -> str:
    """Bytes for a person."""
    return f"{size / GIB:.1f}"

"""Whether the memory that a server needs is free on its GPUs, and who holds it where it is not. Pure.

vLLM's own check at a start: what is free after CUDA took its context is at least total * utilization
(vllm/v1/worker/utils.py: request_memory, 0.22.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmreconcile.core.gpus.demand import gib
from vmreconcile.core.gpus.ground import Ground, ground_of
from vmreconcile.model.gpus import Gpu, Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Reason
from vmreconcile.vllm.memory.predict import CONTEXT


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
    there = {gpu.uuid: gpu for gpu in host.gpus}
    asked = zip(placed.devices, placed.requested, strict=True)
    found = [Short(gpu=there[uuid], needed=size + CONTEXT) for uuid, size in asked if uuid in there]
    return tuple(each for each in found if each.gpu.memory_free < each.needed)


def unreadable(placed: Placed, host: HostView) -> str:
    """Why nothing can be said about the memory of a server's GPUs, "" where it can be read."""
    if not host.gpus:
        return host.gpu_problem or "no GPU is seen"
    silent = any(gpu.uuid in placed.devices and not gpu.memory_total for gpu in host.gpus)
    return "their memory is not told" if silent else ""


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
    ground = ground_of(host, (), ())
    told = "; ".join(f"{each}; {_holders(each.gpu, ground)}" for each in short)
    return Failure(
        kind=Reason.GPU_MEMORY_HELD,
        summary=f"{server} was not started: {told}{stopped}",
        remedy=_remedy(server, short, host),
    )


def _holders(gpu: Gpu, ground: Ground) -> str:
    """Render 'held: 41.2 GiB by pid 4711 (not ours: python train.py)'."""
    held = [f"{gib(holder.size)} GiB by {holder.who}" for holder in ground.others.get(gpu.uuid, ())]
    held += [f"an unknown part by pid {pid}" for pid, size in sorted(gpu.processes) if size is None]
    return f"held: {', '.join(held)}" if held else "nobody who can be seen holds it"


def _remedy(server: ServerId, short: tuple[Short, ...], host: HostView) -> str:
    """Orphans of ours are ended by a command, everything else by a person."""
    pids = {pid for each in short for pid, _ in each.gpu.processes}
    orphans = sorted(orphan.pid for orphan in host.orphans if orphan.server and orphan.pid in pids)
    if orphans:
        which = f"pid {orphans[0]} is an orphaned worker of ours"
        return f"{which}: vm cleanup -l {server.host} ends such, then run apply again"
    return (
        f"end what holds it if it is not needed, or give {server} other gpus or a smaller gpu_memory_utilization; "
        "then run apply again"
    )

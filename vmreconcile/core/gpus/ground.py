"""The GPUs of one host before anything is placed: which can be used, and what others hold of their memory. Pure.

What counts as others': every process that is none of the servers that will run there, also servers of ours that nobody
wants. Memory that no process is seen to hold is somebody's, too (containers hide theirs), unless one of ours is hidden.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from vmreconcile.core.gpus.visible import named
from vmreconcile.model.gpus import PROHIBITED, Gpu
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.vllm.memory.arguments import Gpu as Card
from vmreconcile.vllm.memory.gpus import seen_gpu
from vmreconcile.vllm.memory.predict import CONTEXT
from vmreconcile.vllm.memory.sizes import GIB

UNSEEN = GIB
"""Memory that no process is seen to hold, from which on it counts: drivers and displays keep less."""

GRAVE_XIDS = {
    48: "memory error of two bits",
    64: "a broken row could not be recorded",
    74: "NVLink error",
    79: "the GPU fell off the bus",
    95: "uncontained memory error",
    119: "its system processor does not answer",
    120: "error of its system processor",
    140: "memory error without recovery",
    143: "it could not be initialized",
    154: "it asks for a recovery",
}
"""Errors after which a GPU needs a reset or a repair, in few words (NVIDIA, "XID Errors": recommended actions). One
that was reset since cannot be told from one that was not, so such a GPU is only taken last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds memory of a GPU: bytes, and words for a person."""

    size: int
    who: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The GPUs by UUID in their order, with the bytes that programs have (as CUDA tells them) and what others hold."""

    gpus: Mapping[str, Gpu] = field(default_factory=dict)
    cards: Mapping[str, Card] = field(default_factory=dict)
    others: Mapping[str, tuple[Holder, ...]] = field(default_factory=dict)
    cordoned: frozenset[str] = frozenset()
    silent: tuple[Gpu, ...] = ()
    """GPUs whose memory is not told, as that of the whole of a split one is told to root only."""
    problem: str = ""
    """What is wrong with GPUs that are missing."""

    def held(self, uuid: str) -> int:
        """Bytes that others hold."""
        return sum(holder.size for holder in self.others.get(uuid, ()))

    def room(self, uuid: str, tenants: int) -> int:
        """Bytes for so many servers together, without the context of CUDA that each has beside what it counts."""
        return self.cards[uuid].total - self.held(uuid) - tenants * CONTEXT

    def named(self, word: str) -> str | None:
        """The UUID that a word means."""
        return named(word, self.gpus.values())

    def gpu(self, word: str) -> Gpu | None:
        """The GPU that a word means, also one whose memory is not told."""
        everything = {gpu.uuid: gpu for gpu in (*self.gpus.values(), *self.silent)}
        uuid = named(word, everything.values())
        return everything[uuid] if uuid is not None else None


def ground_of(host: HostView, ours: Collection[ObservedServer], cordoned: Iterable[str]) -> Ground:
    """Read a host.

    `ours` are the servers that will run there, and those that this very plan takes down: their memory is nobody else's.
    `cordoned` is as it was written.
    """
    everything = sorted(host.gpus, key=_order)
    gpus = {gpu.uuid: gpu for gpu in everything if _can_be_told(gpu)}
    cards = {uuid: seen_gpu(gpu.name, gpu.memory_total) for uuid, gpu in gpus.items()}
    mine = {pid for server in ours for pid in server.pids}
    seen = {pid for gpu in host.gpus for pid, _ in gpu.processes}
    hidden = any(server.process and seen.isdisjoint(server.pids) for server in ours)
    names = _names(host)
    return Ground(
        gpus=gpus,
        cards=cards,
        others={
            uuid: (*_seen(gpu, mine, names), *([] if hidden else _unseen(gpu, cards[uuid].total)))
            for uuid, gpu in gpus.items()
        },
        cordoned=frozenset(uuid for word in cordoned if (uuid := named(word, gpus.values())) is not None),
        silent=tuple(gpu for gpu in everything if not _can_be_told(gpu)),
        problem=host.gpu_problem or "",
    )


def _order(gpu: Gpu) -> tuple[int, int]:
    return gpu.index, -1 if gpu.instance is None else gpu.instance


def _names(host: HostView) -> dict[int, str]:
    """What is known of processes that hold memory of GPUs."""
    names = {pid: f"not ours: {what[:60]}" for pid, what in host.programs.items()}
    names |= {stranger.pid: f"not ours: {stranger.what[:60]}" for stranger in host.strangers}
    names |= {orphan.pid: f"an orphaned {orphan.title or 'worker'}" for orphan in host.orphans}
    for server in host.servers:
        names |= dict.fromkeys(server.pids, f"our server {server.slug}")
    return names


def _seen(gpu: Gpu, mine: set[int], names: Mapping[int, str]) -> list[Holder]:
    """Processes that are none of the servers', the largest first."""
    rows = [row for row in gpu.processes if row[0] not in mine]
    found = [
        Holder(size=size, who=f"pid {pid} ({names.get(pid, 'not ours')})") for pid, size in rows if size and size > 0
    ]
    return sorted(found, key=lambda holder: (-holder.size, holder.who))


def _unseen(gpu: Gpu, total: int) -> list[Holder]:
    """Memory that no process is seen to hold; unknown where the driver does not tell who holds how much."""
    if gpu.split or any(size is None for _, size in gpu.processes):
        return []
    size = gpu.memory_used - sum(max(0, size or 0) for _, size in gpu.processes) - (gpu.memory_total - total)
    return [Holder(size=size, who="processes that cannot be seen from here")] if size > UNSEEN else []


def flaw_of(gpu: Gpu) -> str:
    """Why no server can be put on a GPU, "" where one can."""
    if gpu.split:
        return "is split into instances (MIG)"
    if gpu.compute_mode == PROHIBITED:
        return "is closed to programs (compute mode prohibited)"
    if gpu.remapping_failed:
        return "has memory that could not be remapped"
    if not gpu.uuid:
        return "does not tell its UUID"
    return "" if _can_be_told(gpu) else "does not tell its memory"


def _can_be_told(gpu: Gpu) -> bool:
    """Whether a GPU can be named and reckoned with."""
    return bool(gpu.uuid and gpu.memory_total)


def is_suspect(gpu: Gpu) -> bool:
    """Whether other GPUs should be taken first."""
    return bool(gpu.ecc_errors) or not GRAVE_XIDS.keys().isdisjoint(gpu.xids)

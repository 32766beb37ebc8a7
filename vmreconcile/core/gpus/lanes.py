"""In which order the servers of a host are done, and which of them side by side. Pure.

Servers that start at once on one GPU mis-size each other's KV cache (vllm#55827): those that share a GPU go one after
the other. Servers whose GPUs are not known share one lane as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vmreconcile.model.desired import DEFAULT_PRIORITY, DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase
from vmreconcile.model.plan import Action, Change, Reason

Wanted = Mapping[ServerId, DesiredServer]

NOWHERE = ""
"""The GPU of servers of which none is known."""

FREEING = frozenset({Action.STOP, Action.REMOVE})


def in_order(changes: Iterable[Change], wanted: Wanted) -> list[Change]:
    """What frees something first, then what takes nothing down, then the rest; each by priority."""
    return sorted(changes, key=lambda change: (_rank(change), _priority(change, wanted), change.server))


def _rank(change: Change) -> int:
    if change.action in FREEING:
        return 0
    if change.phase is Phase.STARTING:
        return 1  # what starts already ends its start before another begins on the same GPU
    if change.disruptive:
        return 2 if change.frees else 4
    return 3


def _priority(change: Change, wanted: Wanted) -> int:
    server = wanted.get(change.server)
    return server.priority if server else DEFAULT_PRIORITY


def starts(change: Change) -> bool:
    """Whether a new process is started, which loads the model."""
    return change.action is Action.START or (change.pending and change.disruptive and change.gate is not None)


def uses_lane(change: Change) -> bool:
    """Whether a change starts a server or waits for one; all others are done before any of these."""
    return change.action not in FREEING and (change.pending or change.reason is Reason.STILL_STARTING)


def lanes(queue: Sequence[Change], wanted: Wanted) -> list[frozenset[str]]:
    """The lanes that each change of a host takes up: its GPUs, by UUID. Two that share one go one after the other.

    A server that may take any GPU, because nobody knows which it takes, takes up all.
    """
    everywhere = frozenset({NOWHERE}).union(*(_gpus(change) for change in queue))
    return [everywhere if _may_take_any(change, wanted) else _gpus(change) or frozenset({NOWHERE}) for change in queue]


def _gpus(change: Change) -> frozenset[str]:
    """The GPUs that a server is to be on. One that leaves a GPU which another takes was taken down before (`early`)."""
    return frozenset(change.placed.devices if change.placed else ())


def _may_take_any(change: Change, wanted: Wanted) -> bool:
    """Whether vLLM itself chooses among all GPUs that it finds."""
    if change.placed is not None and change.placed.devices:
        return False
    server = wanted.get(change.server)
    device = server.settings.get("device") if server else None
    return (starts(change) or change.phase is Phase.STARTING) and not (device and device.value == "cpu")

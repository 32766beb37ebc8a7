"""The GPUs that a running server is on, told by what is seen of it. Pure."""

from __future__ import annotations

from vmreconcile.core.gpus.visible import named, words_in
from vmreconcile.model.gpus import Gpu
from vmreconcile.model.observed import HostView, ObservedServer


def devices_of(server: ObservedServer, host: HostView) -> tuple[Gpu, ...]:
    """Where its processes hold memory; else what its environment names; else all, if they are of one kind.

    A driver in a container may tell nobody's processes. () where nothing of this says it.
    """
    usable = [gpu for gpu in host.gpus if gpu.memory_total and not gpu.split]
    held = tuple(gpu for gpu in usable if gpu.held_by(server.pids))
    if held:
        return held
    words = words_in(server.process.env) if server.process else ()
    uuids = {named(word, host.gpus) for word in words}
    told = tuple(gpu for gpu in usable if gpu.uuid in uuids)
    if words:
        return told if len(told) == len(words) else ()
    return tuple(usable) if len({gpu.name for gpu in usable}) == 1 else ()

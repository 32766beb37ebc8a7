"""Laws of placing: whatever is wanted and whatever runs, nothing is promised twice and nobody is moved for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab.gpu_views import card, files_of, machine, model, seen, stopped, uuids
from vmreconcile.core.gpus.ground import flaw_of
from vmreconcile.core.gpus.knowledge import Lore
from vmreconcile.core.gpus.place import Fixed, Placing
from vmreconcile.core.placing import placing_of
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Gpu, Needs
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.vllm.memory.gpus import seen_gpu
from vmreconcile.vllm.memory.predict import CONTEXT
from vmreconcile.vllm.memory.sizes import GIB

pytestmark = pytest.mark.slow
LAWS = settings(max_examples=200, deadline=None)
NAMES = ("a", "b", "c", "d", "e", "f")
STRANGER = 4711
SILENT = {"memory_total": 0, "memory_used": 0, "memory_free": 0, "processes": ()}
"""A GPU that does not tell its memory."""
GIVEN_KV = {"gpu_memory_utilization": 0.2, "kv_cache_memory_bytes": 30 * GIB}
"""A server that takes more than its utilization says."""


@st.composite
def cards(draw: st.DrawFn) -> list[Gpu]:
    """One to eight GPUs, some of them broken, some with a stranger's memory on them."""
    count = draw(st.integers(1, 8))
    found = []
    for index in range(count):
        held = draw(st.sampled_from((0.0, 0.0, 0.0, 0.3, 20.0, 70.0)))
        gpu = card(index, held={STRANGER: held} if held else {})
        flaw = draw(st.sampled_from(({}, {}, {}, {}, {"split": True}, {"compute_mode": "prohibited"}, SILENT)))
        found.append(replace(gpu, **flaw))
    return found


@st.composite
def wishes(draw: st.DrawFn) -> list[DesiredServer]:
    """Servers of one host with every way to ask for GPUs and memory."""
    servers = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=6)):
        args: dict[str, object] = {"max_model_len": 4096, "enforce_eager": True}
        args |= draw(st.sampled_from(({}, {"gpu_memory_utilization": 0.4}, {"tensor_parallel_size": 2}, GIVEN_KV)))
        gpus = draw(st.sampled_from(("auto", "auto", "auto", (0,), 2)))
        needs = draw(st.sampled_from((Needs(), Needs(), Needs(kv_tokens=50_000), Needs(concurrency=4))))
        config = draw(st.sampled_from(("qwen2.5-0.5b", "qwen2.5-7b", "llama-3.1-8b")))
        priority = draw(st.integers(1, 5))
        servers.append(model(name, config, args=args, gpus=gpus, needs=needs, priority=priority))
    return servers


def lore(servers: list[DesiredServer]) -> Lore:
    """Everything is known of the models."""
    return Lore(models=files_of(servers))


def started(servers: list[DesiredServer], host: HostView, found: Placing) -> HostView:
    """The host after all that was placed and not blocked was started as planned."""
    running: list[ObservedServer] = []
    gpus = {gpu.uuid: gpu for gpu in host.gpus}
    for pid, server in enumerate(servers, start=100):
        placed = found.placed[server.id]
        if server.id in found.blocks:
            continue
        written = {name: setting.value for name, setting in server.settings.items()} | dict(placed.settings)
        words = " ".join(
            f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')} {value}"
            for name, value in written.items()
        )
        running.append(
            seen(
                server.id.slug,
                pid,
                words,
                visible=",".join(placed.visible),
                decided=placed.settings,
                serves=server.model,
            )
        )
        for uuid, requested in zip(placed.devices, placed.requested, strict=True):
            gpu = gpus[uuid]
            rows = (*gpu.processes, (pid, requested + CONTEXT))
            used = sum(size or 0 for _, size in rows)
            gpus[uuid] = replace(gpu, processes=rows, memory_used=used, memory_free=gpu.memory_total - used)
    return replace(host, gpus=tuple(gpus.values()), servers=tuple(running))


@LAWS
@given(gpus=cards(), servers=wishes())
def test_everybody_is_placed_or_told_why(gpus: list[Gpu], servers: list[DesiredServer]) -> None:
    """On GPUs that exist and can be used, as many as it takes; in whatever order the files are read."""
    host = machine(gpus)
    found = placing_of(servers, host, lore(servers))
    assert found == placing_of(servers[::-1], host, lore(servers))
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    for server in servers:
        placed = found.placed[server.id]
        if server.id in found.blocks:
            assert found.blocks[server.id].note
            assert found.blocks[server.id].remedy
            continue
        count = len(server.gpus) if isinstance(server.gpus, tuple) else server.gpus
        ways = server.settings.get("tensor_parallel_size")
        expected = count if isinstance(count, int) else (ways.value if ways else 1)
        if not any(gpu.memory_total for gpu in gpus):  # left to vLLM
            assert not placed.devices
            continue
        assert len(set(placed.devices)) == expected
        assert not [uuid for uuid in placed.devices if flaw_of(by_uuid[uuid])]
        assert placed.reasons


@LAWS
@given(gpus=cards(), servers=wishes())
def test_no_memory_is_promised_twice(gpus: list[Gpu], servers: list[DesiredServer]) -> None:
    """What the servers of a GPU take, with what others hold, is there; a number for one alone may take all."""
    found = placing_of(servers, machine(gpus), lore(servers))
    for gpu in gpus:
        on = [server for server in servers if gpu.uuid in found.placed[server.id].devices]
        on = [server for server in on if server.id not in found.blocks]
        total = seen_gpu(gpu.name, gpu.memory_total).total
        held = sum(size or 0 for _, size in gpu.processes)
        alone = len(on) == 1 and "gpu_memory_utilization" in on[0].settings
        contexts = 0 if alone else len(on)
        asked = [found.placed[server.id] for server in on]
        sizes = [dict(zip(placed.devices, placed.requested, strict=True))[gpu.uuid] for placed in asked]
        taken = sum(sizes) + contexts * CONTEXT
        assert not on or taken <= total - held + len(on), (gpu.label, taken, total, held)


@LAWS
@given(gpus=cards(), servers=wishes())
def test_a_fleet_that_runs_as_planned_is_left_alone(gpus: list[Gpu], servers: list[DesiredServer]) -> None:
    """Same GPUs, same numbers, also when nothing is known of the models any more and strangers went away."""
    host = machine(gpus)
    found = placing_of(servers, host, lore(servers))
    there = started(servers, host, found)
    runs = [server for server in servers if server.id not in found.blocks]
    again = placing_of(runs, there, lore(servers))
    assert not again.blocks
    for server in runs:
        before, after = found.placed[server.id], again.placed[server.id]
        assert (after.devices, after.settings) == (before.devices, before.settings), (before.reasons, after.reasons)
    alone = replace(there, gpus=tuple(_without(gpu, STRANGER) for gpu in there.gpus))
    later = placing_of(runs, alone, lore(servers))
    assert {each: placed.settings for each, placed in later.placed.items()} == {
        server.id: found.placed[server.id].settings for server in runs
    }


def _without(gpu: Gpu, pid: int) -> Gpu:
    """A GPU after a process ended."""
    rows = tuple(row for row in gpu.processes if row[0] != pid)
    used = sum(size or 0 for _, size in rows)
    return replace(gpu, processes=rows, memory_used=used, memory_free=gpu.memory_total - used)


@LAWS
@given(servers=wishes())
def test_who_comes_later_moves_nobody(servers: list[DesiredServer]) -> None:
    """The first ones run; all of them keep their GPUs, whoever comes."""
    host = machine(8)
    first, rest = servers[: len(servers) // 2 + 1], servers
    found = placing_of(first, host, lore(servers))
    there = started(first, host, found)
    again = placing_of(rest, there, lore(servers))
    for server in first:
        if server.id not in found.blocks:
            assert again.placed[server.id].devices == found.placed[server.id].devices
    assert uuids(0)[0] == host.gpus[0].uuid


@LAWS
@given(
    gpus=cards(),
    servers=wishes(),
    come=st.lists(st.tuples(st.integers(0, 7), st.sampled_from((2.0, 20.0, 70.0))), max_size=3),
    cordon=st.sampled_from(((), ("0",), ("1", "2"))),
)
def test_strangers_and_cordons_move_nobody(
    gpus: list[Gpu], servers: list[DesiredServer], come: list[tuple[int, float]], cordon: tuple[str, ...]
) -> None:
    """Whoever takes memory beside those that run: they have theirs."""
    host = machine(gpus)
    found = placing_of(servers, host, lore(servers))
    there = started(servers, host, found)
    runs = [replace(server, cordoned_gpus=cordon) for server in servers if server.id not in found.blocks]
    crowded = list(there.gpus)
    for pid, (at, size) in enumerate(come, start=9000):
        if at < len(crowded) and crowded[at].memory_total:
            crowded[at] = _with(crowded[at], pid, int(size * GIB))
    again = placing_of(runs, replace(there, gpus=tuple(crowded)), lore(servers))
    assert not again.blocks
    for server in runs:
        assert _decided(again, server) == _decided(found, server)


@LAWS
@given(gpus=cards(), servers=wishes(), down=st.sets(st.sampled_from(NAMES)))
def test_who_crashed_comes_back_and_disturbs_nobody(
    gpus: list[Gpu], servers: list[DesiredServer], down: set[str]
) -> None:
    """On the same GPUs, whoever was taken out of the files since; those that run keep their numbers."""
    host = machine(gpus)
    found = placing_of(servers, host, lore(servers))
    there = started(servers, host, found)
    runs = [server for server in servers if server.id not in found.blocks]
    crashed = {each.process.pid for each in there.servers if each.process and each.slug in down}
    left = there.gpus
    for pid in crashed:
        left = tuple(_without(gpu, pid) for gpu in left)
    seen_now = tuple(stopped(each) if each.slug in down else each for each in there.servers)
    again = placing_of(runs, replace(there, gpus=left, servers=seen_now), lore(servers))
    assert not again.blocks
    for server in runs:
        assert again.placed[server.id].devices == found.placed[server.id].devices
        if server.id.slug not in down:
            assert _decided(again, server) == _decided(found, server)


@LAWS
@given(gpus=cards(), servers=wishes(), gone=st.sets(st.sampled_from(NAMES)), pruned=st.booleans())
def test_who_goes_moves_nobody(gpus: list[Gpu], servers: list[DesiredServer], gone: set[str], *, pruned: bool) -> None:
    """Servers that no file wants any more, left or taken down by this plan."""
    host = machine(gpus)
    found = placing_of(servers, host, lore(servers))
    there = started(servers, host, found)
    runs = [server for server in servers if server.id not in found.blocks and server.id.slug not in gone]
    leaving = tuple(each for each in there.servers if each.slug in gone) if pruned else ()
    again = placing_of(runs, there, lore(servers), Fixed(leaving=leaving))
    assert not again.blocks
    for server in runs:
        assert _decided(again, server) == _decided(found, server)


def _decided(found: Placing, server: DesiredServer) -> tuple[object, ...]:
    placed = found.placed[server.id]
    return placed.devices, placed.visible, placed.settings


def _with(gpu: Gpu, pid: int, size: int) -> Gpu:
    """A GPU of which one more process has taken memory."""
    rows = (*gpu.processes, (pid, size))
    used = sum(each or 0 for _, each in rows)
    return replace(gpu, processes=rows, memory_used=used, memory_free=max(0, gpu.memory_total - used))

"""On which GPUs a running server is, by what is seen of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.gpu_views import card, machine, seen, uuids
from vmreconcile.core.gpus.devices import devices_of
from vmreconcile.model.observed import ObservedServer, Worker

L40S = "NVIDIA L40S"


def indices(found: tuple[object, ...]) -> list[int]:
    """The numbers of GPUs."""
    return [gpu.index for gpu in found]  # type: ignore[attr-defined]


def test_where_its_processes_hold_memory() -> None:
    """Root and workers, whatever the environment says; a stranger's memory is not counted."""
    server = seen("m", 100, visible="3")
    assert server.process is not None
    children = (Worker(pid=101, start_ticks=1),)
    server = replace(server, process=replace(server.process, children=children))
    host = machine([card(0, held={101: 5}), card(1, held={100: 1}), card(2, held={4711: 70}), card(3)])
    assert indices(devices_of(server, host)) == [0, 1]


@pytest.mark.parametrize(
    ("visible", "found"),
    [("1", [1]), (",".join(uuids(2, 0)), [0, 2]), (uuids(3)[0][:12], [3]), ("1, 9", []), ("GPU-beef", []), ("-1", [])],
)
def test_what_its_environment_names(visible: str, found: list[int]) -> None:
    """Where no process is seen to hold anything, as in a container; a word that means no GPU says nothing."""
    assert indices(devices_of(seen("m", 100, visible=visible), machine(4))) == found


def test_all_where_they_are_alike() -> None:
    """Whichever it took, it is of that kind; of several kinds nobody can say."""
    assert indices(devices_of(seen("m", 100), machine(3))) == [0, 1, 2]
    assert devices_of(seen("m", 100), machine([card(0), card(1, name=L40S)])) == ()
    assert devices_of(seen("m", 100), machine(0)) == ()


def test_a_gpu_that_is_split_is_used_by_its_parts() -> None:
    """The instance counts, not the whole."""
    whole = replace(card(0, held={100: 5}), split=True)
    part = replace(card(0, held={100: 5}), uuid="MIG-1", parent=whole.uuid, instance=0)
    assert [gpu.uuid for gpu in devices_of(seen("m", 100), machine([whole, part]))] == ["MIG-1"]


def test_nothing_runs() -> None:
    """A host with one kind of GPU: the server would be on it."""
    assert indices(devices_of(ObservedServer(slug="m"), machine(1))) == [0]

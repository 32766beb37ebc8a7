"""Which GPUs a vLLM sees by its environment, and the words of a start that finds too few or too little."""

from __future__ import annotations

import pytest

from vmreconcile.simulator.devices import CONTEXT, GIB, Device, Group, StartError, check_free, taken, visible

L4 = Device(index=0, uuid="GPU-aaaa-1", total=22 * GIB, name="NVIDIA L4")
FIRST = Device(index=1, uuid="GPU-bbbb-2", total=79 * GIB, name="NVIDIA H100 80GB HBM3")
SECOND = Device(index=2, uuid="GPU-bbcc-3", total=79 * GIB, name="NVIDIA H100 80GB HBM3")
PARTS = tuple(
    Device(index=1, uuid=f"MIG-{letter}", total=9 * GIB, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb") for letter in "xy"
)
HOST = (L4, FIRST, SECOND)
BY_BUS = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.mark.parametrize(
    ("said", "order", "expected"),
    [
        (None, {}, (FIRST, SECOND, L4)),
        (None, BY_BUS, HOST),
        ("0", {}, (FIRST,)),
        ("0", BY_BUS, (L4,)),
        (" 2 ,0", BY_BUS, (SECOND, L4)),
        ("GPU-bbcc-3,GPU-aaaa-1", {}, (SECOND, L4)),
        ("GPU-bbc", {}, (SECOND,)),
        ("1,7,0", BY_BUS, (FIRST,)),
        ("1,1,0", BY_BUS, (FIRST,)),
        ("1,GPU-bb,0", BY_BUS, (FIRST,)),
        ("1,-1,0", BY_BUS, (FIRST,)),
        ("", {}, ()),
    ],
)
def test_what_is_visible(said: str | None, order: dict[str, str], expected: tuple[Device, ...]) -> None:
    """Numbers in CUDA's order, UUIDs and what they begin with; the first word that names nothing ends the list."""
    environ = order if said is None else {**order, "CUDA_VISIBLE_DEVICES": said}
    assert visible(HOST, environ, "0.32.0") == expected


def test_what_is_visible_of_a_split_gpu() -> None:
    """The whole of it is not; instances are one at a time, and only where named, unless there is nothing else."""
    host = (L4, FIRST, *PARTS, SECOND)
    assert visible(host, {}, "0.32.0") == (SECOND, L4)
    assert visible(host, {"CUDA_VISIBLE_DEVICES": "MIG-y,MIG-x"}, "0.32.0") == PARTS[1:]
    assert visible(host, {"CUDA_VISIBLE_DEVICES": "GPU-aaaa-1,MIG-x"}, "0.32.0") == (L4,)
    assert visible((FIRST, *PARTS), {}, "0.32.0") == PARTS[:1]
    with pytest.raises(StartError, match="NotFound"):
        visible(host, {"CUDA_VISIBLE_DEVICES": "GPU-bbbb-2"}, "0.32.0")


@pytest.mark.parametrize("version", ["0.10.2", "0.22.1+simulator", "v0.23.9"])
def test_older_versions_take_numbers_only(version: str) -> None:
    """Any other word ends the start, the first of them named."""
    assert visible(HOST, {"CUDA_VISIBLE_DEVICES": "1"}, version) == (SECOND,)
    with pytest.raises(StartError, match=r"^ValueError: invalid literal for int\(\) with base 10: 'GPU-aaaa-1'$"):
        visible(HOST, {"CUDA_VISIBLE_DEVICES": "0,GPU-aaaa-1"}, version)


@pytest.mark.parametrize("version", ["0.24.0", "0.32.0+simulator", "1.0.0", "dev"])
def test_newer_versions_take_uuids(version: str) -> None:
    """From 0.24.0 on; a version that says nothing counts as new."""
    assert visible(HOST, {"CUDA_VISIBLE_DEVICES": "GPU-aaaa-1"}, version) == (L4,)


@pytest.mark.parametrize(
    ("group", "words", "in_engine"),
    [
        (Group(tensor=8), r"World size \(8\) is larger than the number of available GPUs \(3\) in this node", False),
        (Group(tensor=2, pipeline=2), r"World size \(4\) is larger than", False),
        (Group(data=4), r"DP adjusted local rank 3 is out of bounds", True),
        (Group(tensor=2, data=2), r"DP adjusted local rank 3 is out of bounds", True),
    ],
)
def test_too_few(group: Group, words: str, in_engine: bool) -> None:  # noqa: FBT001 - a case of the table
    """A replica that is too large is refused early, too many replicas by an engine."""
    with pytest.raises(StartError, match=words) as refused:
        taken(HOST, {}, "0.32.0", group)
    assert refused.value.in_engine is in_engine


def test_ranks_take_gpus_in_order() -> None:
    """As many as the start wants, no more."""
    assert taken(HOST, BY_BUS, "0.32.0", Group()) == (L4,)
    assert taken(HOST, BY_BUS, "0.32.0", Group(tensor=2)) == (L4, FIRST)
    with pytest.raises(StartError, match="rank 0 is out of bounds"):
        taken((), {}, "0.32.0", Group())


def test_free_memory_is_counted_after_the_context() -> None:
    """A byte too little is too little, and the message has the numbers that vLLM would write."""
    wanted = 79 * GIB * 9 // 10 + 1
    check_free(0, FIRST, wanted + CONTEXT, 0.9)
    with pytest.raises(StartError) as refused:
        check_free(1, FIRST, wanted + CONTEXT - GIB, 0.9)
    assert str(refused.value) == (
        "ValueError: Free memory on device cuda:1 (70.1/79.0 GiB) on startup is less than desired GPU memory "
        "utilization (0.9, 71.1 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )

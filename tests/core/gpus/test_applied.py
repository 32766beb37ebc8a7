"""A wanted server with what was decided for it."""

from __future__ import annotations

from tests.lab.worlds import FILE, wanted
from vmreconcile.core.gpus.applied import with_placed
from vmreconcile.core.launching import launch_settings
from vmreconcile.model.gpus import Placed
from vmreconcile.model.values import OriginKind


def test_what_was_decided_is_the_tools() -> None:
    """Numbers get their origin with the reasons, GPUs go in as they are to be named, what a person wrote stays."""
    server = wanted(args={"max_num_seqs": 8, "max_model_len": "auto"})
    settings = {"gpu_memory_utilization": 0.45, "max_model_len": 4096}
    placed = Placed(devices=("GPU-a",), visible=("0",), settings=settings, reasons=("free", "shared"))  # type: ignore[arg-type]  # JSON values
    found = with_placed(server, placed)
    assert found.visible == ("0",)
    assert launch_settings(found) == {**settings, "max_num_seqs": 8, "port": 8001}
    origin = found.settings["max_model_len"].origin
    assert (origin.kind, origin.note) == (OriginKind.TOOL, "free; shared")
    assert found.settings["max_num_seqs"].origin is FILE


def test_each_number_has_its_own_reason() -> None:
    """Not that of the GPUs, nor that of another number."""
    reasons = ("GPU 0, alone: free", "gpu_memory_utilization 0.45: shared; 3.0 GiB", "max_model_len 4096: the longest")
    settings = {"gpu_memory_utilization": 0.45, "max_model_len": 4096}
    found = with_placed(wanted(), Placed(settings=settings, reasons=reasons)).settings  # type: ignore[arg-type]  # JSON
    assert found["gpu_memory_utilization"].origin.note == "shared; 3.0 GiB"
    assert found["max_model_len"].origin.note == "the longest"


def test_a_number_that_is_to_be_nobodys_is_left_to_vllm() -> None:
    """`auto` is a word of files; a vLLM that does not know it gets no such argument."""
    server = wanted(args={"max_model_len": "auto", "dtype": "auto"})
    assert launch_settings(with_placed(server, Placed(settings={"max_model_len": None}))) == {
        "dtype": "auto",
        "port": 8001,
    }


def test_nothing_decided_changes_nothing() -> None:
    """A server that is not to run, or a host that was not seen."""
    server = wanted(args={"max_model_len": "auto"})
    assert with_placed(server, None) is server

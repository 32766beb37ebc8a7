"""GPUs that simulated servers share: the folder that describes them, who holds what, and whom that stops."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.server import running
from vmreconcile.simulator.devices import GIB, Device, StartError
from vmreconcile.simulator.gpu_folder import Claims, held, hold, read_gpus, started
from vmreconcile.simulator.install import install

TOTAL = 81559 << 20
CUDA = 81080 << 20
LINES = "".join(f"{index} GPU-{index:04} {TOTAL} NVIDIA H100 80GB HBM3\n" for index in range(2))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A host's GPUs: two H100s, of which nothing is held."""
    path = tmp_path / "host"
    path.mkdir()
    (path / "gpus").write_text("# two of a kind\n" + LINES)
    return str(path)


def claims(folder: str, *, world: int = 1, utilization: float = 0.5, kv_bytes: int = 0, weights: int = 0) -> Claims:
    """What a start on the folder's first GPUs claims."""
    return Claims(
        folder=folder,
        devices=read_gpus(folder)[:2],
        world=world,
        utilization=utilization,
        kv_bytes=kv_bytes,
        weights=weights,
        beside=3 * GIB,
    )


def test_gpus_are_described_in_lines(folder: str) -> None:
    """Index, UUID, bytes as NVML names them, name; the bytes for programs are what CUDA names."""
    first, second = read_gpus(folder)
    assert first == Device(index=0, uuid="GPU-0000", total=CUDA, name="NVIDIA H100 80GB HBM3")
    assert (second.index, second.uuid) == (1, "GPU-0001")


@pytest.mark.parametrize("line", ["GPU-1 81559 H100", "0 GPU-1 80GiB H100", "x GPU-1 81559 H100", "0 GPU-1 81559"])
def test_a_line_that_is_none(folder: str, line: str) -> None:
    """It is refused with its place."""
    Path(folder, "gpus").write_text(LINES + line + "\n")
    with pytest.raises(ValueError, match=r"gpus:3: a GPU is described by: index uuid total name"):
        read_gpus(folder)


def test_a_folder_without_gpus(tmp_path: Path) -> None:
    """It is refused with its path."""
    with pytest.raises(ValueError, match=rf"{tmp_path}/gpus: No such file"):
        read_gpus(str(tmp_path))


def test_what_a_process_took_is_held_while_it_lives(folder: str) -> None:
    """Its share and a context; a zombie and one that is gone hold nothing, and their file goes."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        claims(folder).take(0, (process.pid,))
        assert held(folder) == {"GPU-0000": CUDA // 2 + GIB // 2}
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert started(str(process.pid)) == ""
        assert held(folder) == {}
        assert list(Path(folder, "held").iterdir()) == []
    assert started(str(process.pid)) == ""


def test_another_process_of_that_number_holds_nothing(folder: str) -> None:
    """The start time tells them apart; comments and what is no number are read past."""
    Path(folder, "held").mkdir()
    path = Path(folder, "held", str(os.getpid()))
    path.write_text(f"# a training run\n{os.getpid()} {started(str(os.getpid()))} GPU-0001 1024\n")
    assert held(folder) == {"GPU-0001": 1024}
    path.write_text(f"{os.getpid()} 1 GPU-0001 1024\n")
    assert held(folder) == {}
    path.write_text(f"{os.getpid()} {started(str(os.getpid()))} GPU-0001 many\nnonsense\n")
    assert held(folder) == {"GPU-0001": 0}


def test_all_gpus_of_an_engine_or_none(folder: str) -> None:
    """The second has too little: nothing is taken of the first; a second engine takes the second."""
    claims(folder).take(1, (os.getpid(),))
    assert held(folder) == {"GPU-0001": CUDA // 2 + GIB // 2}
    with pytest.raises(StartError, match=r"on device cuda:1 \(38\.59/79\.18 GiB\)") as refused:
        claims(folder, world=2).take(0, (os.getppid(), os.getpid()))
    assert refused.value.in_engine
    assert held(folder) == {"GPU-0001": CUDA // 2 + GIB // 2}


def test_a_cache_of_a_given_size(folder: str) -> None:
    """What is held is then the model and the cache, whatever the utilization; it must be there."""
    claims(folder, kv_bytes=10 * GIB, utilization=0.1).take(0, (os.getpid(),))
    assert held(folder) == {"GPU-0000": 13 * GIB + GIB // 2}
    with pytest.raises(StartError, match="not enough GPU memory"):
        claims(folder, kv_bytes=60 * GIB, weights=10 * GIB, utilization=0.1).take(0, (os.getpid(),))


def gpus(folder: str, **more: str) -> dict[str, str]:
    """The environment of a server on the folder's GPUs."""
    return {"VLLM_SIMULATOR_GPUS": folder, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", **more}


def holders(folder: str) -> dict[str, str]:
    """The GPU that each holder holds, by pid."""
    rows = [path.read_text().split() for path in Path(folder, "held").glob("[0-9]*")]
    return {pid: uuid for pid, _, uuid, _ in rows}


@pytest.mark.slow
def test_servers_share_gpus(simulator: Path, tmp_path: Path, folder: str) -> None:
    """The first takes its share until it ends; a second that wants more than is left fails in vLLM's words."""
    share = ("--gpu-memory-utilization", "0.6")
    with running(simulator, "a/model", tmp_path / "a", *share, env=gpus(folder)) as first:
        first.wait_ready(10)
        assert holders(folder) == {str(first.engines()[0].pid): "GPU-0000"}
        with running(simulator, "a/model", tmp_path / "b", *share, env=gpus(folder)) as second:
            assert second.end(10) == 1
            assert re.search(
                r"EngineCore pid=\d+\) ERROR .*cuda:0 \(30\.67/79\.18 GiB\) .* \(0\.6, 47\.51 GiB\)", second.log()
            )
        with running(
            simulator, "a/model", tmp_path / "c", *share, env=gpus(folder, CUDA_VISIBLE_DEVICES="GPU-0001")
        ) as third:
            third.wait_ready(10)
            assert sorted(holders(folder).values()) == ["GPU-0000", "GPU-0001"]
        os.kill(first.pid, signal.SIGTERM)
        assert first.end(5) == 0
        first.wait_until(lambda: held(folder) == {}, 5, "memory left")
    with running(simulator, "a/model", tmp_path / "d", *share, env=gpus(folder)) as fourth:
        fourth.wait_ready(10)


@pytest.mark.slow
def test_orphans_go_on_holding(simulator: Path, tmp_path: Path, folder: str) -> None:
    """A root that was killed leaves its engine, its workers and their memory, until these are ended."""
    with running(simulator, "a/model", tmp_path / "a", "-tp", "2", env=gpus(folder)) as server:
        server.wait_ready(10)
        workers = {str(each.pid) for each in server.processes() if each.title.startswith("VLLM::Worker")}
        assert set(holders(folder)) == workers
        os.kill(server.pid, signal.SIGKILL)
        server.end(5)
        assert held(folder) == dict.fromkeys(("GPU-0000", "GPU-0001"), -(-CUDA * 92 // 100) + GIB // 2)
        with running(simulator, "a/model", tmp_path / "b", env=gpus(folder)) as second:
            assert second.end(10) == 1
            assert "Free memory on device cuda:0" in second.log()
        for engine in server.engines():
            os.kill(engine.pid, signal.SIGKILL)
        server.wait_until(lambda: held(folder) == {}, 5, "memory left")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "visible", "said"),
    [
        (("-tp", "8"), None, r"World size \(8\) is larger than the number of available GPUs \(2\)"),
        (("-tp", "2"), "1", r"World size \(2\) is larger than the number of available GPUs \(1\)"),
        (("-dp", "3"), None, r"AssertionError: DP adjusted local rank 2 is out of bounds"),
        ((), "GPU-none", r"NVMLError_NotFound: Not Found"),
    ],
)
def test_gpus_that_are_not_there(
    simulator: Path, tmp_path: Path, folder: str, words: tuple[str, ...], visible: str | None, said: str
) -> None:
    """A start that wants or names them ends with 1 and holds nothing."""
    env = gpus(folder, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    with running(simulator, "a/model", tmp_path / "log", *words, env=env) as server:
        assert server.end(10) == 1
        assert re.search(said, server.log())
        assert "simulator of vLLM:" not in server.log()
        server.wait_until(lambda: not server.processes(), 5, "processes left")
    assert held(folder) == {}


@pytest.mark.slow
def test_each_replica_has_its_gpu(simulator: Path, tmp_path: Path, folder: str) -> None:
    """Two engines of data parallelism, the memory of a GPU each."""
    with running(simulator, "a/model", tmp_path / "log", "-dp", "2", env=gpus(folder)) as server:
        server.wait_ready(10)
        ranks = {str(each.pid): each.title for each in server.engines()}
        found = {ranks[pid]: uuid for pid, uuid in holders(folder).items()}
        assert found == {"VLLM::EngineCore_DP0": "GPU-0000", "VLLM::EngineCore_DP1": "GPU-0001"}


@pytest.mark.slow
def test_an_older_version_knows_no_uuids(tmp_path: Path, folder: str) -> None:
    """It ends with Python's own words; a number it takes. The GPU's total decides about its cache."""
    old = install(tmp_path / "old", version="0.22.1")
    with running(old, "a/model", tmp_path / "a", env=gpus(folder, CUDA_VISIBLE_DEVICES="GPU-0001")) as server:
        assert server.end(10) == 1
        assert "ValueError: invalid literal for int() with base 10: 'GPU-0001'" in server.log()
    with running(old, "a/model", tmp_path / "b", env=gpus(folder, CUDA_VISIBLE_DEVICES="1")) as server:
        server.wait_ready(10)
        assert list(holders(folder).values()) == ["GPU-0001"]
        assert "Available KV cache memory: 68.56 GiB" in server.log()


@pytest.mark.slow
def test_a_description_that_cannot_be_read(simulator: Path, tmp_path: Path) -> None:
    """One line, with the path."""
    with running(simulator, "a/model", tmp_path / "log", env={"VLLM_SIMULATOR_GPUS": str(tmp_path)}) as server:
        assert server.end(5) == 1
        assert f"simulator of vLLM: {tmp_path}/gpus: No such file or directory" in server.log()
        assert "Traceback" not in server.log()


def test_a_holder_is_written_whole(folder: str) -> None:
    """What it held before is gone, and no half-written file is left."""
    Path(folder, "held").mkdir()
    for sizes in ({"GPU-0000": 1, "GPU-0001": 2}, {"GPU-0001": 3}):
        hold(folder, os.getpid(), sizes)
    assert held(folder) == {"GPU-0001": 3}
    assert [path.name for path in Path(folder, "held").iterdir()] == [str(os.getpid())]

"""GPUs as the real agent tells them: the real pynvml over a stand-in of the driver's library, nvidia-smi, nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.conftest import SLUG, World, oldest_python, wait_until
from tests.agent.driver import ROOM, Agent, build_archive
from tests.lab.nvml import NAME, build
from vmreconcile.agent import gpus, kernel_log, nvidia_smi
from vmreconcile.effects.observe import host_view
from vmreconcile.model.observed import HostView
from vmreconcile.simulator.gpu_folder import hold

Json = dict[str, Any]
GIB = 1 << 30
H100 = 85_520_809_984
FIRST, SECOND = "GPU-5a1c7e52-0c2f-5d4b-9d57-0e7f3b0a8f10", "GPU-8f6d2b11-7a43-5c0e-8a35-4c2d9e6b7f21"
PART, OTHER_PART = "MIG-11111111-7a43-5c0e-8a35-4c2d9e6b7f21", "MIG-22222222-7a43-5c0e-8a35-4c2d9e6b7f21"
TWO = f"0 {FIRST} {H100} NVIDIA H100 80GB HBM3\n1 {SECOND} {H100} NVIDIA H100 80GB HBM3\n"
SPLIT = (
    f"{TWO}1 {PART} 10468982784 NVIDIA H100 80GB HBM3 MIG 1g.10gb\n"
    f"1 {OTHER_PART} 42144366592 NVIDIA H100 80GB HBM3 MIG 3g.40gb\n"
)
NOTHING = "no NVIDIA driver on this host"
XIDS = """\
6,1,100,-;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  595.71
 SUBSYSTEM=pci
4,2,200,-;NVRM: Xid (PCI:0000:20:00): 31, pid=77, name=python, Ch 00000008, intr 00000000.
4,3,300,-;NVRM: Xid (PCI:0000:20:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
4,4,400,-;NVRM: Xid (PCI:0000:20:00): 31, pid=78, name=python, Ch 00000008, intr 00000000.
4,5,500,c;NVRM: Xid (PCI:0000:20:00.0): no number
4,6,600,-;somebody wrote NVRM: Xid (PCI:0000:10:00): 48, made up
"""

pretended = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
bare = pytest.mark.skipif(any(map(os.path.exists, gpus.SIGNS)), reason="this machine has an NVIDIA driver")


class Cards:
    """A folder of pretended GPUs, and agents that see them."""

    def __init__(self, folder: Path, library: Path) -> None:
        """Two GPUs that nobody uses."""
        self.folder = folder
        self.root = folder / "root"
        self.messages = folder / "kmsg"
        self.environ = {"LD_LIBRARY_PATH": str(library.parent), "STANDIN_NVML": str(folder)}
        self.agents: list[Agent] = []
        (folder / "held").mkdir()
        self.root.mkdir()
        self.messages.touch()
        self.are(TWO)

    def are(self, text: str, *faults: str) -> None:
        """Describe the GPUs, and what goes wrong."""
        (self.folder / "gpus").write_text(text)
        (self.folder / "faults").write_text("".join(f"{line}\n" for line in faults))

    def agent(self, python: str = sys.executable, environ: Mapping[str, str] | None = None) -> Agent:
        """A new agent in which only the path of the kernel's messages is another."""
        words = [f"{name}={text}" for name, text in {**self.environ, **(environ or {})}.items()]
        source = (ROOM / "kernel_log.py").read_text().replace('"/dev/kmsg"', repr(str(self.messages)))
        archive = build_archive(pynvml=True, replacing={"kernel_log.py": source})
        self.agents.append(Agent(self.root, python=python, prefix=("env", *words), archive=archive))
        return self.agents[-1]

    def seen(self, **options: Any) -> Json:  # noqa: ANN401 - of `agent`
        """What an agent says of them."""
        found: Json = self.agent(**options).observe(gpus=True)["gpus"]
        return found

    def view(self) -> HostView:
        """The host as the controller reads it."""
        return host_view("h1", "00" * 8, {"observation": self.agent().observe(gpus=True)})

    def program(self, text: str) -> Path:
        """A program called nvidia-smi; returns the folder for PATH."""
        path = self.folder / "bin" / "nvidia-smi"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
        return path.parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, built."""
    return build(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def cards(tmp_path: Path, library: Path) -> Iterator[Cards]:
    """Two pretended GPUs."""
    made = Cards(tmp_path, library)
    yield made
    for agent in made.agents:
        agent.close()


@pytest.fixture
def program() -> Iterator[int]:
    """A process that lives as long as the test; its pid."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pretended
def test_two_gpus_and_who_holds_them(cards: Cards, program: int) -> None:
    """Every field, through to the controller's own nouns; a program in two lists counts once, one that ended not."""
    cards.are(TWO, "reserved 0 500000000", "graphics too", "compute_mode 1 exclusive_thread", "ecc 0 3")
    hold(str(cards.folder), program, {FIRST: 3 * GIB, SECOND: GIB})
    (cards.folder / "held/1").write_text(f"1 12345678901 {FIRST} {GIB}\n")  # another process by now
    view = cards.view()
    first, second = view.gpus
    assert (view.gpu_problem, view.gpu_driver, view.gpu_cuda) == (None, "595.71", "13.2")
    assert (first.index, first.uuid, first.name, first.pci) == (0, FIRST, "NVIDIA H100 80GB HBM3", "0000:10:00.0")
    used = 3 * GIB + 500_000_000
    assert (first.memory_total, first.memory_used, first.memory_free) == (H100, used, H100 - used)
    assert (first.split, first.parent, first.instance, first.compute_mode) == (False, "", None, "default")
    assert (first.ecc_errors, first.remapping_failed, first.xids) == (3, False, ())
    assert (second.pci, second.compute_mode, second.ecc_errors) == ("0000:20:00.0", "exclusive_process", 0)
    assert (first.processes, second.processes) == (((program, 3 * GIB),), ((program, GIB),))
    assert view.programs == {program: "sleep 60"}


@pretended
@pytest.mark.slow
def test_a_split_gpu(cards: Cards, program: int) -> None:
    """Its instances follow it, with its place and health; a program on one is counted there and nowhere else."""
    cards.are(SPLIT, "ecc 1 2", "compute_mode 1 prohibited")
    hold(str(cards.folder), program, {PART: GIB, OTHER_PART: 2 * GIB})
    found = cards.seen()
    assert [(row["uuid"], row["index"], row["split"], row["parent"], row["instance"]) for row in found["devices"]] == [
        (FIRST, 0, False, "", None),
        (SECOND, 1, True, "", None),
        (PART, 1, False, SECOND, 0),
        (OTHER_PART, 1, False, SECOND, 1),
    ]
    _, parent, one, other = found["devices"]
    assert (parent["processes"], parent["memory_used"]) == ([], 3 * GIB)
    assert [row["memory_bytes"] for row in (*one["processes"], *other["processes"])] == [GIB, 2 * GIB]
    assert gpus.memory_by_pid(found) == {program: 3 * GIB}
    assert (one["name"], one["memory_total"]) == ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 10_468_982_784)
    assert (other["pci"], other["ecc_errors"], other["compute_mode"]) == ("0000:20:00.0", 2, "prohibited")


@pretended
@pytest.mark.slow
def test_split_without_instances(cards: Cards) -> None:
    """It is there, and nothing else of it."""
    cards.are(TWO, "mig 0 on")
    assert [row["split"] for row in cards.seen()["devices"]] == [True, False]


@pretended
@pytest.mark.slow
def test_an_instance_that_goes_while_it_is_looked_at(cards: Cards) -> None:
    """It alone is left out: neither its GPU nor the other instance."""
    cards.are(SPLIT, f"gone {PART}")
    found = cards.seen()
    assert found["problem"] is None
    assert [(row["uuid"], row["instance"]) for row in found["devices"][1:]] == [(SECOND, None), (OTHER_PART, 1)]


@pretended
@pytest.mark.slow
def test_a_split_gpu_for_who_is_not_root(cards: Cards) -> None:
    """The memory of the whole is not told; that of its instances is, and nothing is wrong."""
    cards.are(SPLIT, "memory 1 denied")
    view = cards.view()
    assert view.gpu_problem is None
    assert [gpu.memory_total for gpu in view.gpus] == [H100, 0, 10_468_982_784, 42_144_366_592]


@pretended
@pytest.mark.slow
def test_a_driver_that_does_not_end_well(cards: Cards) -> None:
    """What it told before counts."""
    cards.are(TWO, "missing nvmlShutdown")
    found = cards.seen()
    assert (found["problem"], len(found["devices"])) == (None, 2)


@pretended
@pytest.mark.slow
@pytest.mark.parametrize("word", ["lost", "falling", "unknown"])
def test_a_lost_gpu_hides_no_other(cards: Cards, word: str) -> None:
    """It is named, with what the kernel says; whichever question it is that it no longer answers."""
    cards.are(TWO, f"{word} 1")
    cards.messages.write_text(XIDS)
    view = cards.view()
    assert [gpu.uuid for gpu in view.gpus] == [FIRST]
    why = "Unknown Error" if word == "unknown" else "GPU is lost"
    assert view.gpu_problem == f"GPU 1 does not answer: {why}; the kernel tells of Xid 31, 79 at PCI 0000:20:00"


@pretended
@pytest.mark.slow
def test_all_gpus_lost(cards: Cards, tmp_path: Path) -> None:
    """Then nvidia-smi is not asked: it would know no more."""
    cards.are(TWO, "lost 0", "lost 1")
    found = cards.seen(environ={"PATH": f"{cards.program(f'touch {tmp_path}/asked')}:{os.environ['PATH']}"})
    assert found["devices"] == []
    assert found["problem"] == "GPU 0 does not answer: GPU is lost; GPU 1 does not answer: GPU is lost"
    assert not (tmp_path / "asked").exists()


OPTIONAL = {
    "nvmlSystemGetDriverVersion": {},
    "nvmlSystemGetCudaDriverVersion_v2": {},
    "nvmlDeviceGetName": {"name": ""},
    "nvmlDeviceGetMemoryInfo": {"memory_total": 0, "memory_used": 0, "memory_free": 0},
    "nvmlDeviceGetPciInfo_v3": {"pci": "", "xids": []},
    "nvmlDeviceGetComputeMode": {"compute_mode": ""},
    "nvmlDeviceGetMigMode": {},
    "nvmlDeviceGetTotalEccErrors": {"ecc_errors": None},
    "nvmlDeviceGetRemappedRows": {"remapping_failed": False},
    "nvmlDeviceGetGraphicsRunningProcesses_v3": {},
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": {},
    "nvmlDeviceGetComputeRunningProcesses_v3": {},
}
"""What an old driver may lack, and what is then not told of GPU 1. The last has an older form that does as well."""


@pretended
@pytest.mark.slow
def test_functions_that_a_driver_lacks(cards: Cards, program: int) -> None:
    """Each takes its own field with it, and no other."""
    faults = ("ecc 1 4", "remapping 1 failed", "compute_mode 1 prohibited")
    cards.are(TWO, *faults)
    cards.messages.write_text(XIDS)
    hold(str(cards.folder), program, {SECOND: GIB})
    agent = cards.agent()
    whole = agent.observe(gpus=True)["gpus"]
    told = whole["devices"][1]
    assert (told["ecc_errors"], told["remapping_failed"], told["xids"]) == (4, True, [31, 79])
    assert [row["memory_bytes"] for row in told["processes"]] == [GIB]
    for function, fields in OPTIONAL.items():
        cards.are(TWO, *faults, f"missing {function}")
        found = agent.observe(gpus=True)["gpus"]
        assert found["problem"] is None, function
        assert found["devices"][1] == {**told, **fields}, function
        assert (found["driver"] is None) == (function == "nvmlSystemGetDriverVersion")
        assert (found["cuda"] is None) == (function == "nvmlSystemGetCudaDriverVersion_v2")
    cards.are(TWO, *(f"missing nvmlDeviceGetComputeRunningProcesses_{version}" for version in ("v2", "v3")))
    assert agent.observe(gpus=True)["gpus"]["devices"][1]["processes"] == []


@pretended
@pytest.mark.slow
def test_what_is_not_supported_or_not_permitted(cards: Cards, program: int) -> None:
    """Memory faults of a GPU without ECC, processes of others, and how much they hold."""
    hold(str(cards.folder), program, {FIRST: GIB})
    agent = cards.agent()
    for fault, processes in (("denied", []), ("hidden", [{"pid": program, "memory_bytes": None, "what": "sleep 60"}])):
        cards.are(TWO, "ecc 0 unsupported", "mig 0 unsupported", f"processes {fault}")
        found = agent.observe(gpus=True)["gpus"]
        device = found["devices"][0]
        assert (found["problem"], device["ecc_errors"], device["split"]) == (None, None, False)
        assert (device["memory_used"], device["processes"]) == (GIB, processes)
        assert gpus.memory_by_pid(found) == {}


@pretended
@pytest.mark.slow
def test_messages_of_the_kernel(cards: Cards) -> None:
    """By the GPU's place, each number once, in their order; where they cannot be read there are none."""
    cards.messages.write_text(XIDS)
    assert [row["xids"] for row in cards.seen()["devices"]] == [[], [31, 79]]
    cards.messages.unlink()
    assert [row["xids"] for row in cards.seen()["devices"]] == [[], []]


SMI = f"""
case "$*" in
  *compute-apps*) echo "{FIRST}, 77, 1024"; echo "{SECOND}, 78, [N/A]";;
  *mig.mode*) {{}};;
  *) echo "0, {FIRST}, NVIDIA A100, 81920, 1024, 80000, 430.10";;
esac
"""
TOLD = f"""cat <<'END'
0, {FIRST}, NVIDIA A100, 81920, 1024, 80000, 595.71, Prohibited, [N/A], 00000000:10:00.0, 5
1, {SECOND}, NVIDIA A100, 81920, 0, 81920, 595.71, Exclusive_Process, Enabled, 00000000:20:00.0, [N/A]
END
"""


@pretended
@pytest.mark.slow
@pytest.mark.parametrize("broken", ["init mismatch", "init driver", "empty file"])
def test_nvidia_smi_where_nvml_cannot_be_used(cards: Cards, tmp_path: Path, broken: str) -> None:
    """The same form; what is used counts what the driver keeps, as with NVML."""
    cards.are(TWO, broken)
    cards.messages.write_text(XIDS)
    environ = {"PATH": f"{cards.program(SMI.format(TOLD))}:{os.environ['PATH']}"}
    if broken == "empty file":
        (tmp_path / NAME).touch()
        environ["LD_LIBRARY_PATH"] = str(tmp_path)
    found = cards.seen(environ=environ)
    first, second = found["devices"]
    assert (found["problem"], found["driver"], found["cuda"]) == (None, "595.71", None)
    assert (first["compute_mode"], first["split"], first["ecc_errors"]) == ("prohibited", False, 5)
    assert (first["memory_used"], first["memory_free"]) == (1920 << 20, 80000 << 20)
    assert (second["compute_mode"], second["split"], second["ecc_errors"]) == ("exclusive_process", True, None)
    assert (second["pci"], second["xids"], first["xids"]) == ("0000:20:00.0", [31, 79], [])
    held = [[(row["pid"], row["memory_bytes"]) for row in device["processes"]] for device in (first, second)]
    assert held == [[(77, GIB)], [(78, None)]]
    assert set(first) == set(second) == set(Cards.seen(cards, environ=environ)["devices"][0])


@pretended
@pytest.mark.slow
def test_an_old_nvidia_smi(cards: Cards) -> None:
    """One that refuses a field is asked for fewer."""
    cards.are(TWO, "init mismatch")
    refusal = 'echo "Field \\"mig.mode.current\\" is not a valid field to query."; exit 2'
    found = cards.seen(environ={"PATH": f"{cards.program(SMI.format(refusal))}:{os.environ['PATH']}"})
    (device,) = found["devices"]
    assert (found["problem"], found["driver"], device["memory_total"]) == (None, "430.10", 81920 << 20)
    assert (device["compute_mode"], device["pci"], device["ecc_errors"]) == ("", "", None)


@pretended
@pytest.mark.slow
def test_nvidia_smi_with_a_lost_gpu(cards: Cards) -> None:
    """It fails, and tells of the others all the same; so do we, with its words."""
    cards.are(TWO, "init driver")
    lost = "Unable to determine the device handle for GPU1: 0000:20:00.0: GPU is lost.  Reboot the system"
    script = SMI.format(f"echo '{lost}'\n{TOLD.replace(TOLD.splitlines()[2], '')}exit 15")
    found = cards.seen(environ={"PATH": f"{cards.program(script)}:{os.environ['PATH']}"})
    assert [row["uuid"] for row in found["devices"]] == [FIRST]
    assert found["devices"][0]["compute_mode"] == "prohibited", "not asked for fewer fields"
    assert found["problem"] == f"nvidia-smi: {lost}"


@pretended
@pytest.mark.slow
def test_neither(cards: Cards, tmp_path: Path) -> None:
    """NVML's own words; without NVML, those of nvidia-smi or that it is not there."""
    cards.are(TWO, "init mismatch")
    assert cards.seen()["problem"] == "NVML: Driver/library version mismatch"
    (tmp_path / NAME).touch()
    environ = {"LD_LIBRARY_PATH": str(tmp_path)}
    problem = cards.seen(environ=environ)["problem"]
    assert "neither libnvidia-ml.so.1 nor nvidia-smi can be used" in problem
    environ["PATH"] = f"{cards.program('echo no devices were found; exit 6')}:{os.environ['PATH']}"
    found = cards.seen(environ=environ)
    assert (found["problem"], found["devices"]) == ("nvidia-smi: no devices were found", [])


@bare
def test_nothing_at_all(tmp_path: Path) -> None:
    """A host without a driver says so, and loads nothing for it: neither ctypes nor pynvml."""
    agent = Agent(tmp_path, archive=build_archive(pynvml=True))
    with contextlib.closing(agent):
        found = agent.observe(gpus=True)["gpus"]
        assert found == {"problem": NOTHING, "driver": None, "cuda": None, "devices": []}
        loaded = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "python" in loaded
    assert "ctypes" not in loaded
    assert "libffi" not in loaded


def count_of(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


@bare
def test_nothing_costs_nothing() -> None:
    """Looking for a driver is a few system calls."""
    assert min(count_of(gpus.observe) for _ in range(5)) < 0.001


@pretended
@pytest.mark.slow
def test_the_oldest_python(cards: Cards, program: int) -> None:
    """Python 3.8 with the same pynvml, where there is one."""
    old = oldest_python()
    if not old:
        pytest.skip("no Python 3.8 here")
    cards.are(SPLIT)
    cards.messages.write_text(XIDS)
    hold(str(cards.folder), program, {PART: GIB})
    assert cards.seen(python=old) == cards.seen()


@pretended
@pytest.mark.slow
def test_a_simulated_vllm_is_seen_on_its_gpu(cards: Cards, world: World) -> None:
    """Agent, pynvml and a simulated server that holds pretended memory together: found with it, and gone with it."""
    world.agent.close()
    world.agent = cards.agent()
    world.agent.folders = {"config": world.path("config"), "state": world.path("state")}
    world.start("--gpu-memory-utilization", "0.5", env={"VLLM_SIMULATOR_GPUS": str(cards.folder)})
    server = world.ready()
    (engine,) = [child for child in server["process"]["children"] if child["title"].startswith("VLLM::EngineCore")]
    first, second = world.agent.observe(gpus=True)["gpus"]["devices"]
    (row,) = first["processes"]
    assert (row["pid"], second["processes"]) == (engine["pid"], [])
    assert abs(row["memory_bytes"] - H100 / 2) < GIB
    assert world.agent.server(SLUG, gpus=True)["process"]["children"] == [
        {**child, "gpu_memory_bytes": row["memory_bytes"] if child is engine else None}
        for child in server["process"]["children"]
    ]
    world.agent.steps(world.stop_step())
    wait_until(lambda: world.agent.observe(gpus=True)["gpus"]["devices"][0]["memory_used"] == 0)


def test_the_kernels_own_messages() -> None:
    """Read as far as they may be, within the limits, whatever is in them."""
    assert count_of(kernel_log.xids) < kernel_log.TIME_LIMIT_S + 1


@given(st.text() | st.text("0123456789:.,;abcdef() NVRM Xid PCI\n"))
def test_any_message_is_read(text: str) -> None:
    """Nothing makes the readers fail."""
    assert all(len(place) == 3 and numbers for place, numbers in kernel_log.parse(text).items())
    kernel_log.parse(f"4,1,1,-;{kernel_log.MARK}{text}")
    nvidia_smi.parse(text, text)
    nvidia_smi.parse(f"0, GPU-1, H100, 1, 1, 1, 5, Default, x, {text}, {text}", f"GPU-1, {text}, {text}")


def test_an_error_of_an_instance_is_its_gpus() -> None:
    """The driver then names the instance behind the place."""
    told = "4,1,1,-;NVRM: Xid (PCI:0000:20:00 GPU-I:05 GPU-CI:00): 95, pid=7, name=x, Uncontained\n"
    older = "4,2,2,-;NVRM: Xid (PCI:0000:20:00 GPU-I:05): 94, pid=7, Contained: CE User Channel (0x9)\n"
    assert kernel_log.parse(told + older) == {(0, 0x20, 0): [95, 94]}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("0000:c1:00.0", (0, 0xC1, 0)),
        ("00000000:C1:00.0", (0, 0xC1, 0)),
        ("10de:01:1f", (0x10DE, 1, 31)),
        ("", ()),
        ("c1:00.0", ()),
        ("x:c1:00", ()),
    ],
)
def test_places(text: str, place: tuple[int, ...]) -> None:
    """With and without the function, of any width."""
    assert kernel_log.place_of(text) == place

"""GPUs of a host in memory: what their memory does, whom it stops, and how that is told."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.lab.applying import apply, statuses
from tests.lab.fake_gpus import GIB, FakeGpus
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import World, wanted, world
from vmreconcile.model.observed import HostView
from vmreconcile.vllm.log import READY
from vmreconcile.vllm.measured import figures_of
from vmreconcile.vllm.signatures import explain

VLLM = "/usr/local/bin/vllm"
CUDA = 81080 << 20
"""Bytes that an H100 of 80 GB gives to programs (vmreconcile/vllm/memory/gpus.json)."""


def host_with(gpus: int = 2, **options: Any) -> FakeHost:  # noqa: ANN401 - options of a host
    """A host whose servers are processes, not units."""
    return FakeHost("h1", gpus=gpus, systemd=None, **options)


def start(host: FakeHost, slug: str, *words: str, port: int = 8001, **env: str) -> int:
    """Start a server as the agent would: by its steps. Its pid, 0 where it has ended at once."""
    path = f"{host.config}/env/{slug}.env"
    host.steps(
        {
            "slug": slug,
            "steps": [
                {"step": "write-env", "path": path, "entries": sorted(map(list, env.items()))},
                {
                    "step": "spawn",
                    "slug": slug,
                    "argv": [VLLM, "serve", "org/m", "--port", str(port), *words],
                    "env_path": path,
                    "log_path": f"{host.state}/log/{slug}.log",
                    "record": {"server": slug, "runtime": "process"},
                },
            ],
        },
        str,
    )
    root = host.root(slug)
    return root.pid if root else 0


def seen(host: FakeHost, *, metrics: bool = False) -> HostView:
    """The host as the tool sees it, GPUs too."""
    return World(world(wanted("m@h1")).desired, {"h1": host}).fleet().observe_host("h1", metrics=metrics)


def free(host: FakeHost) -> list[float]:
    """GiB that are free on each GPU, as programs count them."""
    return [round(gpu.memory_free / GIB, 2) for gpu in seen(host).gpus]


def test_an_idle_host_shows_its_gpus() -> None:
    """Everything that the observation has of a GPU; the same host has the same UUIDs, another has others."""
    host = FakeHost("h1", gpus=8)
    first, *_, last = seen(host).gpus
    assert (first.index, last.index, first.name, first.memory_total) == (0, 7, "NVIDIA H100 80GB HBM3", 81559 << 20)
    assert (first.memory_free, first.memory_used, first.processes) == (CUDA, (81559 << 20) - CUDA, ())
    assert (first.pci, first.compute_mode, first.ecc_errors, first.xids) == ("0000:18:00.0", "default", 0, ())
    assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", first.uuid)
    assert len({gpu.uuid for gpu in seen(host).gpus}) == len({gpu.pci for gpu in seen(host).gpus}) == 8
    assert [gpu.uuid for gpu in seen(FakeHost("h1", gpus=8)).gpus] == [gpu.uuid for gpu in seen(host).gpus]
    assert seen(FakeHost("h2", gpus=1)).gpus[0].uuid != first.uuid


def test_gpus_are_looked_at_only_when_asked_for() -> None:
    """Waiting for a server asks for none, and its answer holds none."""
    host = host_with()
    fleet = World(world(wanted("m@h1")).desired, {"h1": host}).fleet()
    assert fleet.observe_host("h1", only="m").gpus == ()
    assert host.answers[-1]["observation"]["gpus"] is None
    assert len(fleet.observe_host("h1").gpus) == 2


def test_a_server_holds_its_share_while_it_lives() -> None:
    """Its share of what CUDA names and a context, by its engine; given back when it ends."""
    host = host_with()
    pid = start(host, "a", "--gpu-memory-utilization", "0.5")
    (engine,) = host.kernel.workers(host.kernel.processes[pid])
    first, second = seen(host).gpus
    assert first.processes == ((engine.pid, CUDA // 2 + GIB // 2),)
    assert first.memory_free == CUDA - CUDA // 2 - GIB // 2
    assert (second.processes, second.memory_free) == ((), CUDA)
    process = seen(host).servers[0].process
    assert process is not None
    assert process.children[0].gpu_memory_bytes == CUDA // 2 + GIB // 2
    host.kernel.end(host.kernel.processes[pid], family=True)
    assert free(host) == [79.18, 79.18]


@pytest.mark.parametrize(("version", "share"), [("0.11.2", 0.9), ("0.22.1", 0.92)])
def test_without_a_number_the_version_decides(version: str, share: float) -> None:
    """That of the installed vLLM."""
    host = host_with(1, installed={"": (VLLM, version)})
    start(host, "a")
    ((_, held),) = seen(host).gpus[0].processes
    assert round((held - GIB // 2) / CUDA, 3) == share


def test_several_gpus_have_a_worker_each() -> None:
    """Tensor and pipeline parallel sizes count; the first GPUs are taken, unless the environment names others."""
    host = host_with(8)
    start(host, "a", "-tp", "2", "-pp", "2")
    titles = {process.pid: process.title for process in host.kernel.processes.values()}
    holders = [[titles[pid] for pid, _ in gpu.processes] for gpu in seen(host).gpus]
    assert holders == [*([f"VLLM::Worker_TP{rank}"] for rank in range(4)), [], [], [], []]
    start(host, "b", "-tp", "2", port=8002, CUDA_VISIBLE_DEVICES=f"{host.gpu(7).uuid},5")
    assert [bool(gpu.processes) for gpu in seen(host).gpus] == [True] * 4 + [False, True, False, True]


@pytest.mark.parametrize(
    ("words", "env", "cause", "evidence"),
    [
        (["-tp", "4"], {}, "not_enough_gpus", r"World size \(4\) is larger than the number of available GPUs \(2\)"),
        (["-tp", "2"], {"CUDA_VISIBLE_DEVICES": "0"}, "not_enough_gpus", r"World size \(2\) .* GPUs \(1\)"),
        (["-tp", "2"], {"CUDA_VISIBLE_DEVICES": "0,5,1"}, "not_enough_gpus", r"World size \(2\) .* GPUs \(1\)"),
        (["-dp", "3"], {}, None, r"DP adjusted local rank 2 is out of bounds"),
        ([], {"CUDA_VISIBLE_DEVICES": ""}, None, r"DP adjusted local rank 0 is out of bounds"),
        ([], {"CUDA_VISIBLE_DEVICES": "5"}, None, r"NVMLError_InvalidArgument: Invalid Argument"),
        ([], {"CUDA_VISIBLE_DEVICES": "GPU-none"}, None, r"NVMLError_NotFound: Not Found"),
    ],
)
def test_devices_that_are_not_there(words: list[str], env: Mapping[str, str], cause: str, evidence: str) -> None:
    """A start that names or wants more than there is ends with vLLM's words and holds nothing."""
    host = host_with()
    assert start(host, "a", *words, **env) == 0
    log = host.kernel.logs["a"]
    assert re.search(evidence, "\n".join(log))
    found = explain(log, 1)
    assert (found.kind if found else None) == cause
    assert free(host) == [79.18, 79.18]
    assert not host.kernel.processes


def test_an_older_vllm_knows_only_numbers() -> None:
    """Before 0.24 a UUID is no number; from then on it is taken."""
    old, new = (host_with(installed={"": (VLLM, version)}) for version in ("0.23.0", "0.24.0"))
    uuid = old.gpu(1).uuid
    assert start(old, "a", CUDA_VISIBLE_DEVICES=uuid) == 0
    assert f"ValueError: invalid literal for int() with base 10: '{uuid}'" in old.kernel.logs["a"]
    assert start(new, "a", CUDA_VISIBLE_DEVICES=uuid)
    assert [bool(gpu.processes) for gpu in seen(new).gpus] == [False, True]


def test_numbers_count_as_cuda_counts_unless_told_otherwise() -> None:
    """The fastest GPU is CUDA's first; by PCI bus the numbers are those of NVML."""
    host = host_with(1)
    host.gpu(0).name, host.gpu(0).total = "NVIDIA L4", 23034 << 20
    host.add_gpus(1)
    start(host, "a", CUDA_VISIBLE_DEVICES="0")
    start(host, "b", port=8002, CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    titles = [[host.kernel.processes[pid].session for pid, _ in gpu.processes] for gpu in seen(host).gpus]
    roots = [host.root(slug) for slug in ("b", "a")]
    assert titles == [[root.pid] for root in roots if root]


def test_a_gpu_that_is_in_use_stops_a_start() -> None:
    """It says so in vLLM's words, with what is free after its context; where the exit is 1, nothing is held."""
    host = host_with()
    host.hold(0, 4711, 73.0)
    gpu = seen(host).gpus[0]
    assert gpu.processes == ((4711, 73 << 30),)
    assert start(host, "a", "--gpu-memory-utilization", "0.5") == 0
    found = explain(host.kernel.logs["a"], 1)
    assert found is not None
    assert (found.kind, found.settings) == ("gpu_already_used", ("args.gpu_memory_utilization", "gpus"))
    assert "cuda:0 (5.68/79.18 GiB)" in found.evidence
    assert "(0.5, 39.59 GiB)" in found.evidence
    host.release(4711)
    assert start(host, "a", "--gpu-memory-utilization", "0.5")


def test_shares_of_one_gpu_do_not_quite_add_up_to_one() -> None:
    """Each process has a context beside its share, so two halves do not fit; 0.49 and 0.49 do."""
    host = host_with(1)
    assert start(host, "a", "--gpu-memory-utilization", "0.5")
    assert not start(host, "b", "--gpu-memory-utilization", "0.5", port=8002)
    host = host_with(1)
    assert start(host, "a", "--gpu-memory-utilization", "0.49")
    assert start(host, "b", "--gpu-memory-utilization", "0.49", port=8002)
    assert len(seen(host).gpus[0].processes) == 2


def test_the_second_gpu_of_a_group_is_looked_at_too() -> None:
    """The message names the device as CUDA counts it."""
    host = host_with()
    host.hold(1, None, 70.0)
    assert seen(host).gpus[1].processes == ()
    assert start(host, "a", "-tp", "2") == 0
    assert "Free memory on device cuda:1 (8.68/79.18 GiB)" in "\n".join(host.kernel.logs["a"])


def test_a_killed_root_leaves_the_memory_with_its_workers() -> None:
    """The port is free again, the GPU is not, until the orphans are ended."""
    host = host_with(1)
    start(host, "a")
    host.kill_root("a")
    view = seen(host)
    (orphan,) = view.orphans
    assert view.gpus[0].processes == ((orphan.pid, orphan.gpu_memory_bytes),)
    assert orphan.gpu_memory_bytes is not None
    assert orphan.gpu_memory_bytes > 72 * GIB
    pairs = [[each.pid, each.start_ticks] for each in host.orphans("a")]
    host.steps({"slug": "a", "steps": [{"step": "end-orphans", "slug": "a", "processes": pairs}]}, str)
    assert free(host) == [79.18]


def test_a_driver_takes_its_time_to_give_memory_back() -> None:
    """No process holds it any more, and yet it is not free; a start in that moment fails."""
    host = host_with(1)
    host.gpus_freed_after = 3.0
    pid = start(host, "a")
    host.kernel.end(host.kernel.processes[pid], family=True)
    (gpu,) = seen(host).gpus
    assert (gpu.processes, round(gpu.memory_free / GIB)) == ((), 6)
    assert start(host, "a") == 0
    assert free(host) == [5.83]
    assert free(host) == [79.18]
    assert start(host, "a")


def test_a_reboot_frees_everything() -> None:
    """Whoever held it."""
    host = host_with(1)
    host.gpus_freed_after = 100.0
    start(host, "a")
    host.hold(0, 4711, 1.0)
    host.reboot()
    assert free(host) == [79.18]


def is_ready(host: FakeHost) -> bool:
    """Whether the log of server a says so."""
    return any(READY in line for line in host.kernel.logs["a"])


@pytest.mark.parametrize("version", ["0.22.1", "0.32.0"])
def test_a_start_logs_what_it_measured(version: str) -> None:
    """The lines of that version, read back by the tool's own reader, once the server is ready and not before."""
    host = host_with(1, installed={"": (VLLM, version)})
    host.kernel.behaviours["a"] = Behaviour(ready_after=2.0, beside_gib=17.0, needs_gib=1.75, context=32768)
    start(host, "a", "--gpu-memory-utilization", "0.8")
    assert not is_ready(host)
    seen(host)
    seen(host)
    found = figures_of(host.kernel.logs["a"], {})
    assert is_ready(host)
    assert (found.weights, found.graphs) == (round(15.3 * GIB), round(0.34 * GIB))
    assert found.kv_bytes == round(round(0.8 * 79.18 - 17, 2) * GIB)
    assert found.kv_tokens == (math.ceil(CUDA * 0.8) - 17 * GIB) // (57344 * 16) * 16
    assert explain(host.kernel.logs["a"]) is None
    endpoint = seen(host, metrics=True).servers[0].endpoint
    assert endpoint is not None
    assert endpoint.max_model_len == 32768
    assert endpoint.cache_config["kv_cache_size_tokens"] == str(found.kv_tokens)
    assert endpoint.cache_config["gpu_memory_utilization"] == "0.8"
    without = seen(host).servers[0].endpoint
    assert without is not None
    assert without.cache_config == {}


def test_eager_starts_capture_no_graphs() -> None:
    """No line says they did."""
    host = host_with(1)
    start(host, "a", "--enforce-eager")
    assert figures_of(host.kernel.logs["a"], {}).graphs is None
    assert is_ready(host)


@pytest.mark.parametrize(
    ("words", "kind", "evidence"),
    [
        (["--gpu-memory-utilization", "0.2"], "no_kv_memory", r"No available memory for the cache blocks"),
        (
            ["--gpu-memory-utilization", "0.23"],
            "kv_too_small",
            r"\(32768\), \(1\.75 GiB KV .* \(1\.21 GiB\).*estimated maximum model length is 22\d\d\d",
        ),
        (["--gpu-memory-utilization", "0.23", "--max-model-len", "8192"], None, ""),
        (["--gpu-memory-utilization", "0.23", "--max-model-len", "auto"], None, ""),
        (["--kv-cache-memory-bytes", "1G", "--gpu-memory-utilization", "0.2"], "kv_too_small", r"\(1\.00 GiB\)"),
    ],
)
def test_too_little_for_the_cache(words: list[str], kind: str | None, evidence: str) -> None:
    """What is left beside the model decides, in vLLM's words with numbers that add up."""
    host = host_with(1)
    host.kernel.behaviours["a"] = Behaviour(beside_gib=17.0, needs_gib=1.75, context=32768)
    pid = start(host, "a", *words)
    found = explain(host.kernel.logs["a"], None if pid else 1)
    assert bool(pid) == (kind is None)
    assert (found.kind if found else None) == kind
    assert re.search(evidence, found.evidence if found else "")


def test_auto_takes_the_longest_context_that_fits() -> None:
    """The endpoint says which."""
    host = host_with(1)
    host.kernel.behaviours["a"] = Behaviour(beside_gib=17.0, needs_gib=1.75, context=32768)
    start(host, "a", "--gpu-memory-utilization", "0.23", "--max-model-len", "auto")
    endpoint = seen(host, metrics=True).servers[0].endpoint
    assert endpoint is not None
    assert endpoint.max_model_len == int(endpoint.cache_config["kv_cache_size_tokens"])
    assert 22000 < endpoint.max_model_len < 23000


def test_weights_that_do_not_fit() -> None:
    """With a share that asks for little, a model too large for the GPU runs out of memory while loading."""
    host = host_with(1)
    host.kernel.behaviours["a"] = Behaviour(beside_gib=140.0)
    assert start(host, "a") == 0
    found = explain(host.kernel.logs["a"], 1)
    assert found is not None
    assert found.kind == "out_of_memory"


def test_instances_of_a_split_gpu() -> None:
    """They stand beside their parent, which programs no longer get; one process sees one of them."""
    host = host_with()
    one, two = host.split(1, [("1g.10gb", 9.75), ("3g.40gb", 39.5)])
    whole, parent, first, second = seen(host).gpus
    assert (whole.split, parent.split, first.split) == (False, True, False)
    assert (first.parent, first.instance, first.index, first.label) == (parent.uuid, 0, 1, "GPU 1 instance 0")
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert first.uuid.startswith("MIG-")
    assert second.memory_total == round(39.5 * GIB)
    assert start(host, "a", "--gpu-memory-utilization", "0.5", CUDA_VISIBLE_DEVICES=f"{two.uuid},{one.uuid}")
    assert [len(gpu.processes) for gpu in seen(host).gpus] == [0, 0, 0, 1]
    assert seen(host).gpus[1].memory_used > 19 * GIB
    assert not start(host, "b", "-tp", "2", port=8002, CUDA_VISIBLE_DEVICES=f"{one.uuid},{two.uuid}")


def test_a_gpu_closed_to_programs() -> None:
    """Compute mode 'prohibited' ends every start on it."""
    host = host_with(1)
    host.gpu(0).compute_mode = "prohibited"
    assert start(host, "a") == 0
    assert "busy or unavailable" in "\n".join(host.kernel.logs["a"])


def test_what_a_test_says_of_gpus_counts() -> None:
    """Plain JSON may be set as before, with GPUs and without."""
    host = host_with()
    host.gpus["problem"] = "NVML: Driver/library version mismatch"
    assert (seen(host).gpus, seen(host).gpu_problem) == ((), "NVML: Driver/library version mismatch")
    host = host_with(0)
    assert seen(host).gpu_problem == "no NVIDIA driver on this host"


def test_a_unit_that_finds_its_gpu_taken() -> None:
    """Applied, it runs on the GPU that it names; killed, it is started again by systemd, and fails for memory."""
    server = wanted("a@h1", args={"gpu_memory_utilization": 0.6}, env={"CUDA_VISIBLE_DEVICES": "1"})
    there = world(server, gpus=2)
    host = there.hosts["h1"]
    assert statuses(apply(there)) == {"a@h1": "changed"}
    assert [len(gpu.processes) for gpu in seen(host).gpus] == [0, 1]
    host.hold(1, 4711, 40.0)
    host.kill_root("a")
    unit = host.systemd.unit("vmreconcile-a.service")
    assert (unit.sub, unit.exit_code) == ("auto-restart", 1)
    found = explain(host.kernel.logs["a"], 1)
    assert found is not None
    assert found.kind == "gpu_already_used"
    assert [gpu.processes for gpu in seen(host).gpus] == [(), ((4711, 40 << 30),)]


def test_memory_is_of_whoever_took_it() -> None:
    """The bookkeeping alone: processes that are gone, those that cannot be seen, two GPUs of one process."""
    alive = {7}
    gpus = FakeGpus("m", alive)
    gpus.add(2, "NVIDIA H100 80GB HBM3", 81559 << 20)
    first, second = (gpu.uuid for gpu in gpus.devices)
    gpus.hold(first, 7, 3)
    gpus.hold(second, 7, 4)
    gpus.hold(first, None, 5)
    assert (gpus.by_pid(), gpus.held(first), gpus.held(second)) == ({7: 7}, 8, 4)
    alive.clear()
    gpus.settle(0.0)
    assert (gpus.by_pid(), gpus.held(first), gpus.held(second)) == ({}, 5, 0)
    gpus.release(None)
    assert gpus.held(first) == 0


def test_servers_started_at_once_do_not_take_the_same_memory() -> None:
    """Of twenty that want 0.3 of one GPU three come up, whoever is first."""
    host = host_with(1)
    with ThreadPoolExecutor(20) as pool:
        share = "--gpu-memory-utilization=0.3"
        pids = list(pool.map(lambda number: start(host, f"s{number}", share, port=8001 + number), range(20)))
    assert len([pid for pid in pids if pid]) == 3
    assert len(seen(host).gpus[0].processes) == 3

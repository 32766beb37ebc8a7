"""Hosts with GPUs as values, and servers on them as they are seen: for tests of who gets which GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from tests.lab.worlds import SALT, wanted
from vmreconcile.core.fingerprints import fingerprint
from vmreconcile.core.gpus.knowledge import Lore
from vmreconcile.core.gpus.place import Placing
from vmreconcile.core.placing import placing_of
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Gpu
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import EnvFile, EnvValue, HostView, InstalledVllm, ObservedServer, Process, Record
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.sizes import GIB, MIB
from vmreconcile.vllm.memory.stored import Checkpoint

H100, H100_BYTES = "NVIDIA H100 80GB HBM3", 81559 * MIB
CONFIGS: Mapping[str, dict[str, JsonValue]] = json.loads(
    (Path(__file__).parents[1] / "vllm" / "runs" / "models.json").read_text(encoding="utf-8")
)["models"]


def card(index: int, *, name: str = H100, total: int = H100_BYTES, held: Mapping[int, float] | None = None) -> Gpu:
    """One GPU of host h1; `held` maps pids to GiB."""
    processes = tuple((pid, int(size * GIB)) for pid, size in sorted((held or {}).items()))
    used = sum(size for _, size in processes)
    return Gpu(
        index=index,
        uuid=f"GPU-{index:08d}-0000-4000-8000-000000000000",
        name=name,
        memory_total=total,
        memory_used=used,
        memory_free=total - used,
        processes=processes,
        pci=f"0000:{index:02x}:00.0",
    )


def uuids(*indices: int) -> tuple[str, ...]:
    """The UUIDs of GPUs of h1."""
    return tuple(card(index).uuid for index in indices)


def machine(gpus: int | Iterable[Gpu] = 8, *servers: ObservedServer, version: str = "0.32.0") -> HostView:
    """Host h1 with GPUs, a vLLM and what runs."""
    cards = tuple(card(index) for index in range(gpus)) if isinstance(gpus, int) else tuple(gpus)
    return HostView(
        host="h1",
        now=1000.0,
        boot_id="b",
        uid=0,
        user="root",
        config_dir="/etc/vmreconcile",
        state_dir="/var/lib/vmreconcile",
        salt=SALT,
        gpus=cards,
        gpu_problem=None if cards else "no NVIDIA driver on this host",
        vllm=(InstalledVllm(asked="", path="/usr/bin/vllm", version=version),),
        servers=servers,
    )


def seen(
    slug: str,
    pid: int,
    args: str = "",
    *,
    visible: str = "",
    decided: Mapping[str, JsonValue] | None = None,
    serves: str = "qwen2.5-7b",
) -> ObservedServer:
    """A server that runs, with its arguments in one text and what the tool chose for it."""
    env = {
        "CUDA_VISIBLE_DEVICES": EnvValue(fingerprint=fingerprint(SALT, "CUDA_VISIBLE_DEVICES", visible), value=visible)
    }
    argv = ("/usr/bin/python3", "/usr/bin/vllm", "serve", serves, "--port", "8001", *args.split())
    return ObservedServer(
        slug=slug,
        runtime="systemd",
        record=Record(server=slug, decided=decided or {}),
        process=Process(pid=pid, start_ticks=pid, started_at=900.0, argv=argv, env=env if visible else {}),
    )


def stopped(server: ObservedServer) -> ObservedServer:
    """The same without its process: the env file stays."""
    assert server.process
    kept = EnvFile(path="/etc/vmreconcile/env/x.env", mode=0o600, uid=0, env=server.process.env)
    return replace(server, process=None, env_file=kept)


def model(name: str, config: str = "qwen2.5-7b", **fields: object) -> DesiredServer:
    """A wanted server of h1 whose model has this config.json."""
    return wanted(f"{name}@h1", **{"port": 8001, "model": config, **fields})  # type: ignore[arg-type]


def files_of(servers: Iterable[DesiredServer]) -> dict[ServerId, Checkpoint]:
    """The files of all models, without their tensors."""
    return {each.id: Checkpoint(config=CONFIGS[each.model], tensors=None, source="tests") for each in servers}


def placing(servers: Iterable[DesiredServer], host: HostView, *, files: bool = True) -> Placing:
    """Place servers; `files`: what their models need can be known."""
    servers = list(servers)
    return placing_of(servers, host, Lore(models=files_of(servers) if files else {}))


def indices(found: Placing) -> dict[str, list[int]]:
    """The GPUs of each placed server by index."""
    numbers = {card(index).uuid: index for index in range(64)}
    return {server.local: [numbers[uuid] for uuid in placed.devices] for server, placed in sorted(found.placed.items())}


def numbers(found: Placing) -> dict[str, JsonValue]:
    """The utilizations that the tool chose; None for vLLM's default."""
    return {
        server.local: placed.settings.get("gpu_memory_utilization") for server, placed in sorted(found.placed.items())
    }

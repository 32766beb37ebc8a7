"""Fleets on paper, eight servers a host: their files, and what their agents would have seen. Reaches no host.

As a program it measures the plan in a process of its own: `python scale.py FOLDER HOSTS`.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vmreconcile.core.fingerprints import Known, fingerprint  # noqa: E402 - the path comes first
from vmreconcile.core.launching import make_launch, public_env  # noqa: E402 - as above
from vmreconcile.core.planning import Options, make_plan  # noqa: E402 - as above
from vmreconcile.flows.inputs import Sources, read_inputs  # noqa: E402 - as above
from vmreconcile.model.desired import DesiredFleet, DesiredServer  # noqa: E402 - as above
from vmreconcile.model.observed import (  # noqa: E402 - as above
    Endpoint,
    EnvFile,
    EnvValue,
    FleetView,
    HostView,
    InstalledVllm,
    ObservedServer,
    PortHolder,
    Process,
    Record,
)
from vmreconcile.vllm.catalogue import catalogue_for  # noqa: E402 - as above

SERVERS = 8
SALT = "0123456789abcdef" * 2
DRIFTS_EVERY = 20
"""One server in so many runs with another max_model_len than is wanted."""

INVENTORY_VARS = """\
all:
  vars:
    ansible_user: root
    vllm_executable: /opt/vllm/bin/vllm
    vllm_runtime: process
    vllm_env: {VLLM_LOGGING_LEVEL: INFO}
  children:
"""

MODEL = """\
name: model-{number:05}
model: example/model-{number}
hosts: pool{pool:04}
port: {port}
args:
  max_model_len: {length}
  max_num_seqs: 64
  gpu_memory_utilization: 0.1
  enable_prefix_caching: true
  served_model_name: [model-{number}, alias-{number}]
env:
  HF_HUB_OFFLINE: "1"
hf_token: null
health: {{startup_timeout: 10m}}
"""


def write_fleet(folder: Path, hosts: int) -> None:
    """Write `hosts` hosts in pools of eight, and as many models: each pool's eight models run on its eight hosts."""
    (folder / "inventory").mkdir(parents=True)
    (folder / "models.d").mkdir()
    lines = [INVENTORY_VARS]
    for first in range(0, hosts, SERVERS):
        last = min(first + SERVERS, hosts) - 1
        lines.append(f"    pool{first // SERVERS:04}:\n      hosts:\n        gpu[{first:05}:{last:05}]:\n")
        lines.append("      vars: {vllm_args: {dtype: bfloat16}}\n")
    (folder / "inventory/hosts.yml").write_text("".join(lines))
    for number in range(hosts):
        pool, place = divmod(number, SERVERS)
        text = MODEL.format(number=number, pool=pool, port=8001 + place, length=4096 + 256 * place)
        (folder / f"models.d/model-{number:05}.yaml").write_text(text)


def read_fleet(folder: Path) -> DesiredFleet:
    """What the files ask for."""
    sources = Sources(inventory=(str(folder / "inventory"),), models=folder / "models.d", environ={})
    return read_inputs(sources).desired


def observe(desired: DesiredFleet) -> FleetView:
    """The fleet as its agents would have seen it: every server runs as wanted, but one in twenty with another value."""
    by_host: dict[str, list[DesiredServer]] = {}
    for server in desired.servers:
        by_host.setdefault(server.id.host, []).append(server)
    return FleetView(hosts=tuple(_host(name, servers) for name, servers in sorted(by_host.items())))


def _host(name: str, servers: list[DesiredServer]) -> HostView:
    empty = HostView(
        host=name,
        hostname=name,
        now=1_800_000_000.0,
        boot_id=name,
        uid=0,
        user="root",
        config_dir="/etc/vmreconcile",
        state_dir="/var/lib/vmreconcile",
        salt=SALT,
        vllm=(InstalledVllm(asked="/opt/vllm/bin/vllm", path="/opt/vllm/bin/vllm", version="0.32.0"),),
    )
    seen = tuple(_server(server, empty, 1000 + number) for number, server in enumerate(servers))
    ports = (PortHolder(port=server.port, pid=1000 + at, slug=server.id.slug) for at, server in enumerate(servers))
    return replace(empty, servers=seen, ports=tuple(ports))


def _server(server: DesiredServer, host: HostView, pid: int) -> ObservedServer:
    number = int(server.id.model.rpartition("-")[2]) * SERVERS + int(server.id.host.removeprefix("gpu"))
    runs = server
    if number % DRIFTS_EVERY == 0:
        length = replace(server.settings["max_model_len"], value=2048)
        runs = replace(server, settings={**server.settings, "max_model_len": length})
    launch = make_launch(runs, host, catalogue_for("0.32.0"), token_known=False)
    env = {
        key: EnvValue(fingerprint=fingerprint(SALT, key, value), value=value)
        for key, value in public_env(server).items()
    }
    return ObservedServer(
        slug=server.id.slug,
        runtime="process",
        record=Record(
            server=server.id.local,
            runtime="process",
            pid=pid,
            start_ticks=1,
            boot_id=host.boot_id,
            state="running",
            env_names=tuple(sorted(env)),
        ),
        process=Process(
            pid=pid,
            start_ticks=1,
            started_at=1_799_990_000.0,
            argv=("/opt/vllm/bin/python3", *launch.argv),
            ports=(server.port,),
            env=env,
        ),
        env_file=EnvFile(path=launch.env_path, mode=0o600, uid=0, env=env),
        endpoint=Endpoint(port=server.port, health=200, version="0.32.0"),
    )


def plan(folder: Path, rounds: int) -> str:
    """Measure diff and plan, as often as said: median wall and processor seconds, servers, and changes pending."""
    desired = read_fleet(folder)
    view = observe(desired)
    options = Options(known=Known(salt=SALT))
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        found = make_plan(desired, view, options)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return f"{statistics.median(walls)} {statistics.median(cpus)} {len(found.changes)} {len(found.pending)}"


if __name__ == "__main__":
    print(plan(Path(sys.argv[1]), int(sys.argv[2])))

"""The main job, whole: three real hosts, real systemd, real sshd, real vLLM on the CPU, the real openai client."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from openai import OpenAI

from tests.lab.served import root_pids
from tests.lab.tiny_model import ENVIRONMENT, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = [pytest.mark.system, pytest.mark.vllm]

PATIENCE = 420.0
"""Seconds for three real starts on two cores; one takes 25 s on an idle machine."""

MODEL = """model: {folder}
hosts: {host}
port: 8001
hf_token: null
runtime: {runtime}
health: {{startup_timeout: 6m}}
args:
  served_model_name: {name}
  max_model_len: {length}
  max_num_seqs: 4
  dtype: float32
  enforce_eager: true
  kv_cache_memory_bytes: 67108864
env: {env}
"""


def want(cli: Cli, folder: Path, lengths: dict[str, int]) -> None:
    """Want one model on each host: NAME of the model → its max_model_len. The last one without systemd."""
    env = "{" + ", ".join(f'{name}: "{value}"' for name, value in ENVIRONMENT.items()) + "}"
    for (name, length), host in zip(lengths.items(), cli.lab.hosts, strict=True):
        runtime = "process" if name == "gamma" else "systemd"
        text = MODEL.format(folder=folder, host=host.name, name=name, length=length, env=env, runtime=runtime)
        cli.model(name, text)


def settle(cli: Cli) -> None:
    """Wait until the plan is empty and every server is ready."""
    deadline = time.monotonic() + PATIENCE
    while True:
        status = cli("status", "--json")
        rows = status.json["servers"]
        if all(row["phase"] == "ready" and not row["drift"] for row in rows):
            return
        assert time.monotonic() < deadline, status
        time.sleep(2)


def test_the_main_job(cli: Cli, lab: Lab, hosts: list[Host], vllm: Path) -> None:
    """Three servers come up and answer; then nothing to do; one retune; orphans after kill -9; a reboot."""
    folder = write_model(lab.shared / "tiny")
    cli.inventory({"vllm_executable": str(vllm)})
    lengths = {"alpha": 512, "beta": 512, "gamma": 512}
    want(cli, folder, lengths)

    first = cli("apply", "--json", timeout=PATIENCE)
    assert (first.returncode, first.json["changed"], first.json["failed"]) == (0, 3, 0), first
    with lab.network():
        for name, host in zip(lengths, hosts, strict=True):
            client = OpenAI(base_url=f"http://{host.address}:8001/v1", api_key="none", timeout=60)
            answer = client.completions.create(model=name, prompt="the quick brown", max_tokens=4)
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0
            client.close()
    before = root_pids(hosts)

    again = cli("apply", "--json")
    assert (again.returncode, again.json["changed"]) == (0, 0), again
    assert root_pids(hosts) == before

    lengths["beta"] = 1024
    want(cli, folder, lengths)
    plan = cli("plan", "--json")
    (change,) = plan.json["changes"]
    assert (change["server"], change["action"]) == (f"beta@{hosts[1].name}", "retune")
    assert change["fields"] == [{"path": "args.max_model_len", "before": 512, "after": 1024}]
    retuned = cli("apply", "--json", timeout=PATIENCE)
    assert (retuned.returncode, retuned.json["changed"]) == (0, 1), retuned
    after = root_pids(hosts)
    assert {name for name in after if after[name] != before[name]} == {hosts[1].name}

    for host in (hosts[0], hosts[2]):
        host.exec(["kill", "-9", str(after[host.name])])
    left = {each.pid for each in hosts[2].processes() if each.argv[:1] == ("VLLM::EngineCore",)}
    assert left, "without systemd, the engine outlives its root"
    assert {orphan["pid"] for orphan in cli("plan", "--json").json["orphans"]} >= left
    mended = cli("apply", "--json", timeout=PATIENCE)
    assert (mended.returncode, mended.json["failed"]) == (0, 0), mended
    healed = root_pids(hosts)
    assert healed[hosts[1].name] == after[hosts[1].name]
    assert all(healed[host.name] != after[host.name] for host in (hosts[0], hosts[2]))
    assert not left & hosts[2].pids()
    assert cli("plan", "--detailed-exitcode").returncode == 0

    hosts[1].reboot()
    settle(cli)
    quiet = cli("plan", "--json", "--detailed-exitcode")
    assert quiet.returncode == 0, quiet
    assert (quiet.json["changes"], quiet.json["orphans"], quiet.json["strangers"]) == ([], [], [])

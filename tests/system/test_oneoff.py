"""start, stop, restart, logs, show, status, and a vLLM that is upgraded under its servers. vLLM is simulated."""

from __future__ import annotations

import functools
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import wait_until
from tests.lab.served import pids, root, roots
from tests.lab.wanting import changes, fields, model, phases, results

if TYPE_CHECKING:
    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

STATUS_KEYS = [
    "server", "host", "model", "phase", "pid", "port", "gpus", "gpu_memory_bytes", "started_at", "vllm_version",
    "runtime", "memory", "drift",
]  # fmt: skip

COMMENTED = f"""# The small one.
name: tiny
{model()}# Nobody else may touch this.
env:
  A: "1"  # because
"""


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool with a commented model running on every host; the last one without systemd."""
    cli.inventory({"vllm_executable": simulated_vllm}, {"gpu3": {"vllm_runtime": "process"}})
    (cli.models_folder / "tiny.yaml").write_text(COMMENTED)
    first = cli("apply", "--json")
    assert (first.returncode, first.json["changed"]) == (0, 3), first
    return cli


def running(hosts: list[Host]) -> list[int]:
    """How many servers each host runs."""
    return [len(roots(host)) for host in hosts]


def nothing_follows(host: Host) -> bool:
    """Whether neither journalctl nor an agent is left on a host."""
    return not host.pids("journalctl") and not host.agents()


def test_servers_are_stopped_and_started_and_stay_so(fleet: Cli, hosts: list[Host]) -> None:
    """One host's or all of a model's, again without effect, saved unless told not to; comments survive."""
    file = fleet.models_folder / "tiny.yaml"
    before = pids(hosts)
    stopped = fleet("stop", "tiny@gpu3", "tiny@gpu1", "--json")
    assert stopped.returncode == 0, stopped
    assert results(stopped) == {"tiny@gpu1": ("stop", "changed"), "tiny@gpu3": ("stop", "changed")}
    assert running(hosts) == [0, 1, 0]
    text = file.read_text()
    assert [line for line in COMMENTED.splitlines() if line not in text.splitlines()] == []
    assert text.count("stopped") == 2, text
    assert hosts[0].exec(["systemctl", "is-enabled", "vmreconcile-tiny"], check=False).stdout == "disabled\n"
    again = fleet("stop", "tiny@gpu1", "--json")
    assert (again.returncode, again.json["changed"], file.read_text()) == (0, 0, text), again
    quiet = fleet("plan", "--json", "--detailed-exitcode")
    assert quiet.returncode == 0, quiet
    assert phases(quiet) == {"tiny@gpu1": "stopped", "tiny@gpu2": "ready", "tiny@gpu3": "stopped"}
    assert fleet("restart", "tiny@gpu1").returncode == 64
    assert pids(hosts)["gpu2"] == before["gpu2"]

    started = fleet("start", "tiny", "--json")
    assert (started.returncode, started.json["changed"]) == (0, 2), started
    assert "stopped" not in file.read_text()
    assert [line for line in COMMENTED.splitlines() if line not in file.read_text().splitlines()] == []
    assert pids(hosts)["gpu2"] == before["gpu2"]
    assert fleet("start", "tiny", "--json").json["changed"] == 0
    assert fleet("plan", "--detailed-exitcode").returncode == 0

    text = file.read_text()
    once = fleet("stop", "tiny", "--no-save", "--json")
    assert (once.returncode, once.json["changed"], file.read_text()) == (0, 3, text), once
    assert changes(fleet("plan", "--json"))["tiny@gpu2"] == ("start", "stopped", False)
    whole = fleet("stop", "tiny")
    assert whole.returncode == 0, whole
    assert "state: stopped" in file.read_text()
    assert fleet("start", "tiny@gpu2").returncode == 0
    assert running(hosts) == [0, 1, 0]
    assert fleet("plan", "--detailed-exitcode").returncode == 0

    for words in (["stop", "tinny"], ["start", "tiny@gpu9"], ["restart", "tinny@gpu1"], ["logs", "tiny@gpu9"]):
        wrong = fleet(*words)
        assert wrong.returncode == 64, wrong
    assert "did you mean 'tiny'?" in fleet("stop", "tinny").stderr
    assert "did you mean 'tiny@gpu" in fleet("show", "tinny@gpu1").stderr


def test_restart_and_what_can_be_seen(fleet: Cli, hosts: list[Host]) -> None:
    """A restart touches the servers named; status has exactly the contract's keys; show and logs tell of one server."""
    before = pids(hosts)
    restarted = fleet("restart", "tiny@gpu2", "tiny@gpu3", "--json")
    assert results(restarted) == {"tiny@gpu2": ("restart", "changed"), "tiny@gpu3": ("restart", "changed")}
    after = pids(hosts)
    assert {name for name in after if after[name] != before[name]} == {"gpu2", "gpu3"}

    status = fleet("status", "--json")
    assert list(status.json) == ["format_version", "servers", "strangers", "orphans", "unreachable"]
    for row, host in zip(status.json["servers"], hosts, strict=True):
        assert list(row) == STATUS_KEYS
        assert (row["server"], row["host"], row["model"]) == (f"tiny@{host.name}", host.name, "tiny")
        assert (row["phase"], row["pid"], row["port"]) == ("ready", root(host).pid, 8001)
        assert row["vllm_version"] == "0.32.0+simulator"
        assert (row["gpus"], row["gpu_memory_bytes"], row["drift"]) == ([], None, [])
    assert [row["runtime"] for row in status.json["servers"]] == ["systemd", "systemd", "process"]
    assert "tiny@gpu3" in fleet("status").stdout

    shown = fleet("show", "tiny@gpu2", "--json")
    assert shown.returncode == 0, shown
    assert shown.json["argv"][:3] == [*shown.json["argv"][:1], "serve", "Qwen/Qwen2.5-0.5B-Instruct"]
    assert shown.json["desired"]["args"]["max_model_len"]["value"] == 512
    assert shown.json["desired"]["args"]["max_model_len"]["origin"].startswith("models.d/tiny.yaml:")
    assert shown.json["observed"]["pid"] == root(hosts[1]).pid
    assert "max_model_len" in fleet("show", "tiny@gpu2").stdout

    for host in hosts:
        whole = fleet("logs", f"tiny@{host.name}", "-n", "1000").stdout
        assert "Application startup complete." in whole
        part = fleet("logs", f"tiny@{host.name}", "-n", "2", "--json")
        assert part.json["lines"] == whole.splitlines()[-2:], part
    assert fleet("logs", "tiny@gpu1", "-n", "0").stdout == ""
    wrong = fleet("logs", "tinny@gpu1")
    assert wrong.returncode == 64, wrong
    assert "did you mean 'tiny@gpu1'?" in wrong.stderr
    fleet.model("never", model(port=8009, state="stopped"))
    never = fleet("logs", "never@gpu1")
    assert never.returncode == 1, never
    assert "never@gpu1: " in never.stderr
    assert "no log" in never.stderr


def test_a_followed_log_ends_with_ctrl_c(fleet: Cli, hosts: list[Host]) -> None:
    """New lines come as they are written; Ctrl-C ends it on both sides, under systemd and without."""
    for host in (hosts[0], hosts[2]):
        with fleet.popen("logs", f"tiny@{host.name}", "-f", "-n", "1") as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first
            host.exec(["curl", "-s", "http://127.0.0.1:8001/v1/completions", "-d", "not json"])
            host.exec(["kill", str(root(host).pid)])
            assert any("shutdown" in process.stdout.readline() for _ in range(20))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
            assert process.returncode == 130, (out, err)
            assert "Traceback" not in err
        ended = functools.partial(nothing_follows, host)
        wait_until(ended, 10, f"the side of {host.name} to end")


def test_an_upgraded_vllm_restarts_its_servers(cli: Cli, lab: Lab, hosts: list[Host]) -> None:
    """Another version at the same path: the server of the old one is restarted, reason `version_changed`."""
    folder = lab.shared / "upgraded"

    def install(version: str) -> None:
        done = lab.run([sys.executable, "-m", "vmreconcile.simulator", "install", str(folder), "--version", version])
        assert done.returncode == 0, done.stderr

    install("0.26.0")
    cli.inventory({"vllm_executable": f"{folder}/bin/vllm"})
    cli.models(tiny=model(hosts="gpu1,gpu2"), other=model(hosts="gpu2", port=8003, state="stopped"))
    assert cli("apply").returncode == 0
    assert {row["vllm_version"] for row in cli("status", "--json").json["servers"]} == {"0.26.0+simulator", None}
    install("0.32.0")
    plan = cli("plan", "--json")
    assert changes(plan) == {f"tiny@gpu{n}": ("restart", "version_changed", True) for n in (1, 2)}
    before, after = fields(plan, "tiny@gpu1")["vllm_version"]
    assert (str(before).partition("+")[0], str(after).partition("+")[0]) == ("0.26.0", "0.32.0")
    applied = cli("apply", "--json")
    assert (applied.returncode, applied.json["changed"]) == (0, 2), applied
    assert {row["vllm_version"] for row in cli("status", "--json").json["servers"]} == {"0.32.0+simulator", None}
    assert cli("plan", "--detailed-exitcode").returncode == 0

"""What people and accidents do to servers on their hosts, and what the tool makes of it. vLLM is simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import wait_until
from tests.lab.served import pids, roots
from tests.lab.wanting import changes, errors, fields, model, phases, results

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

UNITS = "/etc/systemd/system/vmreconcile-{}.service"
ENVS = "/etc/vmreconcile/env/{}.env"


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool, with no model yet."""
    cli.inventory({"vllm_executable": simulated_vllm})
    return cli


@pytest.fixture
def faults(lab: Lab, simulated_vllm: str) -> Iterator[Path]:
    """The simulator's switches for the servers on port 8002 of every host; gone after the test."""
    path = lab.shared / "simulator/faults.8002"
    yield path
    path.unlink(missing_ok=True)


def pid_on(host: Host, port: int) -> int:
    """The pid of the root that was started with `port`."""
    found = [one.pid for one in roots(host) if str(port) in one.argv]
    assert len(found) == 1, (host.name, port, roots(host))
    return found[0]


def test_files_changed_by_hand_are_mended_and_processes_left_alone(fleet: Cli, hosts: list[Host]) -> None:
    """Units, env files and records edited, disabled, opened or removed: written anew; no server is touched."""
    gpu1, gpu2, gpu3 = hosts
    fleet.models(
        unit=model(),
        env=model(port=8003, env={"VLLM_LOGGING_LEVEL": "INFO"}),
        record=model(port=8005, hosts="gpu1"),
        reload=model(port=8007, hosts="gpu1,gpu2"),
        gone=model(port=8009, hosts="gpu3"),
    )
    first = fleet("apply", "--json")
    assert (first.returncode, first.json["changed"]) == (0, 10), first
    before = pids(hosts)
    written = gpu1.read(UNITS.format("unit"))

    gpu1.write(UNITS.format("unit"), written.replace('"512"', '"1024"'))
    gpu2.exec(["systemctl", "disable", "vmreconcile-unit"])
    gpu3.write(UNITS.format("unit"), written + "# mine\n")
    gpu3.exec(["systemctl", "daemon-reload"])
    gpu1.write(ENVS.format("env"), gpu1.read(ENVS.format("env")).replace("INFO", "DEBUG") + "MINE=1\n", 0o600)
    gpu2.exec(["chmod", "0644", ENVS.format("env")])
    gpu3.exec(["rm", ENVS.format("env")])
    gpu1.exec(["rm", "/var/lib/vmreconcile/servers/record.json"])
    gpu1.write(UNITS.format("reload") + ".d/nice.conf", "[Service]\nNice=5\n")
    gpu2.write(UNITS.format("reload") + ".d/nice.conf", "[Service]\nNice=5\n")
    gpu2.exec(["systemctl", "daemon-reload"])

    gpu3.shell('rm "$1"; systemctl daemon-reload', UNITS.format("gone"))

    plan = fleet("plan", "--json")
    assert changes(plan) == {
        "gone@gpu3": ("retune", "unit_changed", False),
        "unit@gpu1": ("retune", "unit_changed", False),
        "unit@gpu2": ("retune", "unit_changed", False),
        "unit@gpu3": ("retune", "unit_changed", False),
        "env@gpu1": ("retune", "env_file_changed", False),
        "env@gpu2": ("retune", "env_file_changed", False),
        "env@gpu3": ("retune", "env_file_changed", False),
        "record@gpu1": ("retune", "env_file_changed", False),
        "reload@gpu1": ("retune", "unit_changed", False),
    }
    assert set(fields(plan, "unit@gpu1")) == {"unit.ExecStart", "unit.needs_reload"}
    assert fields(plan, "unit@gpu2") == {"unit.enabled": ("disabled", "enabled")}
    assert fields(plan, "unit@gpu3") == {"unit.text": ("edited", "as written")}
    assert fields(plan, "env@gpu1") == {
        "env_file.VLLM_LOGGING_LEVEL": ("DEBUG", "INFO"),
        "env_file.MINE": ("1", None),
    }
    assert fields(plan, "env@gpu2") == {"env_file.mode": ("0644", "0600")}
    assert fields(plan, "env@gpu3") == {"env_file": (None, ENVS.format("env"))}
    assert fields(plan, "record@gpu1") == {"record": (None, "record")}

    second = fleet("apply", "--json")
    assert (second.returncode, second.json["changed"], second.json["ok"]) == (0, 9, 1), second
    assert pids(hosts) == before
    assert [host.read(UNITS.format("unit")) for host in hosts] == [written] * 3
    assert gpu2.exec(["systemctl", "is-enabled", "vmreconcile-unit"]).stdout.strip() == "enabled"
    assert {host.exec(["stat", "-c", "%a %U", ENVS.format("env")]).stdout for host in hosts} == {"600 root\n"}
    assert "MINE" not in gpu1.read(ENVS.format("env"))
    assert gpu1.exists(UNITS.format("reload") + ".d/nice.conf"), "drop-ins are the owner's"
    third = fleet("plan", "--json", "--detailed-exitcode")
    assert third.returncode == 0, third


def test_files_that_cannot_be_trusted_are_replaced_or_block(fleet: Cli, hosts: list[Host]) -> None:
    """Given to another user or made a link: written anew, the process left alone; a folder open to others blocks."""
    gpu1, gpu2, gpu3 = hosts
    fleet.model("tiny", model())
    assert fleet("apply").returncode == 0
    before = pids(hosts)
    gpu1.exec(["chown", "plain", ENVS.format("tiny")])
    gpu2.shell('mv "$1" /tmp/elsewhere; ln -s /tmp/elsewhere "$1"', ENVS.format("tiny"))
    gpu3.exec(["chmod", "0777", "/var/lib/vmreconcile/servers"])
    plan = fleet("plan", "--json")
    assert changes(plan) == {
        "tiny@gpu1": ("retune", "env_file_changed", False),
        "tiny@gpu2": ("retune", "env_file_changed", False),
        "tiny@gpu3": ("blocked", "folder_unusable", False),
    }
    applied = fleet("apply", "--json")
    assert applied.returncode == 1, applied
    assert "others may write there" in errors(applied)["tiny@gpu3"]["summary"]
    gpu3.exec(["chmod", "0700", "/var/lib/vmreconcile/servers"])
    assert fleet("plan", "--detailed-exitcode").returncode == 0
    assert pids(hosts) == before
    for host in (gpu1, gpu2):
        assert host.exec(["stat", "-c", "%F %a %U", ENVS.format("tiny")]).stdout == "regular file 600 root\n"
    assert gpu2.exists("/tmp/elsewhere"), "what a link names is not ours"


def test_a_drop_in_that_changes_the_server_is_named(fleet: Cli, hosts: list[Host]) -> None:
    """A drop-in with other arguments: the server is retuned, still differs, and the drop-in is named."""
    (gpu1, *_) = hosts
    fleet.model("tiny", model(hosts="gpu1"))
    assert fleet("apply").returncode == 0
    (command,) = [line for line in gpu1.read(UNITS.format("tiny")).splitlines() if line.startswith("ExecStart=")]
    path = UNITS.format("tiny") + ".d/mine.conf"
    gpu1.write(path, "[Service]\nExecStart=\n" + command.replace('"512"', '"1024"') + "\n")
    gpu1.shell("systemctl daemon-reload; systemctl restart vmreconcile-tiny")
    wait_until(lambda: phases(fleet("status", "--json")) == {"tiny@gpu1": "ready"}, 20, "the server", pause=0.2)
    plan = fleet("plan", "--json")
    assert changes(plan) == {"tiny@gpu1": ("retune", "args_changed", True)}
    assert fields(plan, "tiny@gpu1") == {"args.max_model_len": (1024, 512)}
    applied = fleet("apply", "--json")
    assert applied.returncode == 1, applied
    error = errors(applied)["tiny@gpu1"]
    assert error["class"] == "still_differs"
    assert "max_model_len" in error["summary"]
    assert path in error["remedy"]
    gpu1.shell('rm "$1"; systemctl daemon-reload', path)
    assert fleet("apply").returncode == 0
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_killed_and_stopped_servers_come_back(fleet: Cli, hosts: list[Host]) -> None:
    """Roots ended by kill -9, kill -TERM and systemctl stop, under systemd and without: all back, no orphan left."""
    gpu1, gpu2, gpu3 = hosts
    slow = {"VLLM_SIMULATOR_ORPHAN_SECONDS": "1"}
    fleet.models(
        unit=model(hosts="gpu1", args={"tensor_parallel_size": 2}, env=slow),
        other=model(hosts="gpu1", port=8003),
        killed=model(hosts="gpu2", runtime="process", args={"tensor_parallel_size": 2}, env=slow),
        alone=model(hosts="gpu2", runtime="process", port=8003),
        ended=model(hosts="gpu3", runtime="process"),
    )
    assert fleet("apply").returncode == 0
    alone = pid_on(gpu2, 8003)

    gpu1.exec(["systemctl", "stop", "vmreconcile-other"])
    gpu1.exec(["kill", "-9", str(pid_on(gpu1, 8001))])
    gpu2.exec(["kill", "-9", str(pid_on(gpu2, 8001))])
    gpu3.exec(["kill", str(pid_on(gpu3, 8001))])
    wait_until(lambda: not gpu3.pids("VLLM::"), 10, "the server to stop")
    left = {one.pid for one in gpu2.processes() if one.argv[:1] == ("VLLM::EngineCore",)} - {alone}
    plan = fleet("plan", "--json")
    found = changes(plan)
    unit = found.pop("unit@gpu1", ("start", "crashed", False))  # systemd starts it again, and ends its workers before
    assert unit in (("start", "crashed", False), ("start", "root_died", False)), plan
    assert found == {
        "other@gpu1": ("start", "stopped", False),
        "killed@gpu2": ("start", "root_died", False),
        "ended@gpu3": ("start", "crashed", False),
    }
    orphans = {row["pid"] for row in plan.json["orphans"] if row["host"] == "gpu2"}
    workers = {one.pid for one in gpu2.processes() if one.argv[:1] and one.argv[0].startswith("VLLM::Worker")}
    assert workers
    assert workers <= orphans
    assert {row["host"] for row in plan.json["orphans"]} <= {"gpu1", "gpu2"}
    assert orphans & left

    applied = fleet("apply", "--json")
    assert (applied.returncode, applied.json["failed"]) == (0, 0), applied
    assert results(applied)["alone@gpu2"] == ("noop", "ok")
    assert pid_on(gpu2, 8003) == alone
    assert not gpu2.pids() & orphans
    assert [len(roots(host)) for host in hosts] == [2, 2, 1]
    quiet = fleet("plan", "--json", "--detailed-exitcode")
    assert (quiet.returncode, quiet.json["orphans"]) == (0, []), quiet


def test_a_dead_engine_is_restarted_by_systemd_and_a_full_start_limit_is_no_obstacle(
    fleet: Cli, hosts: list[Host]
) -> None:
    """The root exits 0 after its engine: systemd starts it again. Starts used up by hand: apply starts all the same."""
    gpu1, gpu2, _ = hosts
    fleet.models(
        crashing=model(hosts="gpu1", env={"VLLM_SIMULATOR_WATCHDOG_SECONDS": "0.2"}),
        looping=model(hosts="gpu2"),
        plain=model(hosts="gpu3", runtime="process", env={"VLLM_SIMULATOR_WATCHDOG_SECONDS": "0.2"}),
    )
    assert fleet("apply").returncode == 0
    first = pid_on(gpu1, 8001)
    for host in (gpu1, hosts[2]):
        (engine,) = [one.pid for one in host.processes() if one.argv[:1] == ("VLLM::EngineCore",)]
        host.exec(["kill", "-9", str(engine)])
    gpu2.shell("for _ in 1 2 3 4 5 6; do systemctl restart vmreconcile-looping || true; done 2>/dev/null")
    assert "start-limit-hit" in gpu2.exec(["systemctl", "show", "-p", "Result", "vmreconcile-looping"]).stdout
    wait_until(lambda: {one.pid for one in roots(gpu1)} - {first}, 20, "systemd to start it again", pause=0.2)
    wait_until(lambda: not roots(hosts[2]), 5, "the other to end", pause=0.2)
    wait_until(lambda: phases(fleet("status", "--json"))["crashing@gpu1"] == "ready", 20, "the server", pause=0.2)
    plan = fleet("plan", "--json")
    assert changes(plan) == {
        "looping@gpu2": ("start", "crashed", False),
        "plain@gpu3": ("start", "crashed", False),
    }, plan
    applied = fleet("apply", "--json")
    assert (applied.returncode, applied.json["changed"]) == (0, 2), applied
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_a_server_that_dies_while_loading_is_told_and_left_stopped(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """Its class and its log line are reported, of this start and no earlier one; nothing goes on crashing."""
    fleet.models(
        unit=model(hosts="gpu1", port=8002),
        process=model(hosts="gpu2", port=8002, runtime="process"),
        fine=model(hosts="gpu1", port=8001),
    )
    faults.write_text("die=no-kv-memory\n")
    failed = fleet("apply", "--json")
    assert failed.returncode == 1, failed
    assert results(failed) == {
        "fine@gpu1": ("start", "changed"),
        "process@gpu2": ("start", "failed"),
        "unit@gpu1": ("start", "failed"),
    }
    for server in ("unit@gpu1", "process@gpu2"):
        error = errors(failed)[server]
        assert error["class"] == "no_kv_memory", failed
        assert "No available memory for the cache blocks." in error["evidence"]
        assert server in error["remedy"]
    assert [len(roots(host)) for host in hosts] == [1, 0, 0]
    unit = hosts[0].exec(["systemctl", "show", "-p", "ActiveState,UnitFileState", "vmreconcile-unit"]).stdout
    assert unit.split() == ["ActiveState=inactive", "UnitFileState=disabled"]

    faults.write_text("die_text=RuntimeError: something nobody has seen before\n")
    again = fleet("apply", "--json")
    for server in ("unit@gpu1", "process@gpu2"):
        error = errors(again)[server]
        assert error["class"] == "died", again
        assert "No available memory" not in error["evidence"], again
    text = fleet("apply")
    assert text.returncode == 1, text
    assert "vmreconcile logs unit@gpu1" in text.stdout + text.stderr

    faults.unlink()
    assert fleet("apply").returncode == 0
    assert fleet("plan", "--detailed-exitcode").returncode == 0

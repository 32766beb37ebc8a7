"""The fault matrix (docs/faults.md), between controller and hosts: links, sshd, power, clocks. vLLM is simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.command import Cli
from tests.lab.disk import CHECKOUT
from tests.lab.proxy import Proxy
from tests.lab.served import pids, roots
from tests.lab.space import wait_until
from tests.lab.wanting import changes, errors, one_each, phases, results

if TYPE_CHECKING:
    from tests.lab.command import Outcome
    from tests.lab.hosts import Host, Lab

pytestmark = [pytest.mark.system, pytest.mark.slow]

HEALTH = {"startup_timeout": "30s", "soak": 0}
UNIT = "/etc/systemd/system/vmreconcile-m{}.service"
SHIFTED = "import time\nreal = time.time\ntime.time = lambda: real() + {seconds}\n"


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool with a server on each of three hosts, on the last one as a plain process."""
    cli.inventory({"vllm_executable": simulated_vllm}, {"gpu3": {"vllm_runtime": "process"}})
    want(cli, 512)
    first = cli("apply", "--json")
    assert (first.returncode, first.json["changed"]) == (0, 3), first
    return cli


def want(cli: Cli, length: int) -> None:
    """Want a model on each host with this context length, by which a server is told from its predecessors."""
    cli.models(**one_each(health=HEALTH, args={"max_model_len": length}))


def lengths(hosts: list[Host]) -> list[str]:
    """The context length of each host's server, "" where none runs."""
    return [next((_length(one.argv) for one in roots(host)), "") for host in hosts]


def _length(argv: tuple[str, ...]) -> str:
    return argv[argv.index("--max-model-len") + 1]


def settled(cli: Cli, *options: str) -> Outcome:
    """The plan, once no server is starting any more."""
    wait_until(lambda: "starting" not in phases(cli("status", "--json")).values(), 30, "the starts to end", pause=0.3)
    return cli("plan", "--json", "--detailed-exitcode", *options)


def statuses(outcome: Outcome) -> dict[str, str]:
    """What became of each host's server."""
    return {server.partition("@")[2]: status for server, (_, status) in results(outcome).items()}


def test_network_cut_between_write_and_restart(fleet: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str) -> None:
    """Exit 3. An agent that lives finishes what it was sent: the plan is empty. One that died: the plan starts it."""
    lives, dies, _ = hosts
    with lab.network():
        link = Proxy((lives.address, 22))
    with link:
        reached = {"ansible_host": link.address, "ansible_port": link.port}
        fleet.inventory({"vllm_executable": simulated_vllm}, {"gpu1": reached})
        with (fleet.home / ".ssh/known_hosts").open("a") as known:
            known.write(f"[{link.address}]:{link.port} {lives.host_key}\n")
        for host in (lives, dies):
            host.hold_systemctl("start")
        want(fleet, 1024)
        running = fleet.begin("apply", "--json", "--timeout", "3", "--limit", "gpu1,gpu2")
        wait_until(lambda: lives.holds() and dies.holds(), 30, "both to be about to start")
        assert [
            ("1024" in host.read(UNIT.format(number)), len(roots(host))) for number, host in enumerate((lives, dies), 1)
        ] == [(True, 0)] * 2
        link.cut()
        dies.kill_agents()
        done = running.end(60)
        assert (done.returncode, statuses(done)) == (3, {"gpu1": "unreachable", "gpu2": "unreachable"}), done
        link.resume()
        for host in (lives, dies):
            host.release_systemctl()
        wait_until(lambda: roots(lives), 10, "the agent to start the server all the same")
        plan = settled(fleet, "--limit", "gpu1,gpu2")
        assert changes(plan) == {"m2@gpu2": ("start", "stopped", False)}, plan
        before = pids([lives])
        again = fleet("apply", "--json", "--limit", "gpu1,gpu2")
        assert (again.returncode, statuses(again)) == (0, {"gpu1": "ok", "gpu2": "changed"}), again
        assert (pids([lives]), lengths([lives, dies])) == (before, ["1024", "1024"])


def test_sshd_killed_in_mid_apply(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """While a server loads: asked anew, unnoticed. While steps are carried out: exit 3, and the agent ends them."""
    stepping = hosts[0]
    faults.write_text("start_seconds=4\n")
    stepping.hold_systemctl("start")
    want(fleet, 1024)
    running = fleet.begin("apply", "--json")
    wait_until(lambda: stepping.holds() and lengths(hosts[1:]) == ["1024"] * 2, 30, "all to be in the middle")
    for host in hosts:
        host.kill_sshd()
    stepping.release_systemctl()
    done = running.end(60)
    assert done.returncode == 3, done
    assert statuses(done) == {"gpu1": "unreachable", "gpu2": "changed", "gpu3": "changed"}, done
    assert lengths(hosts) == ["1024"] * 3
    before = pids(hosts)
    assert settled(fleet).returncode == 0
    assert pids(hosts) == before


def test_host_rebooted_in_mid_apply(fleet: Cli, hosts: list[Host], faults: Path) -> None:
    """Power cut before the start, or while loading: exit 3. Units come back by themselves, a plain process does not."""
    before_start, loading, _ = hosts
    faults.write_text("start_seconds=4\n")
    before_start.hold_systemctl("start")
    want(fleet, 1024)
    running = fleet.begin("apply", "--json", "--timeout", "2")
    wait_until(lambda: before_start.holds() and lengths(hosts[1:]) == ["1024"] * 2, 30, "all to be in the middle")
    for host in hosts:
        host.kill()
    done = running.end(60)
    assert (done.returncode, set(statuses(done).values())) == (3, {"unreachable"}), done
    for host in hosts:
        host.start()
    for host in hosts:
        host.wait()
    faults.write_text("")
    before_start.release_systemctl()
    wait_until(lambda: lengths([before_start, loading]) == ["1024"] * 2, 20, "the units to come back")
    plan = settled(fleet)
    assert (plan.returncode, changes(plan)) == (2, {"m3@gpu3": ("start", "crashed", False)}), plan
    kept = pids(hosts[:2])
    again = fleet("apply", "--json")
    assert (again.returncode, statuses(again)) == (0, {"gpu1": "ok", "gpu2": "ok", "gpu3": "changed"}), again
    assert (pids(hosts[:2]), lengths(hosts)) == (kept, ["1024"] * 3)
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_two_applies_at_once_from_two_controllers(
    fleet: Cli, lab: Lab, hosts: list[Host], faults: Path, tmp_path: Path
) -> None:
    """The second is refused, exit 4, and told who is there; or it waits, and does not undo what the first has done."""
    (tmp_path / "other").mkdir()
    other = Cli(lab, tmp_path / "other")
    other.inventory({"vllm_executable": str(faults.parent / "bin/vllm")}, {"gpu3": {"vllm_runtime": "process"}})
    faults.write_text("start_seconds=6\n")
    want(fleet, 1024)
    want(other, 2048)
    running = fleet.begin("apply", "--json")
    wait_until(lambda: lengths(hosts) == ["1024"] * 3, 30, "the first to have every host")
    waiting = other.begin("apply", "--json", "--lock-timeout", "60s")
    refused = other("apply", "--json")
    assert (refused.returncode, set(statuses(refused).values())) == (4, {"skipped"}), refused
    for error in errors(refused).values():
        assert (error["class"], "vmreconcile apply --json" in str(error)) == ("locked", True), refused
    done, late = running.end(60), waiting.end(60)
    assert (done.returncode, set(statuses(done).values())) == (0, {"changed"}), done
    assert lengths(hosts) in (["1024"] * 3, ["2048"] * 3), late
    plan = other("plan", "--json", "--detailed-exitcode")
    assert plan.returncode == (0 if lengths(hosts) == ["2048"] * 3 else 2), (late, plan)
    assert other("apply", "--json").returncode == 0
    assert lengths(hosts) == ["2048"] * 3


@pytest.mark.parametrize("seconds", [3600, -3600])
def test_clock_one_hour_off(fleet: Cli, hosts: list[Host], tmp_path: Path, seconds: int) -> None:
    """Doctor tells of it, nothing else does: no server is taken for old or new, changed or slow; a retune works."""
    folder = tmp_path / "shifted"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED.format(seconds=seconds))
    fleet.env["PYTHONPATH"] = f"{folder}:{CHECKOUT}"
    told = json.loads(fleet("doctor", "--json").stdout)
    clocks = [row for row in told["checks"] if row["check"] == "clock"]
    assert [row["status"] for row in clocks] == ["warn"] * 3, told
    before = pids(hosts)
    for host in hosts:
        host.shell(f"find /etc/vmreconcile /var/lib/vmreconcile -exec touch -d '{seconds} seconds' {{}} +")
    assert fleet("plan", "--detailed-exitcode").returncode == 0
    assert set(phases(fleet("status", "--json")).values()) == {"ready"}
    assert (fleet("apply").returncode, pids(hosts)) == (0, before)
    want(fleet, 1024)
    done = fleet("apply", "--json")
    assert (done.returncode, done.json["changed"]) == (0, 3), done
    assert lengths(hosts) == ["1024"] * 3
    assert fleet("plan", "--detailed-exitcode").returncode == 0

"""Crash-only on real hosts: runs are killed with -9 all over an apply, agents too; the next apply converges."""

from __future__ import annotations

import json
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.driver import Refused
from tests.lab.served import pids, roots, written
from tests.lab.space import wait_until
from tests.lab.wanting import model, results
from tests.system.test_agent import agent_on

if TYPE_CHECKING:
    from pathlib import Path

    from tests.agent.driver import Agent
    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = [pytest.mark.system, pytest.mark.slow]

KILLS = 8
APPLY = ("apply", "--max-changes", "99")
HEALTH = {"startup_timeout": "60s", "soak": 0}
WISHES: tuple[dict[str, dict[str, object]], ...] = (
    {
        "keep": {"port": 8001},
        "tune": {"port": 8002, "env": {"PURPOSE": "first"}},
        "one": {"port": 8003, "hosts": "gpu2"},
        "other": {"port": 8004, "hosts": "gpu2", "state": "stopped"},
        "left": {"port": 8005, "hosts": "gpu1"},
        "right": {"port": 8006, "hosts": "gpu1"},
        "moved": {"port": 8007, "hosts": "gpu2"},
        "plain": {"port": 8008, "hosts": "gpu2", "runtime": "process"},
    },
    {
        "keep": {"port": 8001},
        "tune": {"port": 8002, "env": {"PURPOSE": "second"}, "args": {"max_model_len": 1024}},
        "one": {"port": 8003, "hosts": "gpu2", "state": "stopped"},
        "other": {"port": 8004, "hosts": "gpu2"},
        "left": {"port": 8006, "hosts": "gpu1"},
        "right": {"port": 8005, "hosts": "gpu1"},
        "moved": {"port": 8007, "hosts": "gpu2", "runtime": "process"},
        "plain": {"port": 8008, "hosts": "gpu2", "runtime": "process", "args": {"max_model_len": 1024}},
    },
)
"""Two wishes, wanted by turns: each way servers are retuned, started, stopped, moved, and two swap their ports."""


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool, with no model yet."""
    cli.inventory({"vllm_executable": simulated_vllm})
    return cli


def want(cli: Cli, turn: int) -> None:
    """Say one of the two wishes."""
    wish = WISHES[turn % 2]
    cli.models(**{name: model(**{"hosts": "gpu1,gpu2", "health": HEALTH, **fields}) for name, fields in wish.items()})


def ports(host: Host) -> list[str]:
    """The port of every vLLM that a host runs."""
    return sorted(one.argv[one.argv.index("--port") + 1] for one in roots(host))


def expected(turn: int, host: Host) -> list[str]:
    """The ports that a wish names for a host, and the stranger's."""
    wish = WISHES[turn % 2].values()
    there = [row for row in wish if host.name in str(row.get("hosts", host.name)) and row.get("state") != "stopped"]
    return sorted([*(str(row["port"]) for row in there), *(["9000"] if host.name == "gpu1" else [])])


def nothing_is_left_over(host: Host) -> None:
    """No agent, no engine without its root, no file that was begun and not finished, in any folder of ours."""
    wait_until(lambda: not host.agents(), 10, f"the agents of {host.name} to end")
    assert len(host.pids("VLLM::EngineCore")) == len(roots(host)), host.name
    folders = "/etc/vmreconcile /var/lib/vmreconcile /etc/systemd/system"
    assert host.shell(f"find {folders} -name '*.new' -o -name '.*' -type f") == "", host.name
    assert not [path for path in written(host) if path.endswith(".new")]


def test_killed_all_over_an_apply_each_next_one_converges(
    fleet: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str
) -> None:
    """Eight moments spread over an apply, every third with the agents: exit 0, an empty plan, nothing left over."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    stranger = lab.start_by_hand(hosts[0], [simulated_vllm, "serve", "somebody/elses", "--port", "9000"])
    want(fleet, 0)
    assert fleet(*APPLY, "--json").returncode == 0
    want(fleet, 1)
    begun = time.monotonic()
    assert fleet(*APPLY, "--json").returncode == 0
    whole = time.monotonic() - begun
    untouched = {one for host in hosts[:2] for one in _keepers(host)}
    for turn in range(2, 2 + KILLS):
        want(fleet, turn)
        running = fleet.begin(*APPLY)
        time.sleep(whole * (turn - 2 + chance.random()) / KILLS)
        running.send(signal.SIGKILL)
        if turn % 3 == 0:
            hosts[turn % 2].kill_agents()
        running.end()
        wait_until(lambda: not any(host.agents() for host in hosts), 30, "the agents to end what they are at")
        last = fleet(*APPLY, "--json")
        assert last.returncode == 0, (seed, turn, last)
        assert {status for _, status in results(last).values()} <= {"changed", "ok"}, (seed, turn, last)
        quiet = fleet("plan", "--json", "--detailed-exitcode")
        assert (quiet.returncode, quiet.json["orphans"]) == (0, []), (seed, turn, quiet)
        for host in hosts[:2]:
            assert ports(host) == expected(turn, host), (seed, turn, host.name)
            nothing_is_left_over(host)
    assert {one for host in hosts[:2] for one in _keepers(host)} == untouched, seed
    assert stranger in {pid for pid, _ in pids(hosts)["gpu1"]}


def test_each_step_twice_is_as_good_as_once(fleet: Cli, hosts: list[Host], tmp_path: Path) -> None:
    """Every step of a plan, sent again right after it was carried out: it changes nothing, and all is as wanted."""
    want(fleet, 0)
    assert fleet(*APPLY, "--json").returncode == 0
    want(fleet, 1)
    path = tmp_path / "plan.json"
    assert fleet("plan", "-o", str(path)).returncode == 0
    changes = sorted(json.loads(path.read_text())["changes"], key=lambda change: not change["early"])
    assert len(changes) == 8
    seen = set()
    for host in hosts[:2]:
        mine = [change for change in changes if change["host"] == host.name]
        with agent_on(host) as agent:
            for step in [step for change in mine for step in change["stops"]]:
                seen.add(_twice(agent, step))
            for step in [step for change in mine for step in change["steps"]]:
                seen.add(_twice(agent, step))
    assert {"write-file", "write-env", "write-record", "systemctl", "stop-unit", "stop-process", "spawn"} <= seen
    wait_until(lambda: fleet("plan", "--detailed-exitcode").returncode == 0, 30, "the plan to be empty", pause=0.3)
    for host in hosts[:2]:
        nothing_is_left_over(host)
    assert fleet(*APPLY, "--json").json["changed"] == 0


def _twice(agent: Agent, step: dict[str, Any]) -> str:
    """Have a step carried out twice; its name. What runs is not started a second time."""
    agent.steps(step)
    if step["step"] == "spawn":
        with pytest.raises(Refused, match="already-running"):
            agent.steps(step)
    else:
        (again,) = agent.steps(step)
        assert not again["changed"] or step.get("verb") == "daemon-reload", step
    return str(step["step"])


def _keepers(host: Host) -> list[tuple[str, int, int]]:
    """The server that no wish is about."""
    return [(host.name, one.pid, one.start) for one in roots(host) if "8001" in one.argv]

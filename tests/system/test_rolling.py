"""A model's replicas on three real hosts change while a client goes on asking: none of its requests is lost.

vLLM is simulated; hosts, systemd, SSH, the hooks and the client's connections are real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.balancing import Balancer, Client
from tests.lab.hosts import wait_until
from tests.lab.served import root, root_pids
from tests.lab.wanting import USUAL, errors, model, phases

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = [pytest.mark.system, pytest.mark.slow]

ENV = {"VLLM_SIMULATOR_REQUEST_SECONDS": "0.4"}
"""Eight requests are in flight at every moment."""

HOPELESS = {"gpu_memory_utilization": 0.011}
"""Less memory than the simulated weights take: such a start fails."""


@pytest.fixture
def balancer(cli: Cli, hosts: list[Host], simulated_vllm: str, tmp_path: Path) -> Balancer:
    """The balancer in front of three ready replicas, which their own hooks have put into it."""
    cli.inventory({"vllm_executable": simulated_vllm})
    balancer = Balancer(tmp_path / "targets")
    want(cli, balancer)
    started = cli("apply", "--json")
    assert started.returncode == 0, started
    assert sorted(balancer.targets()) == sorted(f"{host.address}:8001" for host in hosts)
    return balancer


def want(cli: Cli, balancer: Balancer, **args: object) -> None:
    """Want the model on all hosts, with `args` over the usual ones."""
    hooks = {"before_stop": balancer.remove, "after_ready": balancer.add}
    usual = USUAL["args"]
    assert isinstance(usual, dict)
    cli.model("tiny", model(hosts="gpu", env=ENV, hooks=hooks, args={**usual, **args}))


def lengths(hosts: list[Host]) -> list[str]:
    """The context that each server was started with."""
    return [argv[argv.index("--max-model-len") + 1] for argv in (root(host).argv for host in hosts)]


def test_a_rolling_retune_loses_no_request(cli: Cli, lab: Lab, hosts: list[Host], balancer: Balancer) -> None:
    """One after the other is taken out, drained, changed, proven and put in; two serve at every moment."""
    before = root_pids(hosts)
    client = Client(balancer, str(USUAL["model"]))
    with client.asking(lab):
        wait_until(lambda: client.sent > 40, 20, "answers before the change")
        want(cli, balancer, max_model_len=1024)
        changed = cli("apply", "--json", "--max-changes", "3")
        assert (changed.returncode, changed.json["changed"]) == (0, 3), changed
        seen = client.sent
        wait_until(lambda: client.sent > seen + 40, 20, "answers after the change")
    assert client.lost == []
    assert (client.unserved, client.fewest) == (0, 2)
    assert set(client.answered) == {f"{host.address}:8001" for host in hosts}
    assert lengths(hosts) == ["1024"] * 3
    assert not set(before.values()) & set(root_pids(hosts).values())
    moves = [line.split(" ") for line in balancer.log()[3:]]
    assert [move[0] for move in moves] == ["out", "in"] * 3, "one at a time"
    assert all(out[1] == back[1] for out, back in zip(moves[::2], moves[1::2], strict=True))
    assert cli("plan", "--detailed-exitcode").returncode == 0


def test_a_retune_that_cannot_start_costs_one_server_and_no_request(
    cli: Cli, lab: Lab, hosts: list[Host], balancer: Balancer
) -> None:
    """The first one that does not come up ends the rollout; the others were not touched, and serve."""
    before = root_pids(hosts)
    client = Client(balancer, str(USUAL["model"]))
    with client.asking(lab):
        wait_until(lambda: client.sent > 40, 20, "answers before the change")
        want(cli, balancer, **HOPELESS)
        failed = cli("apply", "--json", "--max-changes", "3")
        assert failed.returncode == 1, failed
        seen = client.sent
        wait_until(lambda: client.sent > seen + 40, 20, "answers after the change")
    assert client.lost == []
    assert (client.unserved, client.fewest) == (0, 2)
    after = {name: pid for name, pid in before.items() if pid in next(h for h in hosts if h.name == name).pids()}
    assert len(after) == 2
    classes = [error["class"] for error in errors(failed).values()]
    assert "no_kv_memory" in classes, failed


def test_a_retune_that_cannot_start_ends_with_all_on_the_old_settings(
    cli: Cli, lab: Lab, hosts: list[Host], balancer: Balancer
) -> None:
    """The one that was touched has its old settings back, is ready and in the balancer again."""
    client = Client(balancer, str(USUAL["model"]))
    with client.asking(lab):
        want(cli, balancer, max_model_len=1024, **HOPELESS)
        failed = cli("apply", "--json", "--max-changes", "3")
        assert failed.returncode == 1, failed
    assert client.lost == []
    assert set(phases(cli("status", "--json")).values()) == {"ready"}
    assert lengths(hosts) == ["512"] * 3
    assert sorted(balancer.targets()) == sorted(f"{host.address}:8001" for host in hosts)

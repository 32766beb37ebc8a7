"""`apply` on three real hosts with real systemd; vLLM is simulated, everything else is real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.served import root_pids
from tests.lab.wanting import model

if TYPE_CHECKING:
    from tests.lab.command import Cli
    from tests.lab.hosts import Host

pytestmark = pytest.mark.system

MODEL = model(health={"startup_timeout": "30s", "soak": 0})


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool with one model wanted on all three hosts."""
    cli.inventory({"vllm_executable": simulated_vllm})
    cli.model("tiny", MODEL)
    return cli


def test_apply_starts_retunes_and_then_has_nothing_to_do(fleet: Cli, hosts: list[Host]) -> None:
    """Three servers come up; a second apply changes nothing; one host's new value retunes that host's server alone."""
    first = fleet("apply", "--json")
    assert first.returncode == 0, first
    assert (first.json["changed"], first.json["failed"]) == (3, 0), first
    before = root_pids(hosts)

    second = fleet("apply", "--json")
    assert (second.returncode, second.json["changed"]) == (0, 0), second
    assert root_pids(hosts) == before

    fleet.model("tiny", MODEL + f"overrides: {{{hosts[1].name}: {{args: {{max_model_len: 1024}}}}}}\n")
    plan = fleet("plan", "--json", "--detailed-exitcode")
    assert plan.returncode == 2, plan
    (change,) = plan.json["changes"]
    assert (change["server"], change["action"]) == (f"tiny@{hosts[1].name}", "retune")
    assert change["fields"] == [{"path": "args.max_model_len", "before": 512, "after": 1024}]

    third = fleet("apply", "--json")
    assert (third.returncode, third.json["changed"]) == (0, 1), third
    after = root_pids(hosts)
    assert {name for name in after if after[name] != before[name]} == {hosts[1].name}
    assert fleet("plan", "--detailed-exitcode").returncode == 0

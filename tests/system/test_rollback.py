"""Going back on real hosts under real systemd; vLLM is simulated, everything else is real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.served import root, root_pids, written
from tests.lab.wanting import errors, model, results

if TYPE_CHECKING:
    from tests.lab.command import Cli
    from tests.lab.hosts import Host

pytestmark = pytest.mark.system

SECRET = "s3cret-of-the-model-0001"  # made up
TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up
HISTORY = "/var/lib/vmreconcile/history/tiny.json"


def wanted(length: int, **args: object) -> str:
    """The model with that context, a secret of its own and a token."""
    env = {"MY_API_KEY": SECRET, "HF_HUB_OFFLINE": "1"}
    return model(hosts="gpu1", args={"max_model_len": length, **args}, env=env, hf_token="default")


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool, with a token in the person's environment."""
    cli.inventory({"vllm_executable": simulated_vllm})
    cli.env |= {"HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}
    return cli


def length(host: Host) -> str:
    """The context of what runs."""
    argv = root(host).argv
    return argv[argv.index("--max-model-len") + 1]


def test_a_retune_that_cannot_start_ends_on_the_old_settings(fleet: Cli, hosts: list[Host]) -> None:
    """Back and ready under systemd, told with setting, evidence and remedy; then history and a rollback by number."""
    gpu1 = hosts[0]
    fleet.model("tiny", wanted(512))
    assert fleet("apply", "--json").returncode == 0
    fleet.model("tiny", wanted(1024))
    assert fleet("apply", "--json").returncode == 0

    fleet.model("tiny", wanted(1024, gpu_memory_utilization=0.01))
    failed = fleet("apply", "--json")
    assert failed.returncode == 1, failed
    assert results(failed) == {"tiny@gpu1": ("retune", "rolled_back")}, failed
    error = errors(failed)["tiny@gpu1"]
    assert "args.gpu_memory_utilization" in error["summary"], error
    assert error["summary"].endswith("it is back on revision 2, ready"), error
    assert error["evidence"], error
    assert "models.d/tiny.yaml" in error["remedy"], error
    assert "0.01" not in root(gpu1).argv
    assert length(gpu1) == "1024"
    assert gpu1.exec(["systemctl", "is-enabled", "vmreconcile-tiny"]).stdout.strip() == "enabled"
    environ = root(gpu1).environ
    assert (environ["MY_API_KEY"], environ["HF_TOKEN"]) == (SECRET, TOKEN)

    rows = fleet("history", "tiny@gpu1", "--json").json["servers"][0]["revisions"]
    assert [(row["number"], row["good"], row["running"]) for row in rows] == [
        (3, False, False),
        (2, True, True),
        (1, True, False),
    ]
    plan = fleet("plan")
    assert "tried 20" in plan.stdout, plan

    back = fleet("rollback", "tiny@gpu1", "--to", "1")
    assert back.returncode == 0, back
    assert "models.d/tiny.yaml" in back.stderr, back
    assert length(gpu1) == "512"
    before = root_pids([gpu1])
    again = fleet("rollback", "tiny@gpu1", "--to", "1", "--json")
    assert (again.returncode, again.json["changed"]) == (0, 0), again
    assert root_pids([gpu1]) == before

    gpu1.reboot()
    assert length(gpu1) == "512"
    for path in written(gpu1):
        text = gpu1.read(path)
        assert (SECRET in text, TOKEN in text) == (path.endswith("/env/tiny.env"),) * 2, path
    assert gpu1.exec(["stat", "-c", "%a", HISTORY]).stdout.strip() == "600"


def test_a_first_start_that_fails_is_left_stopped(fleet: Cli, hosts: list[Host]) -> None:
    """It was never good: its unit neither runs nor comes back at the next boot."""
    fleet.model("tiny", wanted(512, gpu_memory_utilization=0.01))
    failed = fleet("apply", "--json")
    assert (failed.returncode, results(failed)) == (1, {"tiny@gpu1": ("start", "failed")}), failed
    unit = hosts[0].exec(["systemctl", "show", "vmreconcile-tiny", "-p", "ActiveState", "-p", "UnitFileState"]).stdout
    assert "ActiveState=inactive" in unit, unit
    assert "UnitFileState=disabled" in unit, unit

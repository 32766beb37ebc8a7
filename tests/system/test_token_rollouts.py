"""Tokens and secrets through all that goes wrong in a rollout: hooks, going back, histories, plan files, locks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.lab.wanting import model, results
from tests.system.test_token import Watcher, files_with, log_in, new_token, places_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.command import Cli
    from tests.lab.hosts import Host

pytestmark = pytest.mark.system

KEY = "s3cret-of-the-model-0001"  # made up
HOOKS = {
    "before_stop": "env > seen-$VMRECONCILE_HOST; env",
    "after_ready": "env >> seen-$VMRECONCILE_HOST; env; exit 3",
}


def wanted(length: int, **fields: object) -> str:
    """The model with that context, a token, a key of its own, and hooks that tell all that they have."""
    env = {"VLLM_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}
    args = {"max_model_len": length, **dict(fields.pop("args", {}))}  # type: ignore[call-overload]  # of this file alone
    return model(hosts="gpu1:gpu2", args=args, env=env, hf_token="default", hooks=HOOKS, **fields)


def everything(cli: Cli) -> Iterator[str]:
    """A retune that works, one that cannot start and goes back, a rollback; yields what was said each time."""

    def tool(*words: str, code: int) -> str:
        outcome = cli(*words)
        assert outcome.returncode == code, outcome
        return str(outcome)

    cli.model("tiny", wanted(512))
    yield tool("apply", "--json", code=1)  # each after_ready fails
    cli.model("tiny", wanted(1024))
    yield tool("plan", "-o", "plan.json", code=0)
    yield tool("apply", "plan.json", "-l", "gpu1", "-v", "-v", code=64)  # another selection than the plan's
    yield tool("apply", "plan.json", "-v", "-v", code=1)
    yield tool("apply", "--limit", "@left", code=5)
    cli.model("tiny", wanted(1024, args={"gpu_memory_utilization": 0.01}))
    failed = cli("apply", "--json", "--retry-file", "left")
    assert ("retune", "rolled_back") in results(failed).values(), failed
    yield str(failed)
    for words in (["plan"], ["plan", "--json"], ["history", "tiny"], ["history", "tiny", "--json"], ["status"]):
        yield tool(*words, code=0)
    yield tool("rollback", "tiny", "--to", "1", "--json", code=1)
    cli.model("tiny", wanted(512))
    yield str(cli("apply", "--limit", "@left", "-v", "-v"))


def test_no_secret_is_anywhere_but_where_it_belongs(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """Neither on a host, nor beside the person, nor in what is said, nor in any process: the env file alone has it.

    Hooks have no token either, whatever variable this controller has it in, and keep what is not secret.
    """
    cli.inventory({"vllm_executable": simulated_vllm})
    token, variable = new_token(), new_token()
    cache = log_in(cli, token)
    own = {"HF_TOKEN": variable, "HF_TOKEN_PATH": str(cache), "INNOCENT": f"x{variable}", "PLAIN": "kept"}
    cli.env |= {**own, "GIT_PASS": KEY, "ANSIBLE_BECOME_PASS": KEY, "RESTIC_PASSPHRASE": KEY, "MYSQL_PWD": KEY}
    watcher = Watcher([token])
    with watcher.watching():
        said = list(everything(cli))
    assert watcher.looks > 20
    assert not watcher.found
    for text in said:
        assert not [word for word in (token, variable, KEY) if word in text], text
    for host in hosts[:2]:
        assert places_with(host, [token, KEY]) == {"etc/vmreconcile/env/tiny.env"}
        assert not places_with(host, [variable])
        seen = (cli.folder / f"seen-{host.name}").read_text(encoding="utf-8")
        assert "PLAIN=kept\n" in seen
        assert not [name for name in ("HF_TOKEN", "INNOCENT", "PASS", "MYSQL_PWD", KEY) if name in seen]
    kept = {str(cache.relative_to(cli.folder)), "models.d/tiny.yaml"}
    assert files_with(cli.folder, [token, variable, KEY]) == kept
    assert json.loads((cli.folder / "plan.json").read_text(encoding="utf-8"))["kind"] == "vmreconcile-plan"

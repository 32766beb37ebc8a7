"""Models from a Hub, whole: the real client here, real vLLM downloading on real hosts, a Hub that refuses as it does.

First with the access check, which blocks; then without it, so that vLLM itself meets each refusal and its log is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.hub import Gate, Hub, Repository
from tests.lab.served import root_pids
from tests.lab.space import GATEWAY
from tests.lab.tiny_model import ENVIRONMENT, write_model
from tests.lab.wanting import changes, errors, model, results
from tests.system.test_token import log_in, new_token

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Lab

pytestmark = [pytest.mark.system, pytest.mark.vllm]

PATIENCE = 420.0
REFUSED = {
    "c-gated": ("gpu1", "tiny/gated", "default", "gated", "gated"),
    "d-no-token": ("gpu2", "tiny/gated", None, "token_missing", "gated"),
    "e-wrong-token": ("gpu3", "tiny/open", "wrong", "token_invalid", "bad_token"),
    "f-nothing": ("gpu3", "tiny/nothing", "default", "model_not_found", "no_such_repo"),
}
"""Each with its host, model, source, and the class by the access check and by vLLM's log."""


@pytest.fixture
def hub(lab: Lab) -> Iterator[Hub]:
    """On the hosts' network: one model open, one granted, one shut, one that is cut off."""
    folder = write_model(lab.shared / "hub-tiny")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with lab.network(), Hub(GATEWAY) as running:
        running.repositories = {
            "tiny/open": Repository(files=files),
            "tiny/granted": Repository(files=files, gate=Gate.GATED),
            "tiny/gated": Repository(files=files, gate=Gate.GATED),
            "tiny/large": Repository(files=files),
        }
        yield running


def want(name: str, host: str, repository: str, source: str | None, port: int, hub: Hub, **more: object) -> str:
    """A model file for the real vLLM on a small machine."""
    env = {key: value for key, value in ENVIRONMENT.items() if key != "HF_HUB_OFFLINE"} | hub.environ()
    args = {
        "served_model_name": name,
        "max_model_len": 512,
        "max_num_seqs": 4,
        "dtype": "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": 67108864,
    }
    fields = {"model": repository, "hosts": host, "port": port, "hf_token": source, "args": args, "env": env}
    return model(**fields, health={"startup_timeout": "6m", "soak": 0}, **more)


def test_models_from_a_hub(cli: Cli, hosts: list[Host], vllm: Path, hub: Hub) -> None:
    """Open and granted start; each refusal ends in its class, before and after a start; what runs goes on."""
    token, wrong = new_token(), new_token()
    hub.tokens[token] = "ada"
    hub.grant("tiny/granted", token)
    log_in(cli, token)
    secret = cli.folder / "wrong"
    secret.write_text(wrong)
    sources = {"wrong": {"file": str(secret)}}
    cli.inventory({"vllm_executable": str(vllm), "vllm_token_sources": sources})
    wanted = {
        "a-open": want("a-open", "gpu1", "tiny/open", "default", 8001, hub, prefetch=True),
        "b-granted": want("b-granted", "gpu2", "tiny/granted", "default", 8001, hub),
    }
    for number, (name, (host, repository, source, _, _)) in enumerate(REFUSED.items()):
        wanted[name] = want(name, host, repository, source, 8010 + number, hub)
    cli.models(**wanted)
    online = hub.environ() | {"HF_HUB_OFFLINE": ""}

    first = cli("apply", "--json", timeout=PATIENCE, env=online)
    assert first.returncode == 1, first
    done = results(first)
    assert done["a-open@gpu1"] == done["b-granted@gpu2"] == ("start", "changed"), first
    blocked = {name: (row[0], row[1]) for name, row in changes(cli("plan", "--json", env=online)).items()}
    assert blocked == {f"{name}@{row[0]}": ("blocked", row[3]) for name, row in REFUSED.items()}
    assert {name.partition("@")[0]: error["class"] for name, error in errors(first).items() if error} == {
        name: row[3] for name, row in REFUSED.items()
    }
    assert any(request.token == token and "model.safetensors" in request.path for request in hub.requests)
    running = root_pids(hosts[:2])

    cli.model("a-open", want("a-open", "gpu1", "tiny/gated", "default", 8001, hub, prefetch=True))
    assert changes(cli("plan", "--json", env=online))["a-open@gpu1"] == ("blocked", "gated", False)
    unchecked = cli("apply", "--json", timeout=PATIENCE)  # HF_HUB_OFFLINE here: the Hub is not asked before
    found = {name.partition("@")[0]: error["class"] for name, error in errors(unchecked).items() if error}
    assert found == {"a-open": "gated"} | {name: row[4] for name, row in REFUSED.items()}, unchecked
    assert root_pids(hosts[:2]) == running, "what ran goes on"

    hub.drops_after = 1000
    cli.models(**{"g-cut": want("g-cut", "gpu3", "tiny/large", "default", 8020, hub)})
    cut = cli("apply", "--json", timeout=PATIENCE, env=online)
    assert errors(cut)["g-cut@gpu3"]["class"] == "hub_unreachable", cut
    hub.drops_after = None
    assert results(cli("apply", "--json", timeout=PATIENCE, env=online))["g-cut@gpu3"] == ("start", "changed")

    said = "".join(map(str, (first, unchecked, cut, cli("status"), cli("doctor"), cli("auth", "status", "--on-hosts"))))
    assert token not in said
    assert wrong not in said

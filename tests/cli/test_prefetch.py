"""prefetch, and apply with `prefetch: true`: what runs goes on while a model is fetched, and where that fails."""

from __future__ import annotations

import pytest

from tests.lab.desk import Desk
from tests.lab.fake_kernel import Refusal
from tests.lab.worlds import TOKEN
from vmreconcile.cli import progress

FULL = Refusal("fetch-disk-full", "99 bytes are needed in /root/.cache, 5 are free")


def test_prefetch_fetches_on_every_host(desk: Desk) -> None:
    """All servers' models, with the token sent as a secret; nothing else is done; progress is told."""
    said = desk("prefetch")
    assert said.code == 0, said
    assert said.out.splitlines()[0] == "qwen@gpu1: fetched 3.00 GiB of org/qwen into /root/.cache/huggingface/hub"
    assert all(host.fetched == [("org/qwen", False)] and not host.done for host in desk.hosts.values())
    rows = desk("prefetch", "qwen@gpu2", "--json").json["results"]
    assert [(row["server"], row["status"], row["bytes"]) for row in rows] == [("qwen@gpu2", "fetched", 3 << 30)]
    assert TOKEN not in said.out + said.err


def test_progress_is_told_on_standard_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain line a server, every 15 seconds (here: always), with what came and what there is to come."""
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    for words in (("prefetch",), ("prefetch", "--json")):
        said = desk(*words)
        for host in ("gpu1", "gpu2"):
            assert f"qwen@{host}: waiting, 0 s so far (fetching org/qwen: 1.00 of 3.00 GiB)" in said.err.splitlines()
            assert f"qwen@{host}: waiting, 0 s so far (org/qwen: 3.00 GiB to fetch, 9.0 GiB free)" in said.err


def test_prefetch_tells_what_went_wrong_where(desk: Desk) -> None:
    """One host's disk is full, the other is out of reach: the worst counts; remedies are said."""
    desk.hosts["gpu1"].fetching["org/qwen"] = FULL
    desk.hosts["gpu2"].unreachable = "no route to host"
    said = desk("prefetch")
    assert said.code == 1
    assert "99 bytes are needed in /root/.cache, 5 are free (disk_full)" in said.out
    assert "mend  free space there" in said.out
    assert "qwen@gpu2: unreachable: no route to host" in said.out
    rows = desk("prefetch", "--json").json["results"]
    assert [(row["status"], row["error"]["class"]) for row in rows] == [
        ("failed", "disk_full"),
        ("unreachable", "unreachable"),
    ]
    assert desk("prefetch", "-l", "gpu2").code == 3


def test_the_class_of_an_error_drives_no_terminal(desk: Desk) -> None:
    """A host may call it what it likes."""
    desk.hosts["gpu1"].fetching["org/qwen"] = Refusal("fetch-\x1b[2J", "no")
    said = desk("prefetch", "-l", "gpu1")
    assert said.code == 1
    assert "\x1b" not in said.out
    assert "no (\\x1b[2J)" in said.out


def test_prefetch_leaves_paths_and_what_is_to_go_alone(desk: Desk) -> None:
    """Nobody is asked."""
    desk.change("model: org/qwen", "model: /models/qwen")
    assert desk("prefetch").out == "nothing to fetch: no server's model comes from the Hub\n"
    desk.change("model: /models/qwen", "model: org/qwen\nstate: absent")
    assert "nothing to fetch" in desk("prefetch").out
    assert desk.opened == []
    assert desk("prefetch", "nobody").code == 64


def test_apply_fetches_while_the_old_server_runs(desk: Desk) -> None:
    """Before a change of the model stops anything; not for what is in order."""
    desk.change("port: 8001", "port: 8001\nprefetch: true")
    assert desk("apply", "-y").code == 0
    assert desk.hosts["gpu1"].fetched == [("org/qwen", False)]
    desk.change("model: org/qwen", "model: org/other")
    assert desk("apply", "-y").code == 0
    assert desk.hosts["gpu1"].fetched[1:] == [("org/other", True)]
    assert desk("apply", "-y").code == 0
    assert len(desk.hosts["gpu1"].fetched) == 2


def test_a_fetch_that_fails_stops_nothing(desk: Desk) -> None:
    """The old server goes on; the failure has its class and remedy; the other host is done."""
    desk.change("port: 8001", "port: 8001\nprefetch: true\nrollout: {max_failures: 1}")
    desk("apply", "-y")
    pids = desk.pids()
    desk.change("model: org/qwen", "model: org/other")
    desk.hosts["gpu1"].fetching["org/other"] = FULL
    said = desk("apply", "-y", "--json")
    assert said.code == 1
    results = {row["server"]: row for row in said.json["results"]}
    assert (results["qwen@gpu1"]["status"], results["qwen@gpu1"]["error"]["class"]) == ("failed", "disk_full")
    assert results["qwen@gpu2"]["status"] == "changed"
    assert desk.pids()["qwen@gpu1"] == pids["qwen@gpu1"]


@pytest.mark.parametrize("kind", ["fetch-hub-unreachable", "fetch-no-hub", "fetch-offline"])
def test_a_fetch_that_cannot_be_made_is_no_reason_not_to_start(desk: Desk, kind: str) -> None:
    """The model may be there; vLLM itself decides."""
    desk.change("port: 8001", "port: 8001\nprefetch: true")
    desk.hosts["gpu1"].fetching["org/qwen"] = Refusal(kind, "nothing answers")
    said = desk("apply", "-y")
    assert said.code == 0, said
    assert set(desk.pids()) == {"qwen@gpu1", "qwen@gpu2"}


@pytest.mark.parametrize(
    ("kind", "goes_on"),
    [("fetch-no-hub", True), ("fetch-hub-unreachable", False), ("fetch-offline", False), ("fetch-failed", False)],
)
def test_nothing_is_stopped_for_a_model_that_could_not_be_fetched(
    desk: Desk,
    kind: str,
    goes_on: bool,  # noqa: FBT001 - a table
) -> None:
    """What is known to be missing, or not known to be there, is no reason to end a server that serves."""
    desk.change("port: 8001", "port: 8001\nprefetch: true")
    desk("apply", "-y")
    pids = desk.pids()
    desk.change("model: org/qwen", "model: org/other")
    for host in desk.hosts.values():
        host.fetching["org/other"] = Refusal(kind, "cut off in the middle")
    said = desk("apply", "-y")
    assert (said.code == 0, desk.pids() != pids) == (goes_on, goes_on)
    assert "cut off in the middle" in said.out + said.err
    assert ("going on without" in said.err) == goes_on


def test_an_early_stop_waits_for_the_fetch(desk: Desk) -> None:
    """A server that gives its port away is not stopped where its own model cannot be fetched."""
    desk.change("port: 8001", "port: 8001\nprefetch: true")
    desk("apply", "-y")
    pids = desk.pids()
    desk.change("model: org/qwen", "model: org/other")
    desk.change("port: 8001", "port: 8002")
    desk.hosts["gpu1"].fetching["org/other"] = FULL
    assert desk("apply", "-y", "-l", "gpu1").code == 1
    assert desk.pids()["qwen@gpu1"] == pids["qwen@gpu1"]

"""Token sources from the command line: who gets which token, and what a source that fails does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.lab.desk import Desk
from tests.lab.fake_host import FakeHost
from tests.lab.worlds import TOKEN

LAB = TOKEN.replace("0000", "1111")
SOURCES = """\
gpu:
  hosts:
    gpu1: {vllm_hf_token: lab}
    gpu2:
  vars:
    vllm_token_sources: {lab: {env: LAB_TOKEN}, broken: {command: [sh, -c, "echo $HF_TOKEN; echo no key >&2; exit 3"]}}
"""


def env_of(host: FakeHost) -> Mapping[str, str]:
    """The environment of the server's root process."""
    root = host.root("qwen")
    assert root is not None
    return root.env


def test_each_server_gets_the_token_of_its_source(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's source on one, the default on the other, none where the model says so; then one is rotated."""
    monkeypatch.setenv("LAB_TOKEN", LAB)
    desk.write("inventory/hosts.yml", SOURCES)
    assert desk("apply", "-y").code == 0
    assert {name: env_of(host).get("HF_TOKEN") for name, host in desk.hosts.items()} == {
        "gpu1": LAB,
        "gpu2": TOKEN,
    }
    shown = desk("show", "qwen@gpu1").out
    assert "lab" in shown
    assert LAB not in shown
    monkeypatch.setenv("LAB_TOKEN", LAB.replace("1111", "2222"))
    changes = desk("plan", "--json").json["changes"]
    assert [(row["server"], row["reason"]) for row in changes] == [("qwen@gpu1", "token_changed")]
    desk.write("models.d/qwen.yaml", desk.read() + "hf_token: null\n")
    assert desk("apply", "-y").code == 0
    assert [env_of(host).get("HF_TOKEN") for host in desk.hosts.values()] == [None, None]


def test_a_source_is_read_only_where_a_server_needs_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`broken` would fail; nobody on the selected hosts uses it."""
    desk.write("inventory/hosts.yml", SOURCES.replace("lab}", "broken}"))
    assert desk("plan", "--limit", "gpu2").code == 0
    assert desk.opened == ["gpu2"]
    monkeypatch.delenv("HF_TOKEN")
    assert desk("inventory", "--list").code == 0
    assert desk("validate").code == 0


@pytest.mark.parametrize("very", [(), ("-vv",), ("--json",)])
def test_a_source_that_fails_refuses_the_run_before_any_host(desk: Desk, very: tuple[str, ...]) -> None:
    """Exit 5, the source and its place named, what it printed shown nowhere."""
    desk.write("inventory/hosts.yml", SOURCES.replace("lab}", "broken}"))
    for command in ("plan", "apply"):
        said = desk(command, *very)
        assert said.code == 5
        assert desk.opened == []
        assert "inventory/hosts.yml:6" in said.err
        assert "token source 'broken' (command sh): exit status 3: no key" in said.err
        assert TOKEN not in said.out + said.err


def test_a_source_that_fails_keeps_nobody_from_looking_and_stopping(desk: Desk) -> None:
    """What runs is shown, with a word about the source; logs and stop do not even try it."""
    desk("apply", "-y")
    desk.write("inventory/hosts.yml", SOURCES.replace("lab}", "broken}"))
    for words in (("status",), ("show", "qwen@gpu1")):
        said = desk(*words)
        assert said.code == 0
        assert "ready" in said.out
        assert "token source 'broken'" in said.err
        assert "not compared" in said.err
    assert desk("status", "--json").json["servers"][0]["drift"] == []
    for words in (("logs", "qwen@gpu1"), ("stop", "qwen@gpu1"), ("remove", "-y", "qwen@gpu1")):
        said = desk(*words)
        assert (said.code, "broken" in said.err) == (0, False), said
    assert list(desk.pids()) == ["qwen@gpu2"]


@pytest.mark.parametrize("words", [("plan",), ("apply", "-y"), ("status",), ("doctor",), ("auth", "status")])
def test_a_source_is_read_once_a_run(desk: Desk, words: tuple[str, ...]) -> None:
    """However many servers have it, and however often it is wanted."""
    count = desk.folder / "count"
    desk.write("token", LAB)
    counted = f"counted: {{command: [sh, -c, 'echo x >> {count}; cat {desk.folder}/token']}}"
    sources = SOURCES.replace("lab: {env: LAB_TOKEN}", counted).replace("hf_token: lab", "hf_token: counted")
    desk.write("inventory/hosts.yml", sources.replace("gpu2:\n", "gpu2: {vllm_hf_token: counted}\n"))
    desk(*words)
    assert count.read_text() == "x\n"


def test_nobody_is_asked_without_a_terminal(desk: Desk) -> None:
    """A prompt is for people: the run is refused, and says what else there is."""
    desk.write("inventory/hosts.yml", SOURCES.replace("{env: LAB_TOKEN}", "{prompt: Token}"))
    said = desk("apply", "-y", "--no-input")
    assert said.code == 5
    assert "nobody can be asked here" in said.err

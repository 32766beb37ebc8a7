"""add, list, remove: files written, shown and deleted; hosts only where that was asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.desk import MODEL, Desk
from vmreconcile.cli import agreement

ADD = ("add", "chat", "org/chat", "--port", "9001", "--hosts", "gpu1")


def test_add_writes_a_file_and_touches_no_host(desk: Desk) -> None:
    """Wanted stopped; what was not given is not written; start and apply go on from it."""
    said = desk(*ADD)
    assert (said.code, said.out) == (0, "wrote models.d/chat.yaml\nNext: vmreconcile start chat\n")
    assert desk.read("models.d/chat.yaml") == ("name: chat\nmodel: org/chat\nhosts: gpu1\nport: 9001\nstate: stopped\n")
    assert desk.opened == []
    assert desk("start", "chat").code == 0
    assert set(desk.pids()) == {"chat@gpu1"}
    assert "state: running\n" in desk.read("models.d/chat.yaml")


def test_add_writes_what_was_given(desk: Desk) -> None:
    """As the model's own arguments; with the editors' line where `init` put the schemas."""
    desk.write("schemas/model.schema.json", "{}")
    given = ("--gpu-memory", "0.3", "--max-len", "2048", "--tensor-parallel", "2", "--priority", "1")
    assert desk(*ADD, *given, "--json").json == {"format_version": 1, "written": ["models.d/chat.yaml"]}
    text = desk.read("models.d/chat.yaml")
    assert text.startswith("# yaml-language-server: $schema=../schemas/model.schema.json\nname: chat\n")
    assert text.endswith(
        "priority: 1\nargs:\n  gpu_memory_utilization: 0.3\n  max_model_len: 2048\n  tensor_parallel_size: 2\n"
    )
    assert desk("validate").code == 0


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("add", "Chat", "org/chat", "--port", "9001", "--hosts", "gpu1"), 5, "name cannot be 'Chat'"),
        (("add", "../chat", "org/chat", "--port", "9001", "--hosts", "gpu1"), 5, "name cannot be '../chat'"),
        (("add", "chat", "org/chat", "--port", "8001", "--hosts", "gpu1"), 5, "wanted by both"),
        (("add", "chat", "org/chat", "--port", "0", "--hosts", "gpu1"), 5, "port"),
        (("add", "chat", "org/chat", "--port", "9001", "--hosts", "gpu9"), 5, "gpu9"),
        (("add", "chat", "org/chat", "--port", "9001", "--hosts", "gpu1", "--gpu-memory", "8"), 5, "gpu_memory"),
        (("add", "chat", "org/chat", "--port", "9001", "--hosts", "gpu1", "--gpu-memory", "nan"), 5, "finite"),
        (("add", "chat", "org/chat", "--port", "9001", "--hosts", "gpu1", "--priority", "6"), 5, "priority"),
        (
            ("add", "qwen", "org/chat", "--port", "9001", "--hosts", "gpu1"),
            5,
            "'qwen' is there already: models.d/qwen.yaml",
        ),
        (("add", "chat", "org/chat", "--port", "9001"), 64, "which of them shall serve"),
    ],
)
def test_add_writes_nothing_that_would_be_wrong(desk: Desk, words: tuple[str, ...], code: int, expected: str) -> None:
    """Judged beside what is there, before anything is written."""
    said = desk(*words)
    assert (said.code, expected in said.err) == (code, True), said.err
    assert [path.name for path in Path("models.d").iterdir()] == ["qwen.yaml"]
    assert desk.read() == MODEL


def test_list_is_narrowed_to_some_hosts(desk: Desk) -> None:
    """Models that none of them has are left out, and their other hosts."""
    assert desk(*ADD).code == 0
    rows = desk("list", "-l", "gpu2", "--json").json["models"]
    assert [(row["name"], row["hosts"]) for row in rows] == [("qwen", ["gpu2"])]
    assert desk("list", "-l", "gpu9").code == 64


def test_add_never_writes_over_a_file(desk: Desk) -> None:
    """Whatever is in it."""
    desk.write("models.d/chat.yaml", MODEL.replace("name: qwen", "name: other").replace("8001", "8002"))
    said = desk(*ADD)
    assert (said.code, "models.d/chat.yaml is there already" in said.err) == (1, True)
    assert "name: other" in desk.read("models.d/chat.yaml")


def test_add_begins_a_folder(desk: Desk) -> None:
    """The one host of an inventory need not be named."""
    desk.write("one/hosts.yml", "all: {hosts: {gpu1: }}\n")
    said = desk("add", "chat", "org/chat", "--port", "9001", "-i", "one", "-m", "new/models")
    assert (said.code, said.out.splitlines()[0]) == (0, "wrote new/models/chat.yaml")
    assert "hosts: gpu1\n" in desk.read("new/models/chat.yaml")


def test_add_mends_a_fleet_that_is_wrong_elsewhere_neither_nor_minds_it(desk: Desk) -> None:
    """Only what the new model brings counts."""
    desk.change("max_model_len", "max_modle_len")
    assert desk(*ADD).code == 0
    assert desk("validate").code == 5


def test_list_shows_what_the_files_hold(desk: Desk) -> None:
    """No host is reached; what overrides make differ is `mixed`."""
    desk(*ADD)
    desk.write("models.d/qwen.yaml", MODEL + "overrides: {gpu2: {port: 8002, args: {max_model_len: 1024}}}\n")
    rows = [line.split() for line in desk("list").out.splitlines()]
    assert rows[1] == ["chat", "org/chat", "9001", "gpu1", "stopped", "3", "auto", "model's", "1"]
    assert rows[2] == ["qwen", "org/qwen", "mixed", "2", "hosts", "running", "3", "0.5", "mixed", "1"]
    models = desk("list", "--json").json["models"]
    assert models[0] == {
        "name": "chat",
        "model": "org/chat",
        "file": "models.d/chat.yaml",
        "hosts": ["gpu1"],
        "port": 9001,
        "state": "stopped",
        "priority": 3,
        "gpu_memory_utilization": "auto",
        "max_model_len": None,
        "tensor_parallel_size": 1,
    }
    assert desk.opened == []


def test_remove_stops_first_and_deletes_the_file_last(desk: Desk) -> None:
    """Nothing of it is left on the hosts; the other model is as it was."""
    desk(*ADD)
    desk("apply", "-y")
    desk("start", "chat")
    qwen = {name: pid for name, pid in desk.pids().items() if name.startswith("qwen")}
    said = desk("remove", "chat")
    assert said.code == 0
    assert "deleted models.d/chat.yaml" in said.err
    assert not Path("models.d/chat.yaml").exists()
    assert desk.pids() == qwen
    assert desk("plan", "--detailed-exitcode").code == 0
    assert "chat" not in desk("status").out


def test_remove_of_one_host_keeps_the_file(desk: Desk) -> None:
    """With `state: absent` for that host; comments survive."""
    desk("apply", "-y")
    assert desk("remove", "qwen@gpu1").code == 0
    assert set(desk.pids()) == {"qwen@gpu2"}
    assert desk.read() == MODEL + "overrides:\n  gpu1:\n    state: absent\n"


def test_remove_of_a_model_that_is_half_out_of_reach_keeps_its_file(desk: Desk) -> None:
    """`state: absent` stays in it, and the next apply ends the work; a second remove deletes the file."""
    desk("apply", "-y")
    desk.hosts["gpu2"].unreachable = "no route to host"
    said = desk("remove", "qwen")
    assert said.code == 3
    assert "state: absent stays" in said.err
    assert "state: absent\n" in desk.read()
    assert set(desk.pids()) == {"qwen@gpu2"}
    desk.hosts["gpu2"].unreachable = ""
    assert desk("apply", "-y").code == 0
    assert desk.pids() == {}
    assert desk("remove", "qwen").code == 0
    assert not Path("models.d/qwen.yaml").exists()


def test_remove_asks_on_a_terminal(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """No means that nothing is written either."""
    desk("apply", "-y")
    pids = desk.pids()
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(agreement, "ask", lambda _: False)
    assert desk("remove", "qwen").code == 1
    assert (desk.read(), desk.pids()) == (MODEL, pids)
    assert desk("remove", "qwen", "-y").code == 0
    assert desk.pids() == {}


def test_remove_of_a_model_without_servers_deletes_its_file(desk: Desk) -> None:
    """No host is reached."""
    desk.write("inventory/hosts.yml", "gpu:\n  hosts:\n    gpu1:\n    gpu2:\nnone:\n  hosts:\n")
    desk.write("models.d/idle.yaml", MODEL.replace("name: qwen", "name: idle").replace("hosts: gpu", "hosts: none"))
    said = desk("remove", "idle")
    assert said.code == 0, said.err
    assert (Path("models.d/idle.yaml").exists(), desk.opened) == (False, [])


def test_remove_of_what_is_not_there_is_wrong_usage(desk: Desk) -> None:
    """With the nearest name."""
    said = desk("remove", "qwem")
    assert (said.code, "did you mean 'qwen'" in said.err) == (64, True)
    assert desk.read() == MODEL


def test_servers_of_a_host_start_by_priority(desk: Desk) -> None:
    """1 before 3 before 5, whatever their names."""
    for name, port, priority in (("a", 9001, 5), ("b", 9002, 3), ("c", 9003, 1)):
        desk("add", name, "org/x", "--port", str(port), "--hosts", "gpu1", "--priority", str(priority))
    said = desk("start", "a", "b", "c")
    order = [line.partition("@")[0] for line in said.err.splitlines() if "start (" in line]
    assert order == ["c", "b", "a"]


def test_completion_prints_a_script_that_the_shell_takes(desk: Desk) -> None:
    """Bash itself completes a command's name with it."""
    said = desk("completion", "bash")
    assert said.code == 0
    ask = (
        "\nCOMP_WORDS=(vmreconcile val); COMP_CWORD=1; COMPREPLY=();"
        "_shtab_vmreconcile 2>/dev/null; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", said.out + ask], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["validate"]

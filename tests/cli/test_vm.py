"""`vm`: the old manager's verbs on this machine and on --host, in its own folder and in a project."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.desk import MODEL, Desk, Said
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from vmreconcile.cli import view
from vmreconcile.cli.command_line import leaves
from vmreconcile.cli.main import COMMANDS
from vmreconcile.cli.vm import PLACES, main, vm_parser
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.vm_home import HOSTS, NewHost, make_home
from vmreconcile.flows.adding import NewModel, Shelf
from vmreconcile.flows.inputs import Sources
from vmreconcile.model.observed import Phase

ROOT = Path(__file__).resolve().parents[2]


def vm(desk: Desk, *words: str) -> Said:
    """Run `vm WORDS…`."""
    desk.capture.readouterr()
    code = main(words)
    said = desk.capture.readouterr()
    return Said(code, said.out, said.err)


@pytest.fixture
def home(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, and a new home; this machine and another one."""
    desk.hosts |= {name: FakeHost(name) for name in ("localhost", "gpu7")}
    (desk.folder / "elsewhere").mkdir()
    monkeypatch.chdir(desk.folder / "elsewhere")
    return desk.folder / ".vmreconcile"


def test_the_guides_path(desk: Desk, home: Path) -> None:
    """Add, start, look, stop, remove, from an empty home."""
    said = vm(desk, "add", "qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct", "--port", "8001")
    assert (said.code, said.out.splitlines()[-1]) == (0, "Next: vm start qwen2.5-7b")
    assert f"made {home}" in said.err
    assert "hosts: localhost\n" in (home / "models.d/qwen2.5-7b.yaml").read_text()
    assert desk.opened == []
    started = vm(desk, "start", "qwen2.5-7b")
    assert started.code == 0, started.err
    assert "qwen2.5-7b@localhost  ready" in vm(desk, "status").out
    assert vm(desk, "stop", "qwen2.5-7b").code == 0
    assert desk.pids() == {}
    assert vm(desk, "remove", "qwen2.5-7b").code == 0
    assert list((home / "models.d").iterdir()) == []
    assert not list((desk.folder / "elsewhere").iterdir())


def test_host_names_where_a_model_goes_and_which_server_is_meant(desk: Desk, home: Path) -> None:
    """A new host gets into the inventory, whose comments survive; the other host is not reached."""
    assert vm(desk, "add", "chat", "org/chat", "--port", "8001", "--host", "ada@gpu7").code == 0
    text = (home / "inventory/hosts.yml").read_text()
    assert text.startswith("# The hosts of the `vm` command")
    assert text.endswith("    gpu7:\n      ansible_connection: ssh\n      ansible_user: ada\n")
    assert vm(desk, "start", "chat", "--host", "gpu7").code == 0
    assert set(desk.opened) == {"gpu7"}
    assert set(desk.pids()) == {"chat@gpu7"}
    assert vm(desk, "status", "--host", "localhost").out.count("chat") == 0
    assert vm(desk, "start", "chat", "--host", "localhost").code == 64
    assert vm(desk, "start", "chat@localhost", "--host", "gpu7").code == 64
    vm(desk, "add", "here", "org/here", "--port", "8002")
    assert [each["name"] for each in vm(desk, "list", "--json").json["models"]] == ["chat", "here"]
    assert [each["name"] for each in vm(desk, "list", "--host", "gpu7", "--json").json["models"]] == ["chat"]


def test_a_host_is_recorded_only_with_its_first_model(desk: Desk, home: Path) -> None:
    """Not for a model that is refused, not in a dry run, which makes no folder either; what is known stays as it is."""
    old = desk.folder / "old.json"
    entry = {"name": "then", "huggingface_id": "org/then", "port": 8100}
    old.write_text(json.dumps({"models": [{**entry, "name": "!!"}]}))
    dry = vm(desk, "import", str(old), "--dry-run", "--host", "gpu42")
    assert (dry.code, home.exists()) == (5, False), dry
    old.write_text(json.dumps({"models": [entry]}))
    dry = vm(desk, "import", str(old), "--dry-run", "--host", "gpu42")
    assert (dry.code, home.exists()) == (0, False), dry
    assert f"gpu42 would be in {home}/inventory/hosts.yml" in dry.err
    assert vm(desk, "list").code == 0
    hosts = home / "inventory/hosts.yml"
    assert vm(desk, "import", str(old), "--dry-run", "--host", "gpu42").code == 0
    assert vm(desk, "add", "BAD NAME", "org/x", "--port", "8001", "--host", "gpu43").code == 5
    assert vm(desk, "add", "x", "org/x", "--port", "0", "--host", "ada@gpu43").code == 5
    assert hosts.read_text() == HOSTS
    said = vm(desk, "import", str(old), "--host", "gpu42")
    assert (said.code, f"gpu42 is in {hosts}" in said.err) == (0, True), said
    assert "hosts: gpu42\n" in (home / "models.d/then.yaml").read_text()
    text = hosts.read_text().replace("ansible_connection: ssh", "ansible_connection: paramiko")
    hosts.write_text(text)
    assert vm(desk, "add", "x", "org/x", "--port", "8001", "--host", "gpu42").code == 0
    assert hosts.read_text() == text
    assert vm(desk, "add", "y", "org/y", "--port", "8002", "--host", "ada@gpu42").code == 0
    assert hosts.read_text() == text + "      ansible_user: ada\n"


@pytest.mark.parametrize(
    "words",
    [
        *(("status", f"--host={host}") for host in ("-x", "gpu7:22", "gpu*", "a b", "", "@gpu7", "all:!gpu7", "-oX@h")),
        *(("add", "b", "org/b", "--port", "8002", f"--host={host}") for host in ("-x", "gpu7:22", "")),
        ("status", "--host", "gpu7", "--limit", "gpu7"),
        ("add", "b", "org/b", "--port", "8002", "--host", "gpu7", "--hosts", "localhost"),
    ],
)
def test_a_host_that_is_none_or_said_twice_is_refused(desk: Desk, home: Path, words: tuple[str, ...]) -> None:
    """As wrong usage, before anything is read or written."""
    said = vm(desk, *words)
    assert (said.code, "--host" in said.err, "mend" in said.err) == (64, True, True), said
    assert not home.exists()
    assert desk.opened == []


def test_a_project_is_used_as_it_is(desk: Desk) -> None:
    """Nothing is made elsewhere; every command of vmreconcile can be called."""
    assert vm(desk, "apply", "-y").code == 0
    assert set(desk.pids()) == {"qwen@gpu1", "qwen@gpu2"}
    assert vm(desk, "stop", "qwen", "--host", "gpu1").code == 0
    assert set(desk.pids()) == {"qwen@gpu2"}
    assert not (desk.folder / ".vmreconcile").exists()
    assert desk.read() == MODEL + "overrides:\n  gpu1:\n    state: stopped\n"
    assert "vm add" in vm(desk, "star").err + vm(desk, "add", "--help").out


def test_vm_home_is_where_the_variable_says(desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be made is said."""
    monkeypatch.setenv("VM_HOME", str(desk.folder / "mine"))
    assert vm(desk, "list").code == 0
    assert (desk.folder / "mine/models.d").is_dir()
    monkeypatch.setenv("VM_HOME", str(desk.folder / "mine/inventory/hosts.yml/x"))
    said = vm(desk, "list")
    assert (said.code, "cannot be made" in said.err, home.exists()) == (1, True, False)


def test_what_to_type_next_is_said_as_it_can_be_typed(desk: Desk, home: Path) -> None:
    """Only `vm` knows its folder, so no remedy, note or next step of its names `vmreconcile`."""
    vm(desk, "add", "chat", "org/chat", "--port", "8001")
    assert "mend  vm status\n" in vm(desk, "start", "nope").err
    desk.write(".vmreconcile/models.d/other.yaml", "name: other\nmodel: org/other\nhosts: all\nport: 8002\n")
    said = vm(desk, "plan", "-o", "p.json")
    assert said.out.endswith("Next: vm apply p.json\n")
    assert vm(desk, "plan").out.endswith("Next: vm apply\n")
    checked = vm(desk, "auth", "check")
    assert "vmreconcile " not in checked.out + checked.err
    assert "vm init" in vm(desk, "init", "new").out + vm(desk, "plan", "-m", "nowhere").err
    assert "vmreconcile init" in vm(desk, "validate", "-m", "nowhere", "--json").out
    assert "vmreconcile init" in desk("plan", "-m", "nowhere").err
    assert "then vm validate" in vm(desk, "init", "newer").out


def test_a_first_use_on_a_full_disk_can_be_made_good(desk: Desk, home: Path) -> None:
    """Nothing half is left, and the next use goes on as a first one does."""
    code = f"ulimit -f 0; exec {sys.executable} -c '{VM}' list"
    env = {"HOME": str(desk.folder), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    said = subprocess.run(["sh", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (said.returncode, "cannot be written" in said.stderr) == (1, True), said
    assert not list((home / "inventory").iterdir())
    assert vm(desk, "add", "chat", "org/chat", "--port", "8001").code == 0
    assert (home / "inventory/hosts.yml").read_text() == HOSTS


def test_an_inventory_of_ones_own_is_left_alone(desk: Desk, home: Path) -> None:
    """Under whatever name; a new host gets a file beside it."""
    desk.write(".vmreconcile/inventory/mine.ini", "gpu7\n")
    assert vm(desk, "list").code == 0
    assert [path.name for path in (home / "inventory").iterdir()] == ["mine.ini"]
    assert vm(desk, "add", "chat", "org/chat", "--port", "8001", "--host", "gpu8").code == 0
    assert "gpu8" in (home / "inventory/hosts.yml").read_text()


def test_hosts_that_are_added_at_once_are_all_there(desk: Desk, home: Path) -> None:
    """Whatever each of them read before the others wrote."""
    inventory = (str(home / "inventory"),)
    assert make_home(home)
    hosts = [NewHost(name=f"gpu{number}", user="", path=home / "inventory/hosts.yml") for number in range(4)]
    sources = Sources(inventory=inventory, models=home / "models.d", environ={})
    shelves = [Shelf(sources, host) for host in hosts]
    models = [NewModel(name=each.name, model="org/chat", hosts=each.name, port=8001) for each in hosts]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda shelf, model: shelf.add(model)[1], shelves, models))
    assert found == [()] * 4
    assert set(read_inventory(inventory, environ={}).hosts) == {"localhost", *(each.name for each in hosts)}
    assert not make_home(home)


def test_the_ends_of_lines_stay_as_they_are(desk: Desk, home: Path) -> None:
    """A file of Windows too."""
    hosts = home / "inventory/hosts.yml"
    desk.write(".vmreconcile/inventory/hosts.yml", "")
    hosts.write_bytes(HOSTS.replace("\n", "\r\n").encode())
    assert vm(desk, "add", "chat", "org/chat", "--port", "8001", "--host", "gpu7").code == 0
    text = hosts.read_bytes()
    assert text.count(b"\r\n") == text.count(b"\n") == HOSTS.count("\n") + 2


@pytest.mark.parametrize("name", ["all", "ungrouped", "big"])
def test_a_group_is_no_new_host(desk: Desk, home: Path, name: str) -> None:
    """It would break the inventory for good."""
    text = HOSTS + "big:\n  hosts:\n    localhost:\n"
    desk.write(".vmreconcile/inventory/hosts.yml", text)
    said = vm(desk, "add", "chat", "org/chat", "--port", "8001", "--host", name)
    assert (said.code, f"{name} is a group" in said.err) == (64, True), said
    assert (home / "inventory/hosts.yml").read_text() == text
    assert not list((home / "models.d").iterdir())


def test_cleanup_ends_orphans_alone(desk: Desk) -> None:
    """What is not ours is shown and stays; servers of ours go on."""
    desk("apply", "-y")
    host = desk.hosts["gpu1"]
    root = host.root("qwen")
    assert root is not None
    orphan = host.kernel.workers(root)[0].pid
    host.kernel.end(root, family=False)
    stranger = host.stranger(9000).pid
    before = desk.pids()
    said = vm(desk, "cleanup", "--preserve-priority", "2")
    assert said.code == 0
    assert f"ended on gpu1: pid {orphan} VLLM::EngineCore of qwen" in said.out
    assert orphan not in host.kernel.processes
    assert f"left on gpu1, not ours: pid {stranger}" in said.out
    assert "--preserve-priority changes nothing" in said.err
    assert desk.pids() == before
    assert stranger in host.kernel.processes
    again = vm(desk, "cleanup", "--json").json
    assert (again["ended"], [each["pid"] for each in again["strangers"]]) == ([], [stranger])


def test_force_stops_what_does_not_serve(desk: Desk) -> None:
    """Unhealthy servers of ours; those that serve, the files and strangers stay."""
    desk("apply", "-y")
    stranger = desk.hosts["gpu1"].stranger(9000).pid
    root = desk.hosts["gpu1"].root("qwen")
    assert root is not None
    root.behaviour = Behaviour(health=503)
    said = vm(desk, "force", "--json")
    assert said.code == 0, said.err
    assert [(row["server"], row["action"], row["status"]) for row in said.json["stopped"]] == [
        ("qwen@gpu1", "stop", "changed")
    ]
    assert set(desk.pids()) == {"qwen@gpu2"}
    assert stranger in desk.hosts["gpu1"].kernel.processes
    assert desk.read() == MODEL
    assert vm(desk, "force").out.endswith("\nended: 0\n") or vm(desk, "force").out == "ended: 0\n"
    root = desk.hosts["gpu2"].root("qwen")
    assert root is not None
    root.behaviour = Behaviour(health=503)
    assert vm(desk, "force").out.splitlines()[-1] == "stopped with their workers: 1, orphans ended: 0"


def test_every_verb_of_the_old_manager_is_there() -> None:
    """And every command of vmreconcile."""
    choices = {words.split()[0] for words, _ in leaves(vm_parser())}
    old = "add list start stop remove status cleanup force ui manager completion"
    assert choices >= set(old.split())
    assert choices == set(PLACES) >= set(COMMANDS)


def test_short_names_and_those_that_are_gone(desk: Desk, home: Path) -> None:
    """What the old manager called `ls` and `rm` is there; what is gone leads to what does it now."""
    assert vm(desk, "add", "chat", "org/chat", "--port", "8001").code == 0
    assert vm(desk, "ls", "--json").json == vm(desk, "list", "--json").json
    for name in ("install", "config", "gui"):
        said = vm(desk, name, "--port", "1")
        assert (said.code, f"{name} is gone: " in said.err, "`vm " in said.err) == (64, True, True), said
    assert vm(desk, "rm", "chat", "--host", "localhost").code == 0
    assert vm(desk, "rm", "chat").code == 0
    assert vm(desk, "ls", "--json").json["models"] == []


def test_keys_ask_for_commands() -> None:
    """Each for the one that does it on the command line."""
    row = view.Row(
        server="a@h", model="a", phase=Phase.READY, port="1", memory="", age="", priority="3", file="models.d/a.yaml"
    )
    stopped = view.Row(
        server="b@h", model="b", phase=Phase.STOPPED, port="2", memory="", age="", priority="3", file="models.d/b.yaml"
    )
    assert view.words_for("toggle", row) == ["stop", "a@h"]
    assert view.words_for("toggle", stopped) == ["start", "b@h"]
    assert view.words_for("remove", row) == ["remove", "a"]
    assert view.words_for("edit", row) == ["edit", "models.d/a.yaml"]
    assert view.words_for("toggle", None) == []
    unclaimed = replace(row, file="")
    assert {view.words_for(key, unclaimed)[0] for key in ("toggle", "remove", "edit")} == {"nothing"}
    assert view.moved([row, stopped], "a@h", "down") == "b@h"
    assert view.moved([row, stopped], "b@h", "down") == "b@h"
    assert view.moved([row, stopped], "gone", "up") == "a@h"
    assert view.moved([], "gone", "up") == ""


def test_keys_that_come_together_are_keys_one_by_one() -> None:
    """Letters, arrows, and what no key is."""
    keys, left = [], b"jj\x1b[B\x1bOA\x1b[1;5Cq\x1b"
    while left:
        key, left = view.first_key(left)
        keys.append(key)
    assert keys == [b"j", b"j", b"\x1b[B", b"\x1bOA", b"\x1b[1;5C", b"q", b"\x1b"]


def test_the_view_lives_on_a_terminal_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    """A real one: a key starts a command, Q quits, and no escape sequence stays in force."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "TERM": "xterm",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    hosts = tmp_path / ".vmreconcile/inventory/hosts.yml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text(f"{HOSTS}      vllm_state_dir: {tmp_path}/host\n")  # beside whatever this machine has of us
    subprocess.run(
        [sys.executable, "-c", VM, "add", "chat", "org/chat", "--port", "18999"],
        env=environ,
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execvpe(sys.executable, [sys.executable, "-c", VM], environ)
    try:
        seen = _until(terminal, b"chat@localhost")
        assert b"absent" in seen
        os.write(terminal, b"h")
        assert b"Enter goes back" in _until(terminal, b"Enter goes back")
        os.write(terminal, b"\n")
        _until(terminal, b"chat@localhost")
        os.write(terminal, b"a")
        _until(terminal, b"Name: ")
        os.write(terminal, b"\x04")
        _until(terminal, b"Enter goes back")
        os.write(terminal, b"\n")
        _until(terminal, b"chat@localhost")
        (tmp_path / ".vmreconcile/models.d/chat.yaml").write_text("name: [")
        os.write(terminal, b"r")
        _until(terminal, b"Enter reads the files again")
        (tmp_path / ".vmreconcile/models.d/chat.yaml").write_text("name: chat\nmodel: org/x\nhosts: all\nport: 1\n")
        os.write(terminal, b"\n")
        _until(terminal, b"chat@localhost")
        os.write(terminal, b"jq")
        rest = _until(terminal, b"\x1b[?1049l")
        assert rest.rstrip().endswith((b"\x1b[?1049l", b"\x1b[?25h"))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(terminal)


VM = "from vmreconcile.__main__ import run_vm; run_vm()"


def _until(terminal: int, words: bytes) -> bytes:
    seen = b""
    end = time.monotonic() + 20
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, end - time.monotonic()))
        assert ready, seen
        try:
            seen += os.read(terminal, 65536)
        except OSError:
            break
    assert words in seen, seen
    return seen

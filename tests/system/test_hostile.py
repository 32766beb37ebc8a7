"""Hostile input end to end: odd values in every field reach real servers verbatim, odd files are refused by place."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.lab.served import pids, roots, written

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.command import Cli
    from tests.lab.hosts import Host, Process

pytestmark = pytest.mark.system

LONG = "long " + "x\"'$%\\ü\n" * 10_000  # 100 KB; one word may have 128 KiB (execve(2))
TEXTS = (
    *(
        "",
        " ",
        "two  spaces",
        " around ",
        "\t",
        "line\nbreak\n",
        "\r\n",
        "it's",
        '"q"',
        "`date`",
        "$(date)",
        "\\",
        "a\\nb",
    ),
    *(
        "$",
        "$$",
        "$HOME",
        "${HOME}",
        "%",
        "%%",
        "%n %i",
        "100%",
        "--port",
        "-x=y",
        "--",
        "@x",
        "!x",
        "~",
        "*",
        "#no comment",
    ),
    *(
        "; rm -rf /",
        "a=b",
        "[x]",
        '{"a": "b"}',
        "null",
        "true",
        "0x10",
        "1e3",
        "ü",
        "漢字",
        "🚀",
        "e\u0301",
        "\u202e",
        "\ufeff",
    ),
    *("{{ lookup }}", "<b>", "[bold]x[/bold]", "\x1b[31m", "ExecStart=/bin/false", "'; x; '"),
)
OVERRIDES = {"a b": [1, 2.5, None, True, {"$x": "%y\n'\""}], "ü": {"\\": "\\\\"}, "long": "z" * 5000}
NAMES = ("42", "gpu ü.x_1", "a.b-c_d" + "e" * 50)


def want(cli: Cli, name: str, **fields: object) -> None:
    """Write a model file as a program does."""
    document = {
        "name": name,
        "hosts": "all",
        "port": 8001,
        "hf_token": None,
        "health": {"startup_timeout": "60s", "soak": 0},
    }
    text = json.dumps(document | fields, ensure_ascii=False)  # JSON is YAML, whatever the values
    (cli.models_folder / f"{name}.yaml").write_text(text)


def odd_inventory(cli: Cli, hosts: list[Host], **variables: object) -> None:
    """The lab's hosts under names that are hard to handle."""
    rows = {name: {"ansible_host": host.address} for name, host in zip(NAMES, hosts, strict=True)}
    text = yaml.safe_dump({"all": {"hosts": rows, "vars": {"ansible_user": "root"} | variables}}, allow_unicode=True)
    (cli.folder / "inventory/hosts.yaml").write_text(text)


def argument(server: Process, name: str, count: int = 1) -> list[str]:
    """The words after an option in what the kernel says a server was started with."""
    argv = [os.fsencode(word).decode() for word in server.argv]
    at = argv.index(name)
    return argv[at + 1 : at + 1 + count]


def value(server: Process, name: str) -> str:
    """A variable of the environment that a server was started with."""
    return os.fsencode(server.environ[name]).decode()


def test_hostile_values_arrive_verbatim(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """Arguments, environment, names, paths and hosts of every kind: read back from /proc, and then nothing differs."""
    hosts[2].exec(["mkdir", "-p", "/srv/odd 'place' 100% $HOME"])
    for host in hosts:
        host.write('/srv/it\'s a "model" $X 100%/config.json', json.dumps({"max_position_embeddings": 4096}))
    odd_inventory(cli, hosts, vllm_executable=simulated_vllm, vllm_env={"FROM_GROUP": "it's $5 & 100%"})
    long_name = "m" + "0.-x" * 15 + "yz"
    assert len(long_name) == 63
    texts = {f"T{number}": text for number, text in enumerate(TEXTS)}
    want(
        cli,
        long_name,
        model="O" * 96 + "/" + "n" * 96,
        revision="refs/pr/1 'x' $y %z",
        replicas=2,
        args={
            "served_model_name": [*TEXTS[2:4], "plain", "🚀 $x"],
            "hf_overrides": OVERRIDES,
            "chat-template": LONG,
        },
        env=texts | {"LONG": LONG},
    )
    want(cli, "by-path", model='/srv/it\'s a "model" $X 100%', port=8011, args={"root_path": "/ü %n $HOME"})
    (cli.folder / "inventory/host_vars").mkdir()
    place = "/srv/odd 'place' 100% $HOME/state"
    (cli.folder / "inventory/host_vars" / f"{NAMES[2]}.yml").write_text(yaml.safe_dump({"vllm_state_dir": place}))
    (cli.folder / "inventory/host_vars/42.yml").write_text("vllm_runtime: process\n")

    first = cli("apply", "--json", timeout=400)
    assert (first.returncode, first.json["changed"]) == (0, 9), str(first)
    assert {row["server"] for row in first.json["results"]} == {
        f"{server}@{host}" for server in (long_name, f"{long_name}/1", "by-path") for host in NAMES
    }
    for host in hosts:
        found = {argument(server, "--port")[0]: server for server in roots(host)}
        assert set(found) == {"8001", "8002", "8011"}
        assert argument(found["8011"], "--root-path") == ["/ü %n $HOME"]
        assert '/srv/it\'s a "model" $X 100%' in found["8011"].argv
        for server in (found["8001"], found["8002"]):
            assert "O" * 96 + "/" + "n" * 96 in server.argv
            assert argument(server, "--served-model-name", 4) == ["two  spaces", " around ", "plain", "🚀 $x"]
            assert argument(server, "--chat-template") == [LONG]
            assert json.loads(argument(server, "--hf-overrides")[0]) == OVERRIDES
            assert argument(server, "--revision") == ["refs/pr/1 'x' $y %z"]
            assert {name: value(server, name) for name in texts} == texts
            assert value(server, "LONG") == LONG
            assert value(server, "FROM_GROUP") == "it's $5 & 100%"
    assert not [path for path in written(hosts[2]) if path.startswith(("/var/lib", "/etc/vmr"))]

    before = pids(hosts)
    second = cli("apply", "--json")
    assert (second.returncode, second.json["changed"], second.json["ok"]) == (0, 0, 9), second
    assert pids(hosts) == before
    shown = cli("show", f"{long_name}/1@{NAMES[1]}", "--json")
    assert (shown.returncode, shown.json["drift"]) == (0, []), shown
    listed = cli("status")
    assert listed.returncode == 0, listed
    assert listed.stdout.isascii() or "\x1b" not in listed.stdout

    want(cli, "by-path", model='/srv/it\'s a "model" $X 100%', port=8011, args={"root_path": LONG[:3000] + "\x1b[2J"})
    plan = cli("plan", "--limit", "gpu?ü*")  # a pattern is split at blanks
    assert plan.returncode == 0, plan
    assert "\x1b" not in plan.stdout
    assert max(map(len, plan.stdout.splitlines())) < 1000
    want(cli, "by-path", model='/srv/it\'s a "model" $X 100%', port=8011, state="absent")
    want(cli, long_name, model="o/n", replicas=2, state="absent")
    assert cli("apply", "--json", "--max-changes", "9").json["changed"] == 9
    assert [written(host) for host in hosts] == [[], [], []]


ALIASES = "  A: &a [x, x]\n" + "".join(
    f"  {chr(66 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 4)}]\n" for n in range(24)
)
BOMB = "name: bomb\nmodel: a/b\nhosts: all\nport: 1\nenv:\n" + ALIASES
HEAD = "name: {}\nmodel: a/b\nhosts: all\nport: 8001\n"
BAD = {
    # file → (its bytes, where the first problem is told, a part of what is told)
    "alias": (b"name: &n alias\nmodel: *m\n", 2, ""),
    "bomb": (BOMB.encode(), 0, ""),
    "colon": (b"name: colon: x\n", 1, ""),
    "control": (HEAD.format("control").encode() + b"revision: \x07\n", 5, "control character U+0007"),
    "deep": (b"args: " + b"[" * 50_000 + b"]" * 50_000, 1, ""),
    "double": (HEAD.format("double").encode() + b"port: 8002\n", 5, "port"),
    "float": (HEAD.format("float").encode() + b"env: {X: 1e3}\n", 5, "Quote"),
    "empty": (b"", 0, "empty"),
    "latin": (HEAD.format("latin").encode() + "revision: ü\n".encode("latin-1"), 5, "not UTF-8"),
    "list": (b"- name: list\n", 1, "no mapping"),
    "long": (b"# " + b"x" * (2 << 20) + b"\n", 0, "larger than"),
    "many": (HEAD.format("many").encode() + b"---\nname: other\n", 0, ""),
    "nul": (HEAD.format("nul").encode() + b'env: {X: "a\\0b"}\n', 5, "U+0000"),
    "number": (HEAD.format("number").replace("8001", "9" * 5000).encode(), 4, "port"),
    "open": (b'name: "open\n', 2, "quote"),
    "surrogate": (HEAD.format("surrogate").encode() + b'env: {X: "\\ud800"}\n', 5, ""),
    "tab": (HEAD.format("tab").encode() + b"args:\n\tmax_model_len: 1\n", 6, "tab"),
    "tag": (HEAD.format("tag").encode() + b"revision: !!python/object/apply:os.system [id]\n", 5, ""),
    "utf16": (HEAD.format("utf16").encode("utf-16"), 0, ""),
    "word": (HEAD.format("word").encode() + b"args: {chat_template: " + b"x" * 140_000 + b"}\n", 5, "128 KiB"),
}


def test_odd_files_are_refused_by_place(cli: Cli, hosts: list[Host], tmp_path: Path) -> None:
    """Bombs, binaries, half files, things that are no files: all told at once, quickly, and nothing else is done."""
    for name, (data, _, _) in BAD.items():
        (cli.models_folder / f"{name}.yaml").write_bytes(data)
    (cli.models_folder / "folder.yaml").mkdir()
    (cli.models_folder / "dangling.yaml").symlink_to("/nowhere/at/all")
    os.mkfifo(cli.models_folder / "pipe.yaml")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(cli.models_folder / "socket.yaml"))
    begun = time.monotonic()
    found = cli("validate", "--json")
    assert time.monotonic() - begun < 30
    assert found.returncode == 5, found
    told: dict[str, list[tuple[int, str]]] = {}
    for row in found.json["diagnostics"]:
        if row["severity"] == "error":
            told.setdefault(row["file"], []).append((row["line"] or 0, row["summary"] + row["why"] + row["remedy"]))
    for name, (_, line, part) in BAD.items():
        rows = told.get(f"models.d/{name}.yaml", [])
        assert any(at == line or not line for at, text in rows if part in text), (name, rows)
    for name in ("folder", "dangling", "pipe", "socket"):
        assert told[f"models.d/{name}.yaml"], name
    assert all(len(text) < 1000 for rows in told.values() for _, text in rows)

    spoken = cli("apply", "-y")
    assert spoken.returncode == 5, spoken
    assert spoken.stdout == ""
    assert "models.d/double.yaml:5" in spoken.stderr
    assert "\x07" not in spoken.stderr
    assert [written(host) for host in hosts] == [[], [], []]


INVENTORIES = {
    "bomb": "all:\n vars:\n" + ALIASES,
    "deep": "all: " + "{children: {a: " * 3000,
    "list": "- gpu1\n",
    "open": 'all: {hosts: {"gpu1\n',
    "port": "all: {hosts: {gpu1: {ansible_port: ssh}}}\n",
    "template": 'all: {hosts: {gpu1: {ansible_host: "{{ address }}"}}}\n',
    "control": 'all: {hosts: {gpu1: {ansible_host: "a\\nb"}}}\n',
    "env": "all: {hosts: {gpu1: {vllm_env: [A, B]}}}\n",
}


@pytest.mark.parametrize("name", INVENTORIES)
def test_odd_inventories_are_refused_by_place(cli: Cli, name: str) -> None:
    """Exit 5 with the file's name, in words, and no host is contacted."""
    (cli.folder / "inventory/hosts.yaml").write_text(INVENTORIES[name])
    want(cli, "tiny", model="a/b")
    done = cli("plan", "--json")
    assert done.returncode == 5, done
    assert any("inventory/hosts.yaml" in (row["file"] or "") for row in done.json["diagnostics"]), done
    assert "inventory/hosts.yaml" in done.stderr

"""The command blocks of the VLLM Manager's guide, as docs/vm.md maps them: real shells, `hf`, `vm`, a Hub that answers.

vLLM is the simulator, on this machine; everything else is what a person would run.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.hub import Hub, Repository
from tests.lab.server import free_port
from tests.lab.worlds import TOKEN

ROOT = Path(__file__).resolve().parents[2]
OTHER = TOKEN.replace("0000", "9999")
MODEL = "Qwen/Qwen2.5-7B-Instruct"
SNIPPET = """\
python -c "
import urllib.request
import os
with open(os.path.expanduser('~/.cache/huggingface/token'), 'r') as f:
    token = f.read().strip()
headers = {'Authorization': f'Bearer {token}'}
request = urllib.request.Request('$HF_ENDPOINT/api/whoami-v2', headers=headers)
print('Status:', urllib.request.urlopen(request).status)
"
"""
"""The guide's own lines with urllib for requests, which huggingface_hub no longer brings along."""


@dataclass
class Person:
    """Someone at a shell in an empty home."""

    home: Path
    hub: Hub
    environ: dict[str, str]

    def __call__(self, lines: str) -> subprocess.CompletedProcess[str]:
        """Type some lines."""
        return subprocess.run(
            ["bash", "-c", lines],
            env=self.environ,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def person(tmp_path: Path, simulator: Path) -> Iterator[Person]:
    """With `vm`, `hf`, `python` and a `vllm` on PATH, and a Hub where the Hub would be."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "vm": f"#!{sys.executable}\nfrom vmreconcile.__main__ import run_vm\nrun_vm()\n",
    }.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    with Hub() as hub:
        hub.tokens[TOKEN] = "ada"
        hub.repositories[MODEL] = Repository()
        environ = {
            "HOME": str(home),
            "PATH": f"{programs}:{simulator.parent}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            **hub.environ(),
        }
        there = Person(home, hub, environ)
        there("vm list")
        with (home / ".vmreconcile/inventory/hosts.yml").open("a") as hosts:  # beside whatever this machine has of us
            hosts.write(f"      vllm_state_dir: {home}/host\n")
        yield there
        there("vm remove qwen2.5-7b -y")


@pytest.mark.slow
def test_a_new_user(person: Person) -> None:
    """Log in, add, start: it serves, with the token, the memory and nothing asked; then it is stopped and removed."""
    port = free_port()
    assert person(f"hf auth login --token {TOKEN}").returncode == 0
    added = person(f"vm add qwen2.5-7b {MODEL} --port {port}")
    assert added.returncode == 0, added.stderr
    started = person("vm start qwen2.5-7b")
    assert started.returncode == 0, started.stdout + started.stderr
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as answer:
        assert MODEL in answer.read().decode()
    for words in ("status", "list", "cleanup", "ui", "auth status"):
        said = person(f"vm {words}")
        assert said.returncode == 0, (words, said.stderr)
        assert TOKEN not in said.stdout + said.stderr
    environ = _environ_of_server(person)
    assert f"HF_TOKEN={TOKEN}" in environ
    assert person("vm stop qwen2.5-7b").returncode == 0
    assert "stopped" in person("vm status").stdout
    assert person("vm remove qwen2.5-7b").returncode == 0
    assert not list((person.home / ".vmreconcile/models.d").iterdir())
    assert not [path for path in (person.home / "host").rglob("*") if path.is_file()]


def _environ_of_server(person: Person) -> list[str]:
    """The environment of the server that runs, from the kernel."""
    pid = person("vm status --json").stdout.partition('"pid": ')[2].partition(",")[0]
    return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")


@pytest.mark.slow
def test_an_existing_user_logs_in_anew(person: Person) -> None:
    """Who am I, out, in with a valid token, variables unset; the guide's own check of the token."""
    assert person(f"hf auth login --token {OTHER}").returncode != 0
    assert "ada" not in person("hf auth whoami").stdout
    assert person(f"hf auth logout; hf auth login --token {TOKEN}").returncode == 0
    assert "ada" in person("hf auth whoami").stdout
    person.environ["HF_TOKEN"] = OTHER
    assert "HF_TOKEN ignored: the cache file wins" in person("vm auth status").stdout
    said = person("unset HF_TOKEN HUGGING_FACE_HUB_TOKEN\nvm auth status")
    assert "ignored" not in said.stdout + said.stderr
    assert "Status: 200" in person(SNIPPET).stdout


@pytest.mark.slow
def test_a_401_is_told_before_anything_is_started(person: Person) -> None:
    """With what to do; nothing runs afterwards."""
    token = person.home / ".cache/huggingface/token"
    token.parent.mkdir(parents=True)
    token.write_text(OTHER)
    person(f"vm add qwen2.5-7b {MODEL} --port {free_port()}")
    said = person("vm start qwen2.5-7b")
    assert said.returncode == 1
    assert "! blocked     qwen2.5-7b  the Hub does not accept the token" in said.stdout
    assert "auth login" in said.stdout
    assert "absent" in person("vm status").stdout
    assert OTHER not in said.stdout + said.stderr


def test_memory_is_raised_for_another_model_in_its_file(person: Person) -> None:
    """The guide's line, in the file of today and in the file of then."""
    person("vm add other org/other --port 8001")
    path = person.home / ".vmreconcile/models.d/other.yaml"
    with path.open("a") as file:
        file.write("args: {gpu_memory_utilization: 0.8}\n")
    assert " 0.8 " in person("vm list").stdout
    (person.home / "models_config.json").write_text(
        '{"models": [{"name": "then", "huggingface_id": "org/then", "port": 8002, "gpu_memory_utilization": 0.8}]}'
    )
    assert person("vm import models_config.json").returncode == 0
    assert person("vm list").stdout.count(" 0.8 ") == 2


def test_the_page_maps_every_block_of_the_guide() -> None:
    """A row for each."""
    page = (ROOT / "docs/vm.md").read_text()
    table = page.partition("## The old guide")[2]
    for words in (
        "login --token",
        "add qwen2.5-7b",
        "start qwen2.5-7b",
        "whoami",
        "logout",
        "unset",
        "401",
        "cache blocks",
    ):
        assert words in table, words

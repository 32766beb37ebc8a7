"""The command blocks of the VLLM Manager's guide, as docs/vm.md maps them: real shells, `hf`, `vm`, a Hub that answers.

vLLM is the simulator, on this machine; everything else is what a person would run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.lab.hub import Hub, Repository
from tests.lab.server import free_port
from tests.lab.worlds import TOKEN

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OTHER = TOKEN.replace("0000", "9999")
MODEL = "Qwen/Qwen2.5-7B-Instruct"
BLOCKS = {
    "log in": "huggingface-cli login --token YOUR_TOKEN_HERE",
    "add": "./vm add qwen2.5-7b Qwen/Qwen2.5-7B-Instruct --port 8001",
    "start": "./vm start qwen2.5-7b",
    "log in anew": """\
# Check current login status
huggingface-cli whoami

# If not logged in or login is invalid:
huggingface-cli logout
huggingface-cli login --token YOUR_VALID_TOKEN""",
    "clear variables": """\
# Remove conflicting environment variables
unset HF_TOKEN HUGGING_FACE_HUB_TOKEN""",
    "verify": "huggingface-cli whoami",
    "log in with the right token": """\
huggingface-cli logout
huggingface-cli login --token YOUR_TOKEN""",
    "raise memory": """\
# Edit model configuration in models_config.json
"gpu_memory_utilization": 0.8""",
    "test the token": """\
# Test login status
huggingface-cli whoami

# Test token validity
python -c "
import requests
import os
with open(os.path.expanduser('~/.cache/huggingface/token'), 'r') as f:
    token = f.read().strip()
headers = {'Authorization': f'Bearer {token}'}
response = requests.get('https://huggingface.co/api/whoami', headers=headers)
print('Status:', response.status_code)
print('Response:', response.text)
\"""",
}
"""Every command block of the guide, in its order, as the guide writes it."""


def commands(block: str) -> list[str]:
    """The lines of a block that do something, as docs/vm.md shows them: Python on one line, shortened."""
    shell, python, _ = block.partition('python -c "')
    lines = [line for line in shell.splitlines() if line and not line.startswith("#")]
    return [*lines, *(['python -c "import requests …"'] if python else [])]


@dataclass
class Person:
    """Someone at a shell in an empty home; `ran` are the guide's blocks that were typed."""

    home: Path
    hub: Hub
    environ: dict[str, str]
    port: int = field(default_factory=free_port)
    ran: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A block of the guide, with what has another name today and here."""
        self.ran.append(name)
        text = BLOCKS[name].replace("./vm ", "vm ").replace("huggingface-cli", "hf auth")
        text = re.sub("YOUR_[A-Z_]+", TOKEN, text).replace("8001", str(self.port))
        return text.replace("https://huggingface.co/", f"{self.hub.url}/")

    def block(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Type a block of the guide, and more in the same shell."""
        return self("\n".join([self.text(name), *more]))

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
            "PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path)]),
            **hub.environ(),
        }
        there = Person(home, hub, environ)
        there("vm list")
        with (home / ".vmreconcile/inventory/hosts.yml").open("a") as hosts:  # beside whatever this machine has of us
            hosts.write(f"      vllm_state_dir: {home}/host\n")
        yield there
        there("vm remove qwen2.5-7b -y")


@pytest.mark.slow
def test_the_guide_from_its_first_block_to_its_last(person: Person) -> None:
    """Each block as written: `vm` for `./vm`, `hf auth` for `huggingface-cli`, a free port, this Hub for the Hub."""
    assert person.block("log in").returncode == 0
    added = person.block("add")
    assert added.returncode == 0, added.stderr
    started = person.block("start")
    assert started.returncode == 0, started.stdout + started.stderr
    with urllib.request.urlopen(f"http://127.0.0.1:{person.port}/v1/models") as answer:
        assert MODEL in answer.read().decode()
    assert f"HF_TOKEN={TOKEN}" in _of_server(person, "environ")
    for words in ("status", "list", "cleanup", "ui", "auth status"):
        said = person(f"vm {words}")
        assert said.returncode == 0, (words, said.stderr)
        assert TOKEN not in said.stdout + said.stderr

    (person.home / ".cache/huggingface/token").write_text(OTHER)
    again = person.block("log in anew")
    assert again.returncode == 0, again.stderr
    assert "ada" not in again.stdout.partition("logged out")[0], "the old one was not valid"
    assert "ada" in person("hf auth whoami").stdout
    person.environ["HF_TOKEN"] = OTHER
    assert "HF_TOKEN ignored: the cache file wins" in person("vm auth status").stdout
    said = person.block("clear variables", "vm auth status")
    assert (said.returncode, "ignored" in said.stdout + said.stderr) == (0, False)
    del person.environ["HF_TOKEN"]

    assert "ada" in person.block("verify").stdout
    assert person.block("log in with the right token").returncode == 0
    entry = '{"name": "then", "huggingface_id": "org/then", "port": 8002, "gpu_memory_utilization": 0.3}'
    entry = entry.replace('"gpu_memory_utilization": 0.3', *commands(person.text("raise memory")))
    (person.home / "models_config.json").write_text(f'{{"models": [{entry}]}}')
    assert person("vm import models_config.json").returncode == 0
    assert "  gpu_memory_utilization: 0.8\n" in (person.home / ".vmreconcile/models.d/then.yaml").read_text()
    tested = person.block("test the token")
    assert "ada" in tested.stdout.partition("Status:")[0]
    assert 'Status: 200\nResponse: {"user": "ada"' in tested.stdout, tested.stderr

    assert person.ran == [*BLOCKS]
    assert person("vm stop qwen2.5-7b").returncode == 0
    assert "stopped" in person("vm status").stdout
    assert person("vm remove qwen2.5-7b").returncode == 0
    assert [path.name for path in (person.home / ".vmreconcile/models.d").iterdir()] == ["then.yaml"]
    assert not [path for path in (person.home / "host").rglob("*") if path.is_file()]


def _of_server(person: Person, file: str) -> list[str]:
    """The environment, or the command line, of the server that runs, from the kernel."""
    pid = person("vm status --json").stdout.partition('"pid": ')[2].partition(",")[0]
    return Path(f"/proc/{pid}/{file}").read_bytes().decode().split("\0")


@pytest.mark.slow
def test_qwen_gets_its_memory(person: Person) -> None:
    """At least 0.8: vLLM's own default where that is more, else 0.8; `show` and `plan --explain` name the rule."""
    person.block("add")
    person("sed -i 's/state: stopped/state: running/' .vmreconcile/models.d/qwen2.5-7b.yaml")
    for words in ("plan --explain", "show qwen2.5-7b@localhost"):
        said = person(f"vm {words}").stdout
        found = re.search(r"gpu_memory_utilization stays ([\d.]+), .*at least 0.8 asked +\(rule qwen2.5-kv-mem", said)
        assert found, said
        assert float(found[1]) >= 0.8
    assert person.block("start").returncode == 0
    assert "--gpu-memory-utilization" not in _of_server(person, "cmdline")
    rule = """rules:
- name: everything-small
  match: {model: "*"}
  set: {gpu_memory_utilization: {value: 0.5}}
  reason: other programs share this GPU
"""
    (person.home / ".vmreconcile/tuning.yaml").write_text(rule)
    assert "(rule qwen2.5-kv-memory" in person("vm plan --explain").stdout
    applied = person("vm apply -y")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    argv = _of_server(person, "cmdline")
    assert argv[argv.index("--gpu-memory-utilization") + 1] == "0.8"
    assert re.search(
        r"gpu_memory_utilization +0.8 .*rule qwen2.5-kv-memory", person("vm show qwen2.5-7b@localhost").stdout
    )


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


@pytest.mark.parametrize("name", BLOCKS)
def test_the_page_maps_every_block_of_the_guide(name: str) -> None:
    """A row that begins with the block's commands, and says what is typed now and what that does."""
    page = (ROOT / "docs/vm.md").read_text()
    rows = page.partition("## The old guide")[2].splitlines()
    first = f"| {', '.join(f'`{line}`' for line in commands(BLOCKS[name]))} |"
    (row,) = [row for row in rows if row.startswith(first)]
    cells = row.removeprefix(first).split("|")
    assert all(len(cell.strip()) > 10 for cell in cells[:2]), row

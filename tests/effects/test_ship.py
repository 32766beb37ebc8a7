"""What is carried to a host: the archive and the shell line."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vmreconcile.effects import ship
from vmreconcile.model.connection import Connection
from vmreconcile.model.secret import Secret


def test_archive_holds_the_agent_and_pynvml() -> None:
    """Every module of the agent but the bootstrap, and NVIDIA's bindings; the name is the content's hash."""
    archive = ship.agent_archive()
    names = zipfile.ZipFile(io.BytesIO(archive.content)).namelist()
    assert {"vmreconcile_agent/__init__.py", "vmreconcile_agent/__main__.py", "pynvml.py"} <= set(names)
    assert "vmreconcile_agent/bootstrap.py" not in names
    assert all(name.endswith(".py") for name in names)
    assert archive.sha256 == hashlib.sha256(archive.content).hexdigest()
    assert ship.agent_archive() is archive


def test_archive_is_the_same_in_another_process() -> None:
    """Equal sources give equal bytes, whatever the process."""
    code = "from vmreconcile.effects.ship import agent_archive; print(agent_archive().sha256)"
    environ = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environ, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.decode().strip() == ship.agent_archive().sha256


def test_pack_depends_on_names_and_contents_alone() -> None:
    """The order of members plays no part; contents do."""
    assert ship.pack({"a": b"1", "b": b"2"}) == ship.pack({"b": b"2", "a": b"1"})
    assert ship.pack({"a": b"1"}) != ship.pack({"a": b"2"})


@pytest.mark.parametrize(
    ("interpreter", "vllm", "expected"),
    [
        ("", "", ["python3", "python3.13"]),
        ("auto_legacy", "", ["python3", "python3.13"]),
        ("/opt/py/bin/python3", "", ["/opt/py/bin/python3", "python3"]),
        ("python3", "", ["python3", "python3.13"]),
    ],
)
def test_candidates(interpreter: str, vllm: str, expected: list[str]) -> None:
    """The named one first, then the usual names, newest first."""
    connection = Connection(host="a", python_interpreter=interpreter, vllm_executable=vllm)
    candidates = ship.python_candidates(connection)
    assert list(candidates[: len(expected)]) == expected
    assert candidates[-1] == "python3.8"
    assert len(set(candidates)) == len(candidates)


def test_candidates_beside_vllm_come_last() -> None:
    """The interpreter that runs vLLM serves where nothing else does."""
    candidates = ship.python_candidates(Connection(host="a", vllm_executable="/opt/vllm/bin/vllm"), "/own/python")
    assert candidates[-2:] == ("/opt/vllm/bin/python3", "/opt/vllm/bin/python")
    assert candidates[0] == "/own/python"


def test_sudo_words() -> None:
    """No password in argv, ever; without one sudo must not ask."""
    secret = Secret("SENTINEL")
    assert ship.sudo(Connection(host="a")) == ()
    assert ship.sudo(Connection(host="a", become=True))[2:] == ("sudo", "-n", "-H", "-u", "root", "--")
    asking = Connection(host="a", become=True, become_user="vllm", become_password=secret)
    assert ship.sudo(asking)[2:] == ("sudo", "-S", "-p", "", "-H", "-u", "vllm", "--")
    line = ship.start_line(asking, ship.agent_archive())
    assert "SENTINEL" not in line
    assert ship.SUDO_READY in line


def test_line_survives_any_words() -> None:
    """Quoting is undone by a shell to exactly the words that went in."""
    odd = '/srv/it\'s "$HOME" `x` \\ ü'
    line = ship.start_line(Connection(host="a", vllm_state_dir=odd, python_interpreter=odd), ship.agent_archive())
    words = shlex.split(line)
    assert words[0] == "exec"
    assert odd in words
    done = subprocess.run(["/bin/sh", "-c", line.replace("exec", "printf '%s\\0'", 1)], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == words[1:]

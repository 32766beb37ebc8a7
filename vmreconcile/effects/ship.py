"""What is carried to a host: the agent as one archive, and the shell line that starts it. Opens no connection.

The archive's name is its content's hash, so that a host that has it already is sent nothing. Every word of the shell
line is quoted here and nowhere else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import io
import posixpath
import shlex
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmreconcile.errors import VmreconcileError

if TYPE_CHECKING:
    from vmreconcile.model.connection import Connection

PACKAGE = "vmreconcile_agent"
"""What the agent is called inside the archive; the bootstrap knows it by the same name."""

OLDEST_PYTHON = (3, 8)
TOO_OLD = 86
NO_PYTHON = 87
SUDO_READY = "VMRECONCILE/SUDO"
"""Printed once sudo has let us in: only then may anything but the password be written to it."""

_building = threading.Lock()

_EPOCH = (1980, 1, 1, 0, 0, 0)

_PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(13, 7, -1)))

# Starts the first Python that is new enough. 126 and 127: a shim or a file that is no Python after all; 2: Python 2,
# which knows no -I. One line without an exclamation mark or a backslash, because the login shell that reads it first
# may be csh or fish.
_SCRIPT = (
    'b=$1; h=$2; s=$3; shift 3; for p in "$@"; do command -v "$p" >/dev/null 2>&1 || continue; '
    f'"$p" -I -S -c "$b" "$h" "$s"; r=$?; case $r in {TOO_OLD}|2|126|127) ;; *) exit $r;; esac; done; exit {NO_PYTHON}'
)

# Runs on any Python, however old, and leaves standard input alone there. One line, without single quotes.
_HEAD = (
    f"import sys,binascii,zlib;sys.version_info<{OLDEST_PYTHON} and ("
    'sys.stderr.write("vmreconcile: Python %s is too old: %s"%(sys.version.split()[0],sys.executable)+chr(10)),'
    f"sys.exit({TOO_OLD}));"
    'exec(compile(zlib.decompress(binascii.a2b_base64("{}")),"bootstrap","exec"))'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The agent as it is sent: a zip archive that Python runs, its SHA-256, and the bootstrap's source."""

    content: bytes
    sha256: str
    bootstrap: str


def agent_archive() -> Archive:
    """The archive of this installation, built once a process; equal sources give equal bytes."""
    with _building:  # 20 threads that ask at once wait for one
        return _agent_archive()


@functools.cache
def _agent_archive() -> Archive:
    agent = Path(__file__).parents[1] / "agent"
    members = {f"{PACKAGE}/{path.relative_to(agent).as_posix()}": path.read_bytes() for path in agent.rglob("*.py")}
    bootstrap = members.pop(f"{PACKAGE}/bootstrap.py").decode()
    members["pynvml.py"] = _pynvml()
    content = pack(members)
    return Archive(content=content, sha256=hashlib.sha256(content).hexdigest(), bootstrap=bootstrap)


def pack(members: dict[str, bytes]) -> bytes:
    """A zip archive that depends on names and contents alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, members[name])
    return buffer.getvalue()


def start_line(connection: Connection, archive: Archive, own_python: str = "") -> str:
    """The shell line that starts the agent for `connection`, through sudo where it asks for that.

    `own_python` is one more candidate: the controller's own, for a local connection.
    """
    script = f"echo {SUDO_READY}; {_SCRIPT}" if needs_sudo_password(connection) else _SCRIPT
    agent = (
        "/bin/sh",
        "-c",
        script,
        "vmreconcile",
        _head(archive.bootstrap),
        archive.sha256,
        connection.vllm_state_dir,
        *python_candidates(connection, own_python),
    )
    return "exec " + shlex.join((*sudo(connection), *agent))


def needs_sudo_password(connection: Connection) -> bool:
    """Whether sudo is given a password on its standard input."""
    return connection.become and bool(connection.become_password)


def sudo(connection: Connection) -> tuple[str, ...]:
    """The words before the command: none without `become`. Messages are in English, so that they can be told apart."""
    if not connection.become:
        return ()
    asking = ("-S", "-p", "") if needs_sudo_password(connection) else ("-n",)
    return ("env", "LC_ALL=C", "sudo", *asking, "-H", "-u", connection.become_user, "--")


def python_candidates(connection: Connection, own_python: str = "") -> tuple[str, ...]:
    """Every Python to try, in order, as docs/wire.md has it."""
    named = connection.python_interpreter
    candidates = [] if named.startswith("auto") else [named]
    candidates += [own_python, *_PYTHONS]
    if connection.vllm_executable:
        beside = posixpath.dirname(connection.vllm_executable)
        candidates += [posixpath.join(beside, name) for name in ("python3", "python")]
    return tuple(dict.fromkeys(candidate for candidate in candidates if candidate))


@functools.cache
def _head(bootstrap: str) -> str:
    packed = base64.b64encode(zlib.compress(bootstrap.encode(), 9)).decode()
    return _HEAD.replace("{}", packed)


def _pynvml() -> bytes:
    """NVIDIA's bindings as nvidia-ml-py installed them beside us: one file, found without importing it.

    An old distribution named pynvml puts a folder of that name next to it, which Python would import instead.
    """
    spec = importlib.util.find_spec("pynvml")
    if spec is None or spec.origin is None:
        raise VmreconcileError("nvidia-ml-py is not installed beside vmreconcile", remedy="install vmreconcile anew")
    found = Path(spec.origin)
    return (found.parents[1] / "pynvml.py" if found.name == "__init__.py" else found).read_bytes()

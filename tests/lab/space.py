"""A private corner of this machine: own network, mounts and processes, gone with the test session, however that ends.

Owns the namespaces, the session's folder and its control groups. Knows nothing of hosts.

The first process of the corner waits on a pipe that only the test session holds. When the session ends, even by
SIGKILL, the pipe closes, that process ends, and the kernel ends everything else in its pid namespace; the mounts
and the network go with the last process. What remains then is a folder and empty control groups: the next session
removes those whose lock nobody holds any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import IO

ROOM = Path("/var/tmp/vmreconcile-lab")
GATEWAY = "198.18.0.1"
"""The address of this side on the bridge: what a test listens on so that hosts can reach it."""
BRIDGE = "lab0"
CLONE_NEWNET = 0x40000000
_FIRST_PROCESS = f"""
set -e
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 lab /run/systemd/nspawn
ip link set lo up
ip link add {BRIDGE} type bridge
ip addr add {GATEWAY}/24 dev {BRIDGE}
ip link set {BRIDGE} up
echo ready
read -r _ || true
"""


class LabError(Exception):
    """The laboratory cannot be made, or a host in it does not do what it must; the message says what was seen."""


def wait_until(condition: Callable[[], object], seconds: float, what: str, pause: float = 0.02) -> None:
    """Call `condition` until it returns something true.

    Raises:
        LabError: after `seconds`, naming `what` was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(pause)


def missing() -> str:
    """Say why no laboratory can be made here; an empty text where it can."""
    if os.geteuid() != 0:
        return "not root"
    tools = ("systemd-nspawn", "sshd", "ip", "nsenter", "unshare", "ssh-keygen", "sudo", "dbus-daemon")
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [tool for tool in tools if shutil.which(tool, path=search) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (scripts/install-system-test-packages installs them)"
    if not hierarchies():
        return "no systemd or unified control group hierarchy is mounted"
    return ""


def hierarchies() -> list[Path]:
    """Return where the control group hierarchies that a systemd needs are mounted."""
    found: dict[tuple[str, str], Path] = {}
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            found.setdefault((kind, options), Path(where))
    return list(found.values())


class Space:
    """One corner. `folder` is its folder, `name` the folder's name, `first` the outer pid of its first process."""

    def __init__(self) -> None:
        """Make the folder and the namespaces; first remove what dead sessions left.

        Raises:
            LabError: where this machine cannot hold one.
        """
        if reason := missing():
            raise LabError(f"no laboratory on this machine: {reason}")
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.folder = ROOM / self.name
        ROOM.mkdir(mode=0o755, exist_ok=True)
        with (ROOM / "lock").open("ab") as gate:  # or another session could sweep a folder not yet locked
            fcntl.flock(gate, fcntl.LOCK_EX)
            sweep()
            self.folder.mkdir(mode=0o755)
            self._lock = _take(self.folder / "lock")
        with (self.folder / "space.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--mount-proc"),
                    *("--fork", "--kill-child=SIGKILL", "sh", "-c", _FIRST_PROCESS),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        with self._process.stdout as told:
            if told.readline() != b"ready\n":
                reason = (self.folder / "space.log").read_text(errors="replace").strip()
                self.close()
                raise LabError(f"no laboratory on this machine: {reason}")
        self.first = children(self._process.pid)[0]

    def close(self) -> None:
        """End everything inside and remove the folder; safe to call twice."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _remove(self.folder)
        self._lock.close()

    def command(self, argv: Sequence[str], group: str = "") -> list[str]:
        """Return argv that runs `argv` inside: in its network, mounts and pids, and in the control group `group`."""
        enter = ["nsenter", f"--target={self.first}", "--net", "--mount", "--pid", "--", *argv]
        if not group:
            return enter
        procs = []
        for hierarchy in hierarchies():
            folder = hierarchy / _group(self.name) / group
            folder.mkdir(parents=True, exist_ok=True)
            procs.append(f"{folder}/cgroup.procs")
        joined = " ".join(procs)
        return ["sh", "-c", f'for f in {joined}; do echo $$ > "$f" || exit 1; done; exec "$@"', "sh", *enter]

    def call(self, argv: Sequence[str], timeout: float = 30) -> str:
        """Run `argv` inside and return its output.

        Raises:
            LabError: where it fails, with its output.
        """
        done = subprocess.run(
            self.command(argv), capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise LabError(f"{' '.join(argv)} exited {done.returncode}: {(done.stdout + done.stderr).strip()}")
        return done.stdout

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Put the calling thread into the corner's network; sockets, threads and processes made there stay there."""
        with (
            Path("/proc/thread-self/ns/net").open("rb") as outside,
            Path(f"/proc/{self.first}/ns/net").open("rb") as inside,
        ):
            _enter_network(inside)
            try:
                yield
            finally:
                _enter_network(outside)


def sweep() -> None:
    """Remove what sessions that are no more left behind: folders whose lock is free, with their control groups."""
    for folder in ROOM.iterdir():
        if not folder.is_dir():
            continue
        try:
            lock = _take(folder / "lock")
        except OSError:
            continue
        with lock:
            _remove(folder)


def children(pid: int) -> list[int]:
    """Return the pids of the direct children of `pid`, none where it is gone."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _take(path: Path) -> IO[bytes]:
    """Open and lock `path`; BlockingIOError where a living session holds it."""
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def _group(name: str) -> str:
    return f"vmreconcile-lab-{name}"


def _remove(folder: Path) -> None:
    """Remove a session's control groups, ending what is left in them, then its folder (never across a mount)."""
    for hierarchy in hierarchies():
        top = hierarchy / _group(folder.name)
        groups = sorted(top.rglob("cgroup.procs"), key=lambda path: -len(path.parts)) if top.exists() else []
        for procs in groups:
            for pid in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    if pid != "0":
                        os.kill(int(pid), signal.SIGKILL)
        for procs in groups:
            wait_until(functools.partial(_removed, procs.parent), 10, f"{procs.parent} to become empty")
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _enter_network(namespace: IO[bytes]) -> None:
    """Move this thread; Python has `os.setns` only from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace.fileno(), CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

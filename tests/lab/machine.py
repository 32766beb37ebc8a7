"""One machine with a systemd and an sshd of its own: power, commands, files, processes.

Owns booting, reaching and inspecting a machine. How to break it is in `faults`, several together are in `hosts`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import disk
from tests.lab.disk import USERS
from tests.lab.space import BRIDGE, LabError, Space, children, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of a host. `pid` counts inside the host, `outer_pid` on this machine; `start` in clock ticks."""

    pid: int
    outer_pid: int
    parent: int
    uid: int
    start: int
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    group: str


_POWER = """while :; do "$@"; code=$?; [ $code = 133 ] || exit $code; done"""
"""Runs nspawn, which ends with 133 where the machine wants to come back."""


class Machine:
    """One host of the laboratory. Where not said otherwise, everything here works without its sshd and network."""

    def __init__(self, space: Space, name: str, address: str, public_key: str) -> None:
        """Prepare the disk of a host that is off; `Lab.boot` switches it on."""
        self.space = space
        self.name = name
        self.address = address
        self.folder = space.folder / "hosts" / name
        self.upper = self.folder / "upper"
        for part in ("upper", "work", "root"):
            (self.folder / part).mkdir(parents=True, mode=0o755)
        disk.prepare(self.upper, name, address, public_key)
        self.host_key = disk.new_host_key(self.upper / "etc/ssh")
        layers = f"lowerdir=/,upperdir={self.upper},workdir={self.folder}/work"
        space.call(["mount", "-t", "overlay", "lab", "-o", layers, str(self.folder / "root")])
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._baseline: frozenset[str] = frozenset()

    # Power

    def start(self) -> None:
        """Switch on without waiting."""
        binds = [f"--bind-ro={self.space.folder}/shared"]
        root = Path("/").stat().st_dev
        binds += [
            f"--bind-ro={path}"  # a host must not be able to harm this machine's files
            for path in disk.needed_paths()
            if path.exists() and (path.stat().st_dev != root or path.parts[1] in {"tmp", "run"})
        ]
        argv = [
            *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"),
            *(f"--directory={self.folder}/root", f"--machine={self.name}", f"--network-bridge={BRIDGE}"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", *binds),
        ]
        with (self.folder / "console.log").open("ab") as console:
            self._nspawn = subprocess.Popen(
                self.space.command(["sh", "-c", _POWER, "sh", *argv], group=self.name),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def wait(self, seconds: float = 60) -> None:
        """Wait until it has booted and its sshd greets.

        Raises:
            LabError: where that takes too long or a unit failed, with what the host says.
        """
        try:
            wait_until(lambda: self.pid, seconds, f"{self.name} to switch on")
            wait_until(self._settled, seconds, f"{self.name} to boot", pause=0.1)
            self._check_units(seconds)
            wait_until(self.greets, seconds, f"sshd of {self.name} to greet")
        except LabError as error:
            raise LabError(f"{error}; its console: {self.console()}") from error

    def _check_units(self, seconds: float) -> None:
        """Wait until the boot is over; LabError where a unit failed."""
        state = self.exec(["systemctl", "is-system-running", "--wait"], check=False, timeout=seconds).stdout.strip()
        if state != "running":
            failed = self.exec(["systemctl", "list-units", "--failed", "--plain", "--no-legend"]).stdout
            raise LabError(f"{self.name} is {state or 'silent'}: {failed.strip()}")

    @property
    def pid(self) -> int:
        """The pid of its first process on this machine; 0 while it is off."""
        if self._nspawn is None:
            return 0
        below = [self._nspawn.pid]  # nsenter, the loop, nspawn, then the machine's first process
        for _ in range(3):
            below = [child for pid in below for child in children(pid)]
        return next((pid for pid in below if _status(pid).get("NSpid", "").split()[-1:] == ["1"]), 0)

    def kill(self) -> None:
        """Cut the power: everything on it dies at once; its disk stays. `start` and `wait` bring it back."""
        if pid := self.pid:
            os.kill(pid, signal.SIGKILL)
        if self._nspawn is not None:
            self._nspawn.wait(timeout=20)
            self._nspawn = None

    def reboot(self, seconds: float = 120) -> None:
        """Have its systemd reboot it, and wait until it is back with its files and its address."""
        before = self.pid
        self.exec(["systemctl", "--no-block", "reboot"], check=False)
        wait_until(lambda: self.pid not in (0, before), seconds, f"{self.name} to reboot", pause=0.1)
        self.wait(seconds)

    def console(self) -> str:
        """Return the last lines that it wrote to its console."""
        path = self.folder / "console.log"
        return " | ".join(path.read_text(errors="replace").splitlines()[-8:])

    def greets(self) -> bool:
        """Say whether its sshd answers on the network with its greeting within a second."""
        try:
            with self.space.network(), socket.create_connection((self.address, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _settled(self) -> bool:
        """Say whether its systemd answers."""
        state = self.exec(["systemctl", "is-system-running"], check=False).stdout.strip()
        return state in {"starting", "running", "degraded", "initializing"}

    # Doing things on it

    def exec(
        self, argv: Sequence[str], *, user: str = "root", check: bool = True, data: str = "", timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` on it, past ssh, with `data` as standard input.

        Raises:
            LabError: where `check` and it fails, with its output.
        """
        who = next(one for one in USERS if one.name == user)
        runtime = f"/run/user/{who.uid}"
        env = [f"PATH={PATH}", f"HOME={who.home}", f"USER={user}", "LANG=C.UTF-8", f"XDG_RUNTIME_DIR={runtime}"]
        switch = ["runuser", "-u", user, "--"] if who.uid else []
        inside = ["env", "-i", *env, *switch, "timeout", "--signal=KILL", f"{timeout:g}", *argv]
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        done = subprocess.run(
            ["nsenter", f"--target={self.pid}", *spaces, "--", *inside],
            input=data,
            capture_output=True,
            text=True,
            timeout=timeout + 10,
            check=False,
        )
        if check and done.returncode:
            what = (done.stdout + done.stderr).strip()
            raise LabError(f"{self.name}: {shlex.join(argv)} exited {done.returncode}: {what}")
        return done

    def shell(self, script: str, *args: str, user: str = "root") -> str:
        """Run a shell script on it, with `args` as $1…, past ssh, and return its output."""
        return self.exec(["sh", "-euc", script, "sh", *args], user=user).stdout

    def read(self, path: str) -> str:
        """Return the text of a file on it."""
        return self.exec(["cat", path]).stdout

    def write(self, path: str, text: str, mode: int = 0o644, user: str = "root") -> None:
        """Write a file on it, its folders with it, as `user`."""
        script = 'mkdir -p "$(dirname "$1")"; umask 077; cat >"$1"; chmod "$2" "$1"'
        self.exec(["sh", "-euc", script, "sh", path, f"{mode:o}"], data=text, user=user)

    def exists(self, path: str) -> bool:
        """Say whether it has `path`."""
        return self.exec(["test", "-e", path], check=False).returncode == 0

    # Seeing what is on it

    def processes(self) -> list[Process]:
        """Return every process on it, by pid, as the kernel shows it to root; independent of what the host can run."""
        try:
            space = Path(f"/proc/{self.pid}/ns/pid").readlink()
        except FileNotFoundError:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if entry.name.isdecimal() and (entry / "ns/pid").readlink() == space:
                    found.append(_process(entry))
        return sorted(found, key=lambda process: process.pid)

    def pids(self, word: str = "") -> set[int]:
        """Return the pids of the processes that have an argument with `word` in it."""
        return {one.pid for one in self.processes() if any(word in argument for argument in one.argv)}


def _status(pid: int) -> dict[str, str]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pairs = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {key: value.strip() for key, _, value in pairs}
    return {}


def _process(entry: Path) -> Process:
    """Read one process from /proc of this machine."""
    status = _status(int(entry.name))
    text = (entry / "stat").read_text()
    after_name = text.rpartition(")")[2].split()
    argv = os.fsdecode((entry / "cmdline").read_bytes()).rstrip("\0")
    environ = os.fsdecode((entry / "environ").read_bytes()).split("\0")
    group = ""
    for line in (entry / "cgroup").read_text().splitlines():
        number, name, path = line.split(":", 2)
        if name == "name=systemd" or (number == "0" and not group):
            group = path
    return Process(
        pid=int(status["NSpid"].split()[-1]),
        outer_pid=int(entry.name),
        parent=int(after_name[1]),
        uid=int(status["Uid"].split()[0]),
        start=int(after_name[19]),
        argv=tuple(argv.split("\0")) if argv else (),
        environ=dict(pair.split("=", 1) for pair in environ if "=" in pair),
        group=group,
    )

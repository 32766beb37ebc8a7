"""The laboratory: hosts on a network of their own, and beside them the machine of the person who manages them.

Owns the set of hosts, the person's HOME, and running programs as that person. README.md is the overview.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.lab.disk import CHECKOUT, PASSWORD
from tests.lab.faults import Host
from tests.lab.machine import PATH, Process
from tests.lab.space import LabError, Space, missing, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["PASSWORD", "Host", "Lab", "LabError", "Process", "missing", "wait_until"]


class Lab:
    """Some hosts, and beside them a person's machine: this one, seen through the hosts' network, with another HOME."""

    def __init__(self) -> None:
        """Make the network and the person's key; no host yet."""
        self.space = Space()
        self.hosts: list[Host] = []
        self.shared = self.space.folder / "shared"
        self.home = self.space.folder / "home"
        self.shared.mkdir()
        self.make_home(self.home)

    @classmethod
    def boot(cls, count: int) -> Self:
        """Make a laboratory with the hosts gpu1 … gpu`count`, all booted and reachable."""
        lab = cls()
        try:
            lab.add(count)
        except BaseException:
            lab.close()
            raise
        return lab

    def add(self, count: int) -> list[Host]:
        """Boot `count` more hosts and return them."""
        first = len(self.hosts) + 1
        key = (self.space.folder / "id_ed25519.pub").read_text().strip()
        new = [Host(self.space, f"gpu{n}", f"198.18.0.{10 + n}", key) for n in range(first, first + count)]
        self.hosts += new
        for host in new:
            host.start()
        for host in new:
            host.wait()
            host.remember()
        self.trust()
        return new

    def reset(self) -> None:
        """Make every host sound and empty again (see `Host.reset`), and known to the person."""
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(Host.reset, self.hosts))
        self.trust()

    def close(self) -> None:
        """End all of it and leave nothing behind."""
        self.space.close()
        for host in self.hosts:
            if host._nspawn is not None:
                host._nspawn.wait(timeout=20)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # The person's machine

    @property
    def key(self) -> Path:
        """The private key that every user on every host lets in."""
        return self.home / ".ssh/id_ed25519"

    @property
    def ssh_config(self) -> Path:
        """The ssh_config in the lab's HOME."""
        return self.home / ".ssh/config"

    @property
    def known_hosts(self) -> Path:
        """The known_hosts in the lab's HOME: every host's key, as it was when the host booted."""
        return self.home / ".ssh/known_hosts"

    def make_home(self, home: Path) -> None:
        """Make `home` a person's HOME: the key in it, every host known."""
        folder = home / ".ssh"
        folder.mkdir(parents=True, mode=0o700)
        original = self.space.folder / "id_ed25519"
        if not original.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(original)], check=True
            )
        (folder / "id_ed25519").write_text(original.read_text())
        (folder / "id_ed25519").chmod(0o600)
        (folder / "config").write_text(
            f"Host *\n  IdentityFile {folder}/id_ed25519\n  UserKnownHostsFile {folder}/known_hosts\n"
            "  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
        )
        self.trust(home)

    def trust(self, home: Path | None = None) -> None:
        """Write the host keys as they are now into `home`'s known_hosts (default: the lab's HOME)."""
        lines = [f"{host.address},{host.name} {host.host_key}\n" for host in self.hosts]
        ((home or self.home) / ".ssh/known_hosts").write_text("".join(lines))

    def environ(self, home: Path | None = None) -> dict[str, str]:
        """Return a person's whole environment: nothing of this machine's but PATH gets through, tokens least of all."""
        python = str(Path(sys.executable).parent)
        return {
            "PATH": f"{python}:{PATH}",
            "HOME": str(home or self.home),
            "USER": "root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def popen(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, **options: object
    ) -> subprocess.Popen[str]:
        """Start `argv` in the hosts' network; `env` is laid over `environ()`. It is the caller's to end."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        with self.space.network():
            process: subprocess.Popen[str] = subprocess.Popen(
                list(argv),
                env=self.environ() | dict(env or {}),
                cwd=cwd or self.home,
                text=True,
                **streams,  # type: ignore[call-overload]
            )
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        data: str = "",
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` in the hosts' network to its end, with `data` as standard input."""
        with self.popen(argv, env=env, cwd=cwd, stdin=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(data, timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(argv), process.returncode, out, err)

    def ssh(self, host: Host, command: str, *, user: str = "root", data: str = "") -> subprocess.CompletedProcess[str]:
        """Run a shell command on `host` the way a person does: with OpenSSH, over the network."""
        argv = ["ssh", "-F", str(self.ssh_config), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
        return self.run([*argv, f"{user}@{host.address}", command], data=data)

    def start_by_hand(
        self, host: Host, argv: Sequence[str], *, user: str = "root", env: Mapping[str, str] | None = None
    ) -> int:
        """Start `argv` on `host` as a person does who logs in, starts it in the background and logs out; its pid there.

        What it says goes to /tmp/by-hand-USER.log on the host.
        """
        words = ["env", *(f"{key}={value}" for key, value in (env or {}).items()), "nohup", "setsid", *argv]
        done = self.ssh(host, f"{shlex.join(words)} >>/tmp/by-hand-{user}.log 2>&1 </dev/null & echo $!", user=user)
        if done.returncode:
            raise LabError(f"{host.name}: {shlex.join(argv)} was not started: {done.stderr.strip()}")
        pid = int(done.stdout)
        started = f"{argv[0]} to start on {host.name}"
        wait_until(lambda: pid in host.pids(argv[0]) - host.pids("setsid"), 15, started)  # in between it has no argv
        return pid

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Put the calling thread into the hosts' network, for clients and servers that a test runs in itself."""
        with self.space.network():
            yield

    def inventory(
        self, variables: Mapping[str, object] | None = None, hosts: Mapping[str, Mapping[str, object]] | None = None
    ) -> str:
        """Return a YAML inventory: all hosts in group `gpu`, `variables` for the group, `hosts` for one host each."""
        per_host = {h.name: {"ansible_host": h.address} | dict((hosts or {}).get(h.name, {})) for h in self.hosts}
        group = {"hosts": per_host, "vars": {"ansible_user": "root"} | dict(variables or {})}
        # JSON is YAML, which spares the quoting
        return json.dumps({"all": {"children": {"gpu": group}}}, indent=2, ensure_ascii=False) + "\n"

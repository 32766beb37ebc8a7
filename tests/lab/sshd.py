"""A real sshd on a loopback port, with host keys, settings and an authorized key of its own in a temporary folder.

Owns its start and end. It logs in the user that runs the tests, without PAM, into an empty home, and leaves the machine
as it was. Hosts with a system of their own are in `hosts`.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEY_TYPES = ("ed25519", "ecdsa", "rsa")


@dataclass(slots=True)
class Sshd:
    """One running sshd. `user` logs in with the private key `key`; `home` is a person's home that knows the server."""

    folder: Path
    settings: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    host_keys: tuple[str, ...] = ("ed25519",)
    port: int = 0
    user: str = field(default_factory=getpass.getuser)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def key(self) -> Path:
        """The private key that is let in."""
        return self.folder / "login"

    @property
    def home(self) -> Path:
        """A home folder with `.ssh/known_hosts`, for the controller's side."""
        return self.folder / "home"

    @property
    def remote_home(self) -> Path:
        """The home folder of a login."""
        return self.folder / "remote"

    @property
    def name(self) -> str:
        """The server's name in known_hosts."""
        return f"[127.0.0.1]:{self.port}"

    @property
    def log(self) -> str:
        """What sshd wrote about its connections."""
        return (self.folder / "log").read_text(errors="replace")

    def public(self, kind: str = "ed25519") -> str:
        """Type and bytes of a host key, as in a line of known_hosts."""
        return " ".join((self.folder / f"host_{kind}.pub").read_text().split()[:2])

    def know(self, *lines: str) -> None:
        """Write the person's known_hosts."""
        (self.home / ".ssh/known_hosts").write_text("".join(f"{line}\n" for line in lines))

    def configure(self, text: str) -> None:
        """Write the person's ssh configuration."""
        (self.home / ".ssh/config").write_text(text)

    def start(self) -> Self:
        """Make the keys, start the server, wait until it answers."""
        (self.home / ".ssh").mkdir(parents=True, mode=0o700)
        self.remote_home.mkdir()
        for kind in self.host_keys:
            new_key(self.folder / f"host_{kind}", kind)
        shutil.copy(new_key(self.key).with_suffix(".pub"), self.folder / "authorized_keys")
        self.port = self.port or free_port()
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it; its own service makes the same
        (self.folder / "sshd_config").write_text("\n".join(self._lines()) + "\n")
        with (self.folder / "log").open("wb") as log:
            argv = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.know(f"{self.name} {self.public(self.host_keys[0])}")
        self._wait()
        return self

    def stop(self) -> None:
        """End the server and every connection to it."""
        if self._process is not None:
            self.hang_up()
            self._process.terminate()
            self._process.wait()
            self._process = None

    def hang_up(self) -> int:
        """Kill the processes that serve the connections; their number."""
        assert self._process is not None
        return sum(_kill(pid) for pid in descendants(self._process.pid) if _command(pid).startswith("sshd"))

    def _lines(self) -> list[str]:
        return [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"PidFile {self.folder}/pid",
            *(f"HostKey {self.folder}/host_{kind}" for kind in self.host_keys),
            f"AuthorizedKeysFile {self.folder}/authorized_keys",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "UseDNS no",
            "PrintMotd no",
            "SetEnv " + " ".join(f"{name}={value}" for name, value in self._environment().items()),
            *(() if any("maxstartups" in line.lower() for line in self.settings) else ("MaxStartups 500",)),
            *self.settings,
        ]

    def _environment(self) -> dict[str, str]:
        """The home and PATH of a login, free of what this machine's owner has set up for shells."""
        return {"HOME": str(self.remote_home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **self.environment}

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as stream:
                stream.settimeout(2)
                if stream.recv(4) == b"SSH-":
                    return
            time.sleep(0.02)
        raise RuntimeError(f"sshd does not answer:\n{self.log}")


@contextlib.contextmanager
def running(
    folder: Path,
    *settings: str,
    environment: Mapping[str, str] | None = None,
    host_keys: tuple[str, ...] = ("ed25519",),
) -> Iterator[Sshd]:
    """An sshd for the length of a `with` block; `settings` are further lines of its sshd_config."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Sshd(folder, settings, environment or {}, host_keys)
    try:
        yield server.start()
    finally:
        server.stop()


def new_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """Make a key pair."""
    size = {"rsa": ["-b", "2048"], "ecdsa": ["-b", "256"]}.get(kind, [])
    argv = ["ssh-keygen", "-q", "-t", kind, *size, "-N", passphrase, "-C", "made for a test", "-f", str(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [found for child in children for found in (child, *descendants(child))]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
        return True
    return False

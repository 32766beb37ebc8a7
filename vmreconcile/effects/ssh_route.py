"""The byte stream to an SSH server: a TCP connection or a proxy command. Knows nothing of SSH itself."""

from __future__ import annotations

import contextlib
import errno
import socket
import subprocess
import tempfile
import threading
import time
from typing import IO, TYPE_CHECKING, Protocol

from vmreconcile.effects.ends import last_line
from vmreconcile.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmreconcile.effects.ssh_config import HostSettings

FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}

DEAD_AFTER = 30
"""Seconds of silence from the other side's kernel after which a connection is dead; a busy host still answers."""

_PROBES = (
    # A pulled cable, a host without power: else TCP would wait 15 minutes for them (tcp(7)).
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None)), DEAD_AFTER // 3),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPINTVL", None), DEAD_AFTER // 6),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_KEEPCNT", None), 4),
    (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT", None), DEAD_AFTER * 1000),
)
"""Options of a connection; a system that has not all of them does without."""

_REASONS = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "no route to the host",
    errno.ENETUNREACH: "no route to its network",
    errno.ECONNRESET: "connection reset",
    errno.EACCES: "not permitted by this machine",
    errno.EPERM: "not permitted by this machine",
}


class Route(Protocol):
    """A stream that is open. `where` names it in errors: '10.0.0.9:22'."""

    where: str

    @property
    def stream(self) -> socket.socket:
        """What SSH is spoken over."""

    def failure(self) -> str:
        """Why the stream ended, where the route itself knows; else ""."""

    def close(self) -> None:
        """Close it; may be called twice, and from another thread to end a wait."""


class TcpRoute:
    """A TCP connection to the first address that takes one."""

    def __init__(self, settings: HostSettings, deadline: float) -> None:
        """Try every address of the name until `deadline`, on the monotonic clock.

        Raises:
            UnreachableError: saying for the last address why not.
        """
        self.where = _shown(settings.hostname, settings.port)
        reason = f"no address ({self.where})"
        for family, address in _addresses(settings):
            where = _shown(str(address[0]), settings.port)
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise TimeoutError  # noqa: TRY301 - the same answer as from connect
                self.stream = _connect(family, address, left)
            except TimeoutError:
                reason = f"timed out ({where})"
            except OSError as error:
                reason = f"{_REASONS.get(error.errno or 0, error.strerror or 'cannot connect')} ({where})"
            else:
                self.where = where
                return
        raise UnreachableError(
            reason, remedy="see whether the host is up and its sshd listens there (ansible_host, ansible_port)"
        )

    def failure(self) -> str:
        """TCP knows nothing more."""
        return ""

    def close(self) -> None:
        """Close the connection, waking whoever reads from it."""
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()


class ProxyRoute:
    """A proxy command whose standard input and output are one socket, so that it is like any other connection."""

    def __init__(self, command: str, environ: Mapping[str, str]) -> None:
        """Start `command` by a shell, as ssh does.

        Raises:
            UnreachableError: where there is no shell.
        """
        self.where = "through the proxy command"
        self.stream, theirs = socket.socketpair()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the route
        self._lock = threading.Lock()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S602 - a ProxyCommand is a shell line by definition
                    f"exec {command}",
                    shell=True,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._errors,
                    env=dict(environ),
                    start_new_session=True,
                )
        except OSError as error:
            self.stream.close()
            self._errors.close()
            raise UnreachableError(f"cannot start the proxy command ({error.strerror})") from None

    def failure(self) -> str:
        """The proxy command's status and last words, where it has ended."""
        try:
            status = self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return ""
        self._errors.seek(0)
        said = last_line(self._errors.read(65536).decode(errors="replace"))
        return f"the proxy command ended with status {status}" + (f": {said}" if said else "")

    def close(self) -> None:
        """Close the stream and end the command."""
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()
        with self._lock:
            if self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(1.0)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            self._errors.close()


def _addresses(settings: HostSettings) -> list[tuple[int, tuple[object, ...]]]:
    family = FAMILIES.get(settings.address_family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(settings.hostname, settings.port, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        detail = error.strerror if isinstance(error, OSError) else "not a host name"
        raise UnreachableError(
            f"name not known: {settings.hostname}" + (f" ({detail.lower()})" if detail else ""),
            remedy="set ansible_host, or HostName in ~/.ssh/config",
        ) from None
    return [(entry[0], entry[4]) for entry in found]


def _connect(family: int, address: tuple[object, ...], timeout: float) -> socket.socket:
    stream = socket.socket(family, socket.SOCK_STREAM)
    try:
        stream.settimeout(timeout)
        stream.connect(address)
        # A request of two packets must not wait for the acknowledgement of the first (Nagle, delayed ACK: 40 ms).
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for level, option, value in _PROBES:
            if option is not None:
                stream.setsockopt(level, option, value)
    except BaseException:
        stream.close()
        raise
    return stream


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

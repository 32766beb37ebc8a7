"""One SSH connection through Fabric: key exchange, the host's key, login, one command. The only import of Fabric.

Knows one host. By which route it is reached, and how often that is tried, is decided in `ssh`; which keys are trusted
and offered, in `ssh_trust` and `ssh_login`.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import fabric
import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from vmreconcile.effects.ssh_channel import SshChannel
from vmreconcile.effects.ssh_trust import WEAK, Trust
from vmreconcile.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmreconcile.effects.known_hosts import KnownHosts
    from vmreconcile.effects.ssh_config import HostSettings
    from vmreconcile.effects.ssh_login import Login
    from vmreconcile.effects.ssh_route import Route

KEEPALIVE = 15

# paramiko prints tracebacks of what we report in one line; whoever wants them sets the level.
_logger = logging.getLogger("paramiko")
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.CRITICAL)


class HungUpError(Exception):
    """The server closed the connection before it said anything: it may have too many at once (MaxStartups)."""


class Shared(Protocol):
    """What the connections of a run have in common."""

    known: KnownHosts
    accept_new: bool
    timeout: float
    fabric_config: Any


def fabric_config() -> Any:  # noqa: ANN401 - Fabric has no types
    """Fabric's settings, of which only its own defaults are wanted."""
    return fabric.Config(ssh_config=paramiko.SSHConfig(), lazy=True)


class _Connection(fabric.Connection):  # type: ignore[misc]  # Fabric has no types
    """Fabric's connection, whose attributes are attributes.

    Fabric takes one that its class does not declare for a setting: it would merge the configuration that all
    connections of a run share anew at each of them (3 ms), and leave it empty meanwhile for the other threads.
    """

    __setattr__ = object.__setattr__


class Link:
    """One SSH connection."""

    def __init__(self, run: Shared, settings: HostSettings, route: Route) -> None:
        """Take an open route; nothing is said on it yet."""
        self._run = run
        self._settings = settings
        self._route = route
        self._deadline = 0.0
        self._trust = Trust(settings, run.known, accept_new=run.accept_new)
        self._fabric = _Connection(
            host=settings.hostname,
            user=settings.user,
            port=settings.port,
            config=run.fabric_config,
            gateway=False,
            forward_agent=False,
        )

    def open(self, login: Login, deadline: float) -> None:
        """Exchange keys, check the host's, log in.

        Raises:
            UnreachableError: with the reason.
        """
        self._deadline = deadline
        self._trust.look()
        self._fabric.client.set_missing_host_key_policy(self._trust)
        left = max(0.1, deadline - time.monotonic())
        self._fabric.connect_kwargs = {
            "sock": self._route.stream,
            "timeout": left,
            "banner_timeout": left,
            "auth_timeout": left,
            "channel_timeout": left,
            "auth_strategy": login,
            "transport_factory": self._trust.transport,
            "disabled_algorithms": {"keys": list(WEAK)},
        }
        self._guarded(self._fabric.open)
        self._fabric.transport.set_keepalive(KEEPALIVE)

    def start(self, line: str) -> SshChannel:
        """Start a shell line.

        Raises:
            UnreachableError: where the server does not let us.
        """
        try:
            return SshChannel(self._guarded(lambda: self._session(line)), self.close)
        except BaseException:
            self.close()
            raise

    def forward(self, host: str, port: int, timeout: float) -> paramiko.Channel:
        """A stream from the server to another host.

        Raises:
            paramiko.SSHException: where the server does not lead there.
        """
        transport: paramiko.Transport = self._fabric.transport
        return transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=max(0.1, timeout))

    def close(self) -> None:
        """Close the connection; the stream first, so that paramiko's thread ends at once and not at its next look."""
        self._route.close()
        if (transport := self._fabric.client.get_transport()) is not None:
            transport.close()
        self._fabric.client.close()

    def _session(self, line: str) -> paramiko.Channel:
        channel: paramiko.Channel = self._fabric.create_session()
        channel.exec_command(line)
        return channel

    def _guarded(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever `act` gives
        """Do something that may wait on the server, not beyond the deadline, and say in one line why it failed."""
        late = threading.Event()
        timer = threading.Timer(max(0.1, self._deadline - time.monotonic()), self._hang_up, args=(late,))
        timer.daemon = True
        timer.start()
        try:
            return act()
        except UnreachableError:
            raise
        except IncompatiblePeer as error:
            raise UnreachableError(
                f"no algorithm in common with the server ({error})", remedy="see HostKeyAlgorithms of its sshd_config"
            ) from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            if late.is_set() or time.monotonic() >= self._deadline:
                raise UnreachableError(
                    f"timed out after {self._run.timeout:g} s in the SSH handshake ({self._route.where})",
                    remedy="see whether sshd there is alive; --timeout gives it longer",
                ) from None
            raise self._lost(error) from None
        finally:
            timer.cancel()

    def _hang_up(self, late: threading.Event) -> None:
        late.set()
        self._route.close()

    def _lost(self, error: Exception) -> Exception:
        text = str(error)
        if "Indecipherable" in text or "Incompatible version" in text:
            return UnreachableError(f"what answers is no SSH server ({self._route.where})", remedy="check ansible_port")
        transport = self._fabric.client.get_transport()
        if transport is None or not transport.remote_version:
            return HungUpError()
        detail = text.splitlines()[0][:200] if text else type(error).__name__
        return UnreachableError(
            f"the connection was lost in the SSH handshake ({self._route.where}: {detail})",
            remedy="see sshd's log on the host",
        )

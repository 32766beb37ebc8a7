"""SSH through Fabric: reaching a host, checking its key, logging in, starting one command. The only import of Fabric.

What a host may be reached by is decided in `ssh_config`, `known_hosts` and `ssh_login`; Fabric and paramiko speak the
protocol. Their own searching (Fabric's configuration files, paramiko's known_hosts, which knows no wildcards and asks
for the wrong key type) is not used, and nothing of it is done once a host where once a run will do.
"""

from __future__ import annotations

import functools
import logging
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fabric
import paramiko
from paramiko.ssh_exception import IncompatiblePeer

from vmreconcile.effects.known_hosts import KnownHosts
from vmreconcile.effects.ssh_channel import SshChannel
from vmreconcile.effects.ssh_config import HostSettings, SshConfig
from vmreconcile.effects.ssh_login import Login
from vmreconcile.effects.ssh_route import ProxyRoute, Route, TcpRoute
from vmreconcile.effects.ssh_trust import WEAK, Trust
from vmreconcile.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmreconcile.effects.transport import TransportOptions
    from vmreconcile.model.connection import Connection

KEEPALIVE = 15
DEEPEST_JUMP = 8
RETRIES = 4

# paramiko prints tracebacks of what we report in one line; whoever wants them sets the level.
_logger = logging.getLogger("paramiko")
if _logger.level == logging.NOTSET:
    _logger.setLevel(logging.CRITICAL)


_one_run = threading.Lock()


class _HungUpError(Exception):
    """The server closed the connection before it said anything: it may have too many at once (MaxStartups)."""


def start_remote(line: str, connection: Connection, options: TransportOptions) -> SshChannel:
    """Reach the host of `connection`, log in and start the shell line there.

    Raises:
        UnreachableError: with one line that says why, and what to do.
    """
    with _one_run:
        run = _run(options.home, options.connect_timeout, options.accept_new_host_keys, _Environment(options.environ))
    settings = run.settings(connection)
    login = Login(
        settings=settings,
        home=options.home,
        named_key=_expanded(connection.private_key_file, options.home),
        password=connection.password,
    )
    link = run.connect(settings, login)
    return link.start(line)


@dataclass(frozen=True, slots=True)
class _Environment:
    """An environment that can be part of a cache's key: by identity, since a run has one."""

    names: Mapping[str, str]

    def __hash__(self) -> int:
        return id(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Environment) and other.names is self.names


@functools.lru_cache(maxsize=4)
def _run(home: Path, timeout: float, accept_new: bool, environ: _Environment) -> Run:  # noqa: FBT001 - a cache's key
    return Run(home=home, timeout=timeout, accept_new=accept_new, environ=environ.names)


@dataclass(slots=True, kw_only=True)
class Run:
    """What the connections of a run share: the person's configuration and known hosts, each read once."""

    home: Path
    timeout: float
    accept_new: bool
    environ: Mapping[str, str]
    known: KnownHosts = field(default_factory=KnownHosts)
    fabric_config: Any = field(default_factory=lambda: fabric.Config(ssh_config=paramiko.SSHConfig(), lazy=True))
    _config: SshConfig | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def settings(self, connection: Connection) -> HostSettings:
        """The settings of a host; what the inventory says goes before `~/.ssh/config`."""
        settings = self.lookup(connection.target, connection.user, connection.port)
        jump, command = connection.proxy_jump, connection.proxy_command
        if not jump and not command:
            return settings
        jump = "" if jump.lower() == "none" else jump
        command = "" if command.lower() == "none" else self.config().proxy_line(command, settings)
        return settings.through(proxy_jump=jump, proxy_command=command)

    def lookup(self, name: str, user: str, port: int | None) -> HostSettings:
        """The settings of a name.

        Raises:
            UnreachableError: where `~/.ssh/config` cannot be read, or the name is none.
        """
        if not re.fullmatch(r"[\w.:%\[\]-]+", name) or name.startswith("-"):
            raise UnreachableError(f"not a host name: {name!r}", remedy="check ansible_host")
        try:
            return self.config().lookup(name, user=user, port=port)
        except ValueError as error:
            raise UnreachableError(str(error), remedy="mend the file; ssh -G shows what ssh makes of it") from None

    def config(self) -> SshConfig:
        """The person's configuration, read at its first use."""
        with self._reading:
            if self._config is None:
                self._config = SshConfig.read(self.home, self.environ)
            return self._config

    def connect(self, settings: HostSettings, login: Login, depth: int = 0) -> Link:
        """Connect and log in, all within the time allowed; a server that hangs up at once is tried again.

        Raises:
            UnreachableError: with the reason.
        """
        deadline = time.monotonic() + self.timeout
        for attempt in range(RETRIES + 1):
            route = self._route(settings, deadline, depth)
            link = Link(self, settings, route)
            try:
                link.open(login, deadline)
            except _HungUpError:
                pause = 0.1 * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, guards nothing
                failure = route.failure()
                link.close()
                if failure or attempt == RETRIES or time.monotonic() + pause > deadline:
                    raise UnreachableError(
                        failure or f"the server hung up before it said anything ({route.where})",
                        remedy="check the proxy command by hand" if failure else "see sshd's log and its MaxStartups",
                    ) from None
                time.sleep(pause)
            except BaseException:
                link.close()
                raise
            else:
                return link
        raise AssertionError

    def _route(self, settings: HostSettings, deadline: float, depth: int) -> Route:
        if settings.proxy_command:
            return ProxyRoute(settings.proxy_command, self.environ)
        hops = [hop for hop in settings.proxy_jump.split(",") if hop]
        if not hops:
            return TcpRoute(settings, deadline)
        if depth >= DEEPEST_JUMP:
            raise UnreachableError(f"jump hosts lead in a circle: {settings.proxy_jump}", remedy="check ProxyJump")
        user, host, port = _hop(hops[-1])
        hop = self.lookup(host, user, port)
        if len(hops) > 1:
            hop = hop.through(proxy_jump=",".join(hops[:-1]))
        elif (hop.hostname, hop.port) == (settings.hostname, settings.port):
            return TcpRoute(settings, deadline)
        return JumpRoute(self, hop, settings, deadline, depth)


class JumpRoute:
    """A stream through another SSH server, whose key is checked like any other."""

    def __init__(self, run: Run, hop: HostSettings, settings: HostSettings, deadline: float, depth: int) -> None:
        """Connect to the jump host and from there onwards.

        Raises:
            UnreachableError: naming the jump host.
        """
        self.where = f"{settings.hostname}:{settings.port} through {hop.name}"
        try:
            self._link = run.connect(hop, Login(settings=hop, home=run.home), depth + 1)
        except UnreachableError as error:
            raise UnreachableError(f"jump host {hop.name}: {error.reason}", remedy=error.remedy) from None
        try:
            self.stream: Any = self._link.forward(settings.hostname, settings.port, deadline - time.monotonic())
        except paramiko.ChannelException as error:
            self._link.close()
            raise UnreachableError(
                f"jump host {hop.name} does not lead to {settings.hostname}:{settings.port} ({error.text.lower()})",
                remedy="see whether the host is up, and whether the jump host allows forwarding",
            ) from None
        except (paramiko.SSHException, EOFError, OSError):
            self._link.close()
            raise UnreachableError(f"timed out ({self.where})") from None

    def failure(self) -> str:
        """Nothing more is known."""
        return ""

    def close(self) -> None:
        """Close the stream and the connection to the jump host."""
        self.stream.close()
        self._link.close()


class _Connection(fabric.Connection):  # type: ignore[misc]  # Fabric has no types
    """Fabric's connection, kept from writing into the configuration that all connections of a run share.

    Fabric takes an attribute that its class does not declare for a setting: it would merge the whole configuration
    anew at each connection (3 ms), and leave it empty meanwhile for the other threads.
    """

    inline_ssh_env = None


class Link:
    """One SSH connection."""

    def __init__(self, run: Run, settings: HostSettings, route: Route) -> None:
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
            return _HungUpError()
        detail = text.splitlines()[0][:200] if text else type(error).__name__
        return UnreachableError(
            f"the connection was lost in the SSH handshake ({self._route.where}: {detail})",
            remedy="see sshd's log on the host",
        )


def _hop(text: str) -> tuple[str, str, int | None]:
    """User, host and port of one jump host: `[user@]host[:port]`, `[host]:port`, or an ssh:// address."""
    user, _, place = text.strip().removeprefix("ssh://").rstrip("/").rpartition("@")
    match = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]+)(?::(\d+))?|(.+)", place)
    if match is None:
        raise UnreachableError(f"not a jump host: {text!r}", remedy="check ProxyJump")
    port = match[2] or match[4]
    return user, match[1] or match[3] or match[5], int(port) if port else None


def _expanded(path: str, home: Path) -> str:
    return str(home) + path[1:] if path.startswith("~/") else path

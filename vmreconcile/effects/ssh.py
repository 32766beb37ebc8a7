"""SSH: reaching a host, through jump hosts where there are any, and starting one command there.

What a host may be reached by is decided in `ssh_config`, `known_hosts` and `ssh_login`; one connection is `ssh_link`,
where Fabric and paramiko speak the protocol. Their own searching (Fabric's configuration files, paramiko's known_hosts,
which knows no wildcards and asks for the wrong key type) is not used, and nothing of it is done once a host where once
a run will do.
"""

from __future__ import annotations

import functools
import random
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paramiko

from vmreconcile.effects.known_hosts import KnownHosts
from vmreconcile.effects.ssh_config import HostSettings, SshConfig
from vmreconcile.effects.ssh_link import HungUpError, Link, fabric_config
from vmreconcile.effects.ssh_login import Login
from vmreconcile.effects.ssh_route import ProxyRoute, Route, TcpRoute
from vmreconcile.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmreconcile.effects.ssh_channel import SshChannel
    from vmreconcile.effects.transport import TransportOptions
    from vmreconcile.model.connection import Connection

DEEPEST_JUMP = 8
RETRIES = 4

_NO_USER = re.compile(r"^-|[\s\x00-\x1f\x7f'\"`;&<>|(){}$*?\[\]~]|\\\Z")
"""What no user is called here: `Match exec` and `ProxyCommand` hand %r to a shell (OpenSSH's valid_ruser, ssh.c)."""

_one_run = threading.Lock()


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
    fabric_config: Any = field(default_factory=fabric_config)
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
        """The settings of a name; `user` is what an inventory or a jump host's entry says, "" for none.

        Raises:
            UnreachableError: where `~/.ssh/config` cannot be read, or the name or user is none.
        """
        if not re.fullmatch(r"[\w.:%\[\]-]+", name) or name.startswith("-"):
            raise UnreachableError(f"not a host name: {name!r}", remedy="check ansible_host")
        if _NO_USER.search(user):
            raise UnreachableError(f"not a user name: {user!r}", remedy="check ansible_user, and the jump host's user")
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
            except HungUpError:
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

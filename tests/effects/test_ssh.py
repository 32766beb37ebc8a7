"""Reaching hosts over SSH: a real sshd, real keys, and everything that goes wrong on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import getpass
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.sshd import Sshd, free_port, new_key, running
from vmreconcile.effects import ship
from vmreconcile.effects.session import open_session
from vmreconcile.errors import UnreachableError
from vmreconcile.model.connection import Connection
from vmreconcile.model.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmreconcile.effects.ship import Archive
    from vmreconcile.effects.transport import TransportOptions

OTHER_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
PASSWORD = "SENTINEL-password"


class Reach:
    """Opens sessions as the person of the fixtures, with small changes."""

    def __init__(self, connection: Connection, options: TransportOptions, standin: Archive) -> None:
        """Take the three fixtures."""
        self.connection, self.options, self.standin = connection, options, standin

    def works(self, *, accept: bool = False, environ: dict[str, str] | None = None, **changes: object) -> None:
        """Expect that the host answers."""
        with open_session(self._way(changes), self._person(accept, environ), archive=self.standin) as session:
            assert session.request({"do": "echo", "text": "hello"}, timeout=10)["got"] == "hello"

    def fails(
        self, *, accept: bool = False, environ: dict[str, str] | None = None, timeout: float = 10, **changes: object
    ) -> UnreachableError:
        """Expect that it cannot be reached; the error."""
        options = dataclasses.replace(self._person(accept, environ), connect_timeout=timeout)
        with pytest.raises(UnreachableError) as caught:
            open_session(self._way(changes), options, archive=self.standin)
        assert "\n" not in caught.value.reason
        assert caught.value.remedy or "lost" in caught.value.reason
        return caught.value

    def _way(self, changes: dict[str, object]) -> Connection:
        return dataclasses.replace(self.connection, **changes)  # type: ignore[arg-type]

    def _person(self, accept: bool, environ: dict[str, str] | None) -> TransportOptions:  # noqa: FBT001 - private
        return dataclasses.replace(
            self.options, accept_new_host_keys=accept, environ={**self.options.environ, **(environ or {})}
        )


@pytest.fixture
def reach(connection: Connection, options: TransportOptions, standin: Archive) -> Reach:
    """The way to the sshd, and changes of it."""
    return Reach(connection, options, standin)


# --- the connection -------------------------------------------------------------------------------------------------


def test_it_works(reach: Reach) -> None:
    """A known host and a named key."""
    reach.works()


def test_refused(reach: Reach) -> None:
    """Nobody listens there."""
    port = free_port()
    error = reach.fails(port=port)
    assert error.reason == f"connection refused (127.0.0.1:{port})"


def test_name_not_known(reach: Reach) -> None:
    """A name that no resolver knows; the reserved domain makes sure of it."""
    assert reach.fails(address="gpu9.invalid").reason.startswith("name not known: gpu9.invalid")
    assert reach.fails(address="a" * 70 + ".invalid").reason.startswith("name not known: aaa")


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a;b", "a b", "$(x)"])
def test_not_a_host_name(reach: Reach, name: str) -> None:
    """What could be an option or a shell's word is not tried."""
    assert reach.fails(address=name).reason == f"not a host name: {name!r}"


USERS = ("-oProxyCommand=x", "a;b", "a b", "$(x)", "a\n", "a`b`", "a|b", "a>b", "a'b", 'a"b', "a&b", "a\\", "a\x1b")


@pytest.mark.parametrize("name", USERS)
def test_not_a_user_name(reach: Reach, name: str, tmp_path: Path) -> None:
    """Neither is a user that a shell would read: `Match exec` and `ProxyCommand` put %r into a command line."""
    config = reach.options.home / ".ssh/config"
    config.parent.mkdir(exist_ok=True)
    config.write_text(f'Match exec "touch {tmp_path}/ran; true %r"\n  Port 22\n')
    assert reach.fails(user=name).reason == f"not a user name: {name!r}"
    assert not (tmp_path / "ran").exists()
    assert "not a user name: " in reach.fails(user="me", proxy_jump=f"{name}@jump").reason


@pytest.mark.parametrize("name", ["DOMAIN\\user", "me@corp.example", "user.name-1", "vault#me@host", "ünï"])
def test_unusual_user_names_are_tried(reach: Reach, name: str) -> None:
    """Those of directories and gateways."""
    assert "not a user name" not in reach.fails(user=name).reason


def test_no_route(reach: Reach) -> None:
    """A network that this machine has no way to says so at once."""
    # 255.255.255.255 is refused by the kernel itself: a stand-in for every error of connect() with a plain text
    assert "(255.255.255.255:" in reach.fails(address="255.255.255.255").reason


def test_silent_server(reach: Reach) -> None:
    """A server that accepts and says nothing costs the connect timeout, no more."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        began = time.monotonic()
        error = reach.fails(port=port, timeout=0.7)
        assert 0.6 < time.monotonic() - began < 10
    assert error.reason == f"timed out after 0.7 s in the SSH handshake (127.0.0.1:{port})"


def test_server_stops_in_the_handshake(reach: Reach) -> None:
    """A banner, then nothing: the same."""
    with serving(lambda stream: stream.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), stay=True) as port:
        began = time.monotonic()
        assert "timed out after 0.7 s" in reach.fails(port=port, timeout=0.7).reason
        assert time.monotonic() - began < 10


def test_no_ssh_server(reach: Reach) -> None:
    """Another protocol's server is recognised."""
    with serving(lambda stream: stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200), stay=True) as port:
        assert reach.fails(port=port, timeout=5).reason == f"what answers is no SSH server (127.0.0.1:{port})"


@pytest.mark.slow
def test_server_hangs_up_for_good(reach: Reach) -> None:
    """A server that always closes at once is given up after a few tries."""
    with serving(lambda _: None) as port:
        error = reach.fails(port=port, timeout=2)
    assert error.reason == f"the server hung up before it said anything (127.0.0.1:{port})"
    assert "MaxStartups" in error.remedy


def test_busy_server_is_tried_again(reach: Reach, sshd: Sshd) -> None:
    """A server that turns the first connections away (MaxStartups) is reached all the same."""
    turned_away = 0

    def serve(stream: socket.socket) -> None:
        nonlocal turned_away
        if turned_away < 2:
            turned_away += 1
            return
        with socket.create_connection(("127.0.0.1", sshd.port)) as onward:
            other = threading.Thread(target=pump, args=(onward, stream), daemon=True)
            other.start()
            pump(stream, onward)

    with serving(serve) as port:
        sshd.know(f"[127.0.0.1]:{port} {sshd.public()}")
        reach.works(port=port)
    assert turned_away == 2


# --- host keys ------------------------------------------------------------------------------------------------------


def test_unknown_key(reach: Reach, sshd: Sshd) -> None:
    """An unknown host is refused, with its fingerprint and the ways to accept it."""
    sshd.know()
    error = reach.fails()
    shown = subprocess.run(
        ["ssh-keygen", "-lf", f"{sshd.folder}/host_ed25519.pub"], capture_output=True, check=True
    ).stdout.decode()
    assert error.reason == f"unknown host key {shown.split()[1]} (ssh-ed25519, {sshd.name})"
    assert "--accept-new-host-keys" in error.remedy
    assert f"ssh-keyscan -p {sshd.port} 127.0.0.1" in error.remedy


def test_new_key_is_recorded(reach: Reach, sshd: Sshd) -> None:
    """Accepted once, it is known from then on; the real ssh agrees."""
    sshd.know()
    sshd.configure("HashKnownHosts no\n")
    reach.works(accept=True)
    assert (sshd.home / ".ssh/known_hosts").read_text() == f"{sshd.name} {sshd.public()}\n"
    reach.works()
    reach.works(accept=True)
    assert (sshd.home / ".ssh/known_hosts").read_text().count("\n") == 1


def test_new_keys_in_parallel(reach: Reach, sshd: Sshd) -> None:
    """Several connections to one unknown host record it once."""
    sshd.know()
    sshd.configure("HashKnownHosts no\n")
    threads = [threading.Thread(target=reach.works, kwargs={"accept": True}) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sshd.home / ".ssh/known_hosts").read_text() == f"{sshd.name} {sshd.public()}\n"


@pytest.mark.parametrize("accept", [False, True])
def test_changed_key(reach: Reach, sshd: Sshd, *, accept: bool) -> None:
    """A changed key is never accepted; file and line of the old one are named."""
    sshd.know("# first line", f"{sshd.name} ssh-ed25519 {OTHER_KEY}")
    error = reach.fails(accept=accept)
    assert error.reason.startswith(f"the host key has CHANGED: {sshd.name} shows SHA256:")
    assert error.reason.endswith(f"not the one of {sshd.home}/.ssh/known_hosts:2")
    assert (sshd.home / ".ssh/known_hosts").read_text().count("\n") == 2


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_known_by_one_type_of_key(reach: Reach, sshd: Sshd, kind: str) -> None:
    """The server has three keys; the one that is known is asked for, whichever it is."""
    sshd.know(f"{sshd.name} {sshd.public(kind)}")
    reach.works()


def test_known_by_a_type_the_server_lost(reach: Reach, sshd: Sshd) -> None:
    """Known by a type of key that the server does not have any more: changed, not new."""
    sshd.know(f"{sshd.name} ecdsa-sha2-nistp384 {OTHER_KEY}")
    assert "has CHANGED" in reach.fails(accept=True).reason


def test_hashed_and_patterns(reach: Reach, sshd: Sshd) -> None:
    """Hashed names and wildcards count."""
    subprocess.run(
        ["ssh-keygen", "-q", "-H", "-f", str(sshd.home / ".ssh/known_hosts")], check=True, capture_output=True
    )
    assert "127.0.0.1" not in (sshd.home / ".ssh/known_hosts").read_text()
    reach.works()
    sshd.know(f"[127.0.*]:{sshd.port} {sshd.public()}")
    reach.works()


def test_revoked_and_authorities(reach: Reach, sshd: Sshd) -> None:
    """A revoked key is refused; a certificate authority alone is explained, not crashed on."""
    sshd.know(f"{sshd.name} {sshd.public()}", f"@revoked * {sshd.public()}")
    assert "revoked" in reach.fails(accept=True).reason
    sshd.know(f"@cert-authority * ssh-ed25519 {OTHER_KEY}")
    assert "certificate authority" in reach.fails(accept=True).reason


def test_files_and_alias_of_the_configuration(reach: Reach, sshd: Sshd) -> None:
    """UserKnownHostsFile and HostKeyAlias are heeded."""
    sshd.know()
    sshd.configure("UserKnownHostsFile ~/.ssh/elsewhere\nHostKeyAlias farm\nHashKnownHosts yes\n")
    reach.works(accept=True)
    text = (sshd.home / ".ssh/elsewhere").read_text()
    assert text.startswith("|1|")
    assert text.endswith(sshd.public() + "\n")
    reach.works()


# --- logging in -----------------------------------------------------------------------------------------------------


def test_wrong_key(reach: Reach, tmp_path: Path) -> None:
    """Who was refused and with what."""
    key = new_key(tmp_path / "wrong")
    error = reach.fails(private_key_file=str(key))
    assert error.reason == f"login as {getpass.getuser()} was refused (tried: key {key})"
    assert "authorized_keys" in error.remedy


def test_nothing_to_offer(reach: Reach) -> None:
    """No key at all, or one that is not there."""
    assert "(tried: nothing to offer)" in reach.fails(private_key_file="").reason
    assert "/nowhere/id cannot be read" in reach.fails(private_key_file="/nowhere/id").reason


def test_encrypted_key(reach: Reach, tmp_path: Path, sshd: Sshd) -> None:
    """An encrypted key asks nobody: it is an error without an agent, and works with one."""
    key = tmp_path / "locked"
    key.write_bytes(sshd.key.read_bytes())
    key.chmod(0o600)
    with agent(key) as environ:
        subprocess.run(
            ["ssh-keygen", "-q", "-p", "-P", "", "-N", PASSWORD, "-f", str(key)], check=True, capture_output=True
        )
        error = reach.fails(private_key_file=str(key))
        assert f"{key} is encrypted and no agent holds it" in error.reason
        assert "ssh-add" in error.remedy
        reach.works(private_key_file=str(key), environ=environ)


def test_agent_alone(reach: Reach, sshd: Sshd, tmp_path: Path) -> None:
    """The agent's keys serve where no key is named; IdentityAgent none switches it off; a dead agent is no obstacle."""
    with agent(new_key(tmp_path / "other"), sshd.key) as environ:
        reach.works(private_key_file="", environ=environ)
        sshd.configure("IdentityAgent none\n")
        assert "nothing to offer" in reach.fails(private_key_file="", environ=dict(environ)).reason
    sshd.configure("")
    reach.works(environ={"SSH_AUTH_SOCK": str(tmp_path / "gone")})


def test_full_agent_does_not_hide_the_named_key(reach: Reach, sshd: Sshd, tmp_path: Path) -> None:
    """Ten keys in the agent are more than a server lets one try; the named key goes first."""
    keys = [new_key(tmp_path / f"k{number}") for number in range(10)]
    with agent(*keys) as environ:
        reach.works(environ=environ)
        sshd.configure(f"IdentityFile {sshd.key}\n")
        reach.works(private_key_file="", environ=dict(environ))
        sshd.configure("")
        error = reach.fails(private_key_file="", environ=dict(environ))
    assert error.reason.count("agent key SHA256:") == 6
    assert "the server hung up" in error.reason


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_types_of_key(reach: Reach, sshd: Sshd, tmp_path: Path, kind: str) -> None:
    """RSA (with SHA-2) and ECDSA keys, from a file and from an agent."""
    key = new_key(tmp_path / kind, kind)
    allowed = sshd.folder / "authorized_keys"
    before = allowed.read_text()
    allowed.write_text(before + key.with_suffix(".pub").read_text())
    try:
        reach.works(private_key_file=str(key))
        with agent(key) as environ:
            reach.works(private_key_file="", environ=environ)
    finally:
        allowed.write_text(before)


def test_default_keys(reach: Reach, sshd: Sshd) -> None:
    """`~/.ssh/id_ed25519` is found by itself."""
    path = sshd.home / ".ssh/id_ed25519"
    path.write_bytes(sshd.key.read_bytes())
    try:
        reach.works(private_key_file="")
    finally:
        path.unlink()


def test_password_shows_nowhere(reach: Reach, caplog: pytest.LogCaptureFixture) -> None:
    """A refused password is named as tried, and not shown at any level of logging."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("paramiko").setLevel(logging.DEBUG)
    try:
        error = reach.fails(private_key_file="", password=Secret(PASSWORD))
    finally:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    assert "(tried: password)" in error.reason
    assert PASSWORD not in caplog.text + error.reason + error.remedy


# --- ~/.ssh/config --------------------------------------------------------------------------------------------------


def test_configuration_with_include(reach: Reach, sshd: Sshd) -> None:
    """An alias with everything about it in an included file."""
    (sshd.home / ".ssh/farm").write_text(
        f"Host farm-*\n HostName 127.0.0.1\n Port {sshd.port}\n User {sshd.user}\n IdentityFile {sshd.key}\n"
    )
    sshd.configure("Include farm\n")
    reach.works(address="", host="farm-1", port=None, private_key_file="")


def test_unreadable_configuration(reach: Reach, sshd: Sshd) -> None:
    """A broken file is named with its line."""
    sshd.configure("Host a\n=\n")
    assert reach.fails().reason == f"{sshd.home}/.ssh/config:2: this line cannot be read"


def test_jump(reach: Reach, sshd: Sshd, tmp_path: Path) -> None:
    """ProxyJump through one and two other servers, each with its own key checked."""
    with running(tmp_path / "a") as first, running(tmp_path / "b") as second:
        know_all(sshd, first, second)
        jump = f"127.0.0.1:{first.port}"
        (sshd.home / ".ssh/id_ed25519").write_bytes(first.key.read_bytes())
        try:
            reach.works(proxy_jump=f"{first.user}@{jump}")
            assert "Accepted publickey" in first.log
            sshd.configure(
                f"Host two\n HostName 127.0.0.1\n Port {second.port}\n IdentityFile {second.key}\n"
                f"Host one\n HostName 127.0.0.1\n Port {first.port}\n"
                f"Host gpu1\n HostName 127.0.0.1\n ProxyJump one,two\n"
            )
            reach.works(address="")
            assert "Accepted publickey" in second.log
        finally:
            (sshd.home / ".ssh/id_ed25519").unlink()


def test_jump_fails(reach: Reach, sshd: Sshd, tmp_path: Path) -> None:
    """Unknown key of a jump host, a jump host that is down, one that does not lead further."""
    with running(tmp_path / "a") as first:
        sshd.configure(f"Host one\n HostName 127.0.0.1\n Port {first.port}\n IdentityFile {first.key}\n")
        assert reach.fails(proxy_jump="one").reason.startswith("jump host one: unknown host key")
        know_all(sshd, first)
        error = reach.fails(proxy_jump="one", port=(port := free_port()))
        assert error.reason == f"jump host one does not lead to 127.0.0.1:{port} (connect failed)"
    assert reach.fails(proxy_jump="one").reason.startswith("jump host one: connection refused")


def test_jump_in_a_circle(reach: Reach, sshd: Sshd) -> None:
    """`Host *` with a ProxyJump does not send the jump host through itself; a real circle ends."""
    sshd.configure(f"Host *\n ProxyJump 127.0.0.1:{sshd.port}\n")
    reach.works()
    sshd.configure("Host a\n ProxyJump b\nHost b\n ProxyJump a\n")
    assert "lead in a circle" in reach.fails(address="a").reason


PIPE = """\
import socket, sys, threading, os
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while d := s.recv(65536): os.write(1, d)
    os._exit(0)
threading.Thread(target=back, daemon=True).start()
while d := os.read(0, 65536): s.sendall(d)
"""


def test_proxy_command(reach: Reach, sshd: Sshd, tmp_path: Path) -> None:
    """A ProxyCommand of the configuration and one of the inventory get host, port and user of the inventory."""
    before = children()
    (tmp_path / "pipe.py").write_text(PIPE)
    command = f"{sys.executable} {tmp_path}/pipe.py %h %p %r 2> {tmp_path}/%r"
    sshd.configure(f"ProxyCommand {command}\n")
    reach.works()
    sshd.configure("")
    reach.works(proxy_command=command, user=sshd.user)
    assert (tmp_path / sshd.user).exists()
    assert children() == before


def test_proxy_command_fails(reach: Reach) -> None:
    """Its status and last words are told; one that says nothing runs into the timeout."""
    before = children()
    error = reach.fails(proxy_command="sh -c 'echo no way through >&2; exit 7'")
    assert error.reason == "the proxy command ended with status 7: no way through"
    assert "ended with status 127" in reach.fails(proxy_command="no-such-command %h").reason
    assert "timed out after 0.5 s" in reach.fails(proxy_command="sleep 60", timeout=0.5).reason
    assert children() == before


# --- what is left behind --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_left_open(reach: Reach) -> None:
    """Sessions that were closed and attempts that failed leave no descriptor and no thread."""
    reach.works()
    gc.collect()
    before, threads = descriptors(), threading.active_count()
    for _ in range(5):
        reach.works()
        reach.fails(private_key_file="/nowhere")
        reach.fails(port=free_port())
    gc.collect()
    assert descriptors() <= before
    wait_for_threads(threads)


def test_login_shell_of_another_kind(reach: Reach, sshd: Sshd) -> None:
    """The shell line holds nothing that a login shell other than sh would read differently."""
    line = ship.start_line(reach.connection, ship.agent_archive())
    assert not set("\n\\!`") & set(line)


def know_all(sshd: Sshd, *others: Sshd) -> None:
    """Make the person know several servers."""
    sshd.know(*(f"{server.name} {server.public()}" for server in (sshd, *others)))


@contextlib.contextmanager
def serving(act: object, *, stay: bool = False) -> Iterator[int]:
    """A server that does something with each connection; its port."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    stream, _ = server.accept()
                    threading.Thread(target=one, args=(stream,), daemon=True).start()

        def one(stream: socket.socket) -> None:
            with contextlib.suppress(OSError):
                act(stream)  # type: ignore[operator]
            held.append(stream) if stay else stream.close()

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for stream in held:
        stream.close()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Copy one direction of a connection."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def agent(*keys: Path) -> Iterator[dict[str, str]]:
    """An ssh-agent that holds these keys; the environment that names it."""
    # a Unix socket's path is short
    done = subprocess.run(["ssh-agent", "-s"], capture_output=True, check=True)
    environ = dict(part.split("=") for part in done.stdout.decode().split(";") if "=" in part and "export" not in part)
    environ = {name.strip(): value for name, value in environ.items()}
    try:
        subprocess.run(["ssh-add", "-q", *map(str, keys)], env={**os.environ, **environ}, check=True)
        yield {"SSH_AUTH_SOCK": environ["SSH_AUTH_SOCK"]}
    finally:
        os.kill(int(environ["SSH_AGENT_PID"]), 15)


def descriptors() -> int:
    """Open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> set[str]:
    """The children of this process, alive or not yet waited for."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def wait_for_threads(count: int) -> None:
    """Wait until no more than that many threads run."""
    deadline = time.monotonic() + 5
    while threading.active_count() > count:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.02)

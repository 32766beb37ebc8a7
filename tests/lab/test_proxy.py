"""The relay of the laboratory, between a client and an echo on loopback."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.lab.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets."""

    def handle(self) -> None:
        """Answer until the other side ends or breaks off."""
        try:
            while data := self.request.recv(65536):
                self.request.sendall(data)
        except ConnectionError:
            pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A relay to an echo."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        with Proxy(server.server_address) as relay:
            yield relay
        server.shutdown()
        thread.join()


def connect(proxy: Proxy) -> socket.socket:
    """Open a connection through the relay that waits at most five seconds."""
    return socket.create_connection((proxy.address, proxy.port), timeout=5)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send `data` and read as much back."""
    connection.sendall(data)
    got = b""
    while len(got) < len(data) and (more := connection.recv(65536)):
        got += more
    return got


def test_bytes_arrive_unchanged_both_ways(proxy: Proxy) -> None:
    """A megabyte comes back as it was, and is counted."""
    data = bytes(range(256)) * 4096
    with connect(proxy) as connection:
        connection_thread = threading.Thread(target=connection.sendall, args=(data,))
        connection_thread.start()
        got = b""
        while len(got) < len(data):
            got += connection.recv(65536)
        connection_thread.join()
    assert got == data
    assert proxy.sent == len(data)
    assert proxy.connections == 1


def test_delay_slows_an_answer(proxy: Proxy) -> None:
    """With 0.1 s a direction an answer takes at least 0.2 s."""
    proxy.delay = 0.1
    with connect(proxy) as connection:
        start = time.monotonic()
        assert exchange(connection, b"x") == b"x"
        assert time.monotonic() - start >= 0.2


def test_rate_limits_the_flow(proxy: Proxy) -> None:
    """10,000 bytes at 100,000 a second take 0.1 s each way."""
    proxy.rate = 100_000
    with connect(proxy) as connection:
        start = time.monotonic()
        assert exchange(connection, b"x" * 10_000) == b"x" * 10_000
        assert time.monotonic() - start >= 0.19


def test_a_stalled_link_is_silent_until_it_resumes(proxy: Proxy) -> None:
    """While stalled, a new connection opens and nothing comes; afterwards everything does."""
    proxy.stall()
    with connect(proxy) as connection:
        connection.settimeout(0.2)
        connection.sendall(b"hello")
        with pytest.raises(TimeoutError):
            connection.recv(5)
        proxy.resume()
        connection.settimeout(5)
        assert connection.recv(5) == b"hello"


def test_cut_ends_open_connections_and_new_ones(proxy: Proxy) -> None:
    """After the cut nobody gets an answer; after `resume` a new connection does."""
    with connect(proxy) as connection:
        assert exchange(connection, b"a") == b"a"
        proxy.cut()
        with pytest.raises(ConnectionError):
            _until_broken(connection)
    with pytest.raises(ConnectionError), connect(proxy) as connection:
        _until_broken(connection)
    proxy.resume()
    with connect(proxy) as connection:
        assert exchange(connection, b"b") == b"b"


def test_cut_after_breaks_off_in_the_middle(proxy: Proxy) -> None:
    """The link breaks once so many bytes came back."""
    proxy.cut_after = 3
    with connect(proxy) as connection:
        assert exchange(connection, b"abc") == b"abc"
        with pytest.raises(ConnectionError):
            _until_broken(connection)


def _until_broken(connection: socket.socket) -> None:
    """Use the connection until that raises; an orderly end counts as broken."""
    for _ in range(100):
        connection.sendall(b"x")
        if not connection.recv(1):
            raise ConnectionResetError
        time.sleep(0.01)

"""The simulator's HTTP: connections that are kept, split, too long, or no HTTP at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vmreconcile.simulator.httpd import Request, Response, serve_connection


@contextmanager
def connected() -> Iterator[socket.socket]:
    """The client's end of a connection that answers every request with its method, path and body."""

    def echo(request: Request) -> Response:
        if request.path == "/stream":
            return Response(stream=iter([b"one", b"two"]), content_type="text/plain")
        return Response(body=f"{request.method} {request.path} ".encode() + request.body)

    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve_connection, args=(theirs, "test", echo), kwargs={"server": "test"})
    thread.start()
    with ours:
        ours.settimeout(5)
        yield ours
    thread.join()


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """Read up to and including `end`, or to the connection's end."""
    data = b""
    while not data.endswith(end):
        more = connection.recv(1)
        if not more:
            break
        data += more
    return data


def test_two_requests_in_one_piece() -> None:
    """A connection is kept, and what was read too far is the next request's."""
    with connected() as connection:
        connection.sendall(b"POST /a?b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiGET /c HTTP/1.1\r\n\r\n")
        first = read_until(connection, b"POST /a hi")
        assert first.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-length: 10\r\n" in first
        assert read_until(connection, b"GET /c ").startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_request_in_many_pieces() -> None:
    """A request that comes byte by byte is put together."""
    with connected() as connection:
        for byte in b"POST /a HTTP/1.1\r\ncontent-length: 3\r\nConnection: close\r\n\r\nxyz":
            connection.sendall(bytes([byte]))
        assert read_until(connection, b"never").endswith(b"connection: close\r\n\r\nPOST /a xyz")


def test_a_stream() -> None:
    """A streamed answer comes in chunks."""
    with connected() as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\n\r\n")
        answer = read_until(connection, b"0\r\n\r\n")
        assert b"transfer-encoding: chunked\r\n" in answer
        assert answer.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\n" + b"x" * 70000, b"413"),
    ],
)
def test_what_is_no_request(sent: bytes, status: bytes) -> None:
    """Bytes that cannot be a request are refused, and the connection ends."""
    with connected() as connection:
        connection.sendall(sent)
        assert read_until(connection, b"never").startswith(b"HTTP/1.1 " + status + b" ")


def test_a_client_that_leaves() -> None:
    """A connection that ends in the middle of a request ends its thread."""
    with connected() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")

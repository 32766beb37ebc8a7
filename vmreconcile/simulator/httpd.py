"""As much of an HTTP/1.1 server as vLLM's clients need: keep-alive, bodies with a length, streamed answers.

Owns bytes on a connection. Must not know any route. Written by hand because the standard library's server takes longer
to import than everything else here together.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    411: "Length Required",
    413: "Content Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
MAX_HEAD_BYTES = 65536
MAX_BODY_BYTES = 16 << 20
KEEP_ALIVE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; header names are lower-case. `connection` lets a wedged server notice that its client left."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    client: str
    connection: socket.socket


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer: a body, or `stream`, whose parts are sent as they come."""

    status: int = 200
    body: bytes = b""
    content_type: str = ""
    stream: Iterable[bytes] | None = None
    headers: tuple[tuple[str, str], ...] = ()


class BadRequestError(Exception):
    """The bytes are no request that we can read; `status` is the answer."""

    def __init__(self, status: int) -> None:
        """Keep the status."""
        super().__init__(REASONS[status])
        self.status = status


def serve_connection(
    connection: socket.socket, client: str, answer: Callable[[Request], Response], *, server: str
) -> None:
    """Answer the requests of one connection until the client has no more, then close it."""
    kept = b""
    with connection:
        while True:
            connection.settimeout(KEEP_ALIVE_SECONDS)
            try:
                request, kept = _receive(connection, client, kept)
            except BadRequestError as problem:
                _send(connection, Response(status=problem.status), server, keep=False)
                return
            except OSError:
                return
            if request is None:
                return
            connection.settimeout(None)
            keep = request.headers.get("connection", "").lower() != "close"
            try:
                _send(connection, answer(request), server, keep=keep, head=request.method == "HEAD")
            except OSError:
                return
            if not keep:
                return


def _receive(connection: socket.socket, client: str, kept: bytes) -> tuple[Request | None, bytes]:
    """Read one request; None at the connection's end. `kept` are bytes read past the one before."""
    data = kept
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None, b""
        data += more
        if len(data) > MAX_HEAD_BYTES:
            raise BadRequestError(413)
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        raise BadRequestError(400)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = _length(headers)
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(rest) < length:
        more = connection.recv(65536)
        if not more:
            return None, b""
        rest += more
    request = Request(
        method=words[0],
        path=words[1].partition("?")[0],
        headers=headers,
        body=rest[:length],
        client=client,
        connection=connection,
    )
    return request, rest[length:]


def _length(headers: dict[str, str]) -> int:
    """The length of the body that follows, in bytes."""
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers:
        raise BadRequestError(411)
    if not length.isdecimal():
        raise BadRequestError(400)
    if int(length) > MAX_BODY_BYTES:
        raise BadRequestError(413)
    return int(length)


def _send(connection: socket.socket, response: Response, server: str, *, keep: bool, head: bool = False) -> None:
    """Write one answer."""
    lines = [
        f"HTTP/1.1 {response.status} {REASONS[response.status]}",
        f"date: {time.strftime('%a, %d %b %Y %H:%M:%S GMT', time.gmtime())}",
        f"server: {server}",
        *(f"{name}: {value}" for name, value in response.headers),
    ]
    if response.content_type:
        lines.append(f"content-type: {response.content_type}")
    lines.append("transfer-encoding: chunked" if response.stream else f"content-length: {len(response.body)}")
    if not keep:
        lines.append("connection: close")
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + (b"" if head else response.body))
    if response.stream is not None and not head:
        for part in response.stream:
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        connection.sendall(b"0\r\n\r\n")

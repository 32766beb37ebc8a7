"""HTTP to the servers of this host, all at once in one thread, with a hard time limit; and what the answers mean.

Speaks HTTP/1.1 over plain sockets (the `http.client` package costs 30 ms to load). Never follows redirects.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import time

from . import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Sequence

ANSWER_LIMIT = 1 << 23
ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}  # noqa: S104 - turned into loopback


class Exchange:
    """One request and what became of it: `status` and `body`, or `problem`. `seconds` is how long it took."""

    def __init__(self, address: str, port: int, path: str, key: str = "", body: bytes | None = None) -> None:
        """Prepare a GET, or a POST of JSON where there is a body; `key` goes into the Authorization header."""
        self.address, self.port = ANYWHERE.get(address, address), port
        host = "[{}]".format(self.address) if ":" in self.address else self.address
        lines = [
            "{} {} HTTP/1.1".format("GET" if body is None else "POST", path),
            "Host: {}:{}".format(host, port),
            "Accept: */*",
            "Connection: close",
        ]
        if body is not None:
            lines += ["Content-Type: application/json", "Content-Length: {}".format(len(body))]
        if key:
            lines.append("Authorization: Bearer " + key.replace("\r", "").replace("\n", ""))
        self.out = "\r\n".join([*lines, "", ""]).encode("utf-8") + (body or b"")
        self.received = b""
        self.status = 0
        self.body = b""
        self.problem = ""
        self.seconds = 0.0

    def json(self) -> Any:  # noqa: ANN401 - whatever the server says
        """The body as JSON; None where it is none."""
        try:
            return jsontext.loads(self.body.decode("utf-8"))
        except (ValueError, RecursionError):
            return None


def fetch(exchanges: Sequence[Exchange], timeout: float) -> None:
    """Carry all out in parallel; each has `status` or `problem` within `timeout` seconds."""
    begun = time.monotonic()
    poll = select.poll()
    open_ones: dict[int, tuple[_socket.socket, Exchange]] = {}
    for exchange in exchanges:
        made = _connect(exchange)
        if made is not None:
            open_ones[made.fileno()] = (made, exchange)
            poll.register(made.fileno(), select.POLLOUT)
    while open_ones:
        left = begun + timeout - time.monotonic()
        if left <= 0:
            break
        for fd, _ in poll.poll(max(left * 1000, 1)):
            made, exchange = open_ones[fd]
            if not _advance(made, exchange, poll):
                exchange.seconds = time.monotonic() - begun
                poll.unregister(fd)
                made.close()
                del open_ones[fd]
    for made, exchange in open_ones.values():
        exchange.problem = "no answer within {:g} s".format(timeout)
        exchange.seconds = time.monotonic() - begun
        made.close()


def _connect(exchange: Exchange) -> _socket.socket | None:
    """Begin to connect; None (and a problem) where that fails at once."""
    family = _socket.AF_INET6 if ":" in exchange.address else _socket.AF_INET
    try:
        made = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    except OSError as error:
        exchange.problem = refused(error.errno or 0)
        return None
    try:
        made.setblocking(False)  # noqa: FBT003 - the standard library's form
        code = made.connect_ex((exchange.address, exchange.port))
    except (OSError, OverflowError) as error:
        made.close()
        exchange.problem = "{}: {}".format(exchange.address, getattr(error, "strerror", None) or error)
        return None
    if code in (0, errno.EINPROGRESS):
        return made
    made.close()
    exchange.problem = refused(code)
    return None


def refused(code: int) -> str:
    """Say why a connection failed."""
    return os.strerror(code).lower()


def _advance(made: _socket.socket, exchange: Exchange, poll: select.poll) -> bool:
    """Send or receive what is possible now; False when the exchange is over."""
    try:
        if exchange.out:
            code = made.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            if code:
                exchange.problem = refused(code)
                return False
            exchange.out = exchange.out[made.send(exchange.out) :]
            if not exchange.out:
                poll.modify(made.fileno(), select.POLLIN)
            return True
        data = made.recv(1 << 16)
    except BlockingIOError:
        return True
    except OSError as error:
        exchange.problem = refused(error.errno or 0)
        return False
    exchange.received += data
    if len(exchange.received) > ANSWER_LIMIT:
        exchange.problem = "an answer longer than {} bytes".format(ANSWER_LIMIT)
        return False
    parsed = parse_response(exchange.received, ended=not data)
    if parsed is not None:
        exchange.status, exchange.body = parsed
        if not exchange.status:
            exchange.problem = "answered something that is not HTTP"
    return parsed is None


def parse_response(data: bytes, *, ended: bool) -> tuple[int, bytes] | None:
    """Split an HTTP/1.1 response into (status, body); None while more is needed, status 0 where it is none."""
    head, blank, body = data.partition(b"\r\n\r\n")
    if not blank:
        plausible = b"HTTP/1.".startswith(data[:7]) and len(data) < 1 << 16
        return None if plausible and not ended else (0, b"")
    lines = head.split(b"\r\n")
    words = lines[0].split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        return 0, b""
    status = int(words[1])
    if 100 <= status < 200:
        return parse_response(body, ended=ended)
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    if status in (204, 304):
        return status, b""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        whole = dechunk(body)
        return (status, whole[0]) if whole[1] or ended else None
    length = headers.get(b"content-length", b"")
    if length.isdigit() and len(body) >= int(length):
        return status, body[: int(length)]
    return (status, body) if ended else None


def dechunk(data: bytes) -> tuple[bytes, bool]:
    """Join the chunks (RFC 9112, 7.1): (what there is, whether it is complete)."""
    joined = b""
    while True:
        line, newline, rest = data.partition(b"\r\n")
        size = line.partition(b";")[0].strip()
        try:
            count = int(size, 16) if newline else -1
        except ValueError:
            return joined, True
        if count == 0:
            return joined, True
        if count < 0 or len(rest) < count + 2:
            return joined + (rest[:count] if count > 0 else b""), False
        joined += rest[:count]
        data = rest[count + 2 :]


def parse_models(answer: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - whatever the server says
    """What `/v1/models` lists: id, root, max_model_len."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    found = [
        {"id": row["id"], "root": row.get("root"), "max_model_len": row.get("max_model_len")}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get("id"), str)
    ]
    return sorted(found, key=lambda row: row["id"])


def parse_metrics(body: bytes) -> dict[str, Any]:
    """The few of vLLM's metrics that tell what it is doing and what it settled for."""
    found: dict[str, Any] = {"requests_running": None, "requests_waiting": None, "cache_config": {}}
    wanted = {b"vllm:num_requests_running": "requests_running", b"vllm:num_requests_waiting": "requests_waiting"}
    for line in body.split(b"\n"):
        if not line.startswith(b"vllm:"):
            continue
        name = line.partition(b"{")[0].partition(b" ")[0]
        if name in wanted:
            found[wanted[name]] = (found[wanted[name]] or 0) + _count(line)
        elif name == b"vllm:cache_config_info" and not found["cache_config"]:
            labels = line[len(name) + 1 : line.rfind(b"}")].decode("utf-8", "backslashreplace")
            found["cache_config"] = parse_labels(labels)
    return found


def _count(line: bytes) -> int:
    """The value at the end of a sample line."""
    try:
        return int(float(line.rpartition(b" ")[2]))
    except (ValueError, OverflowError):
        return 0


def parse_labels(text: str) -> dict[str, str]:
    """Split `a="x",b="y"` (the Prometheus text format: backslash escapes quote, backslash and newline)."""
    found = {}
    while '="' in text:
        name, _, text = text.partition('="')
        value = ""
        while text and text[0] != '"':
            if text[0] == "\\" and len(text) > 1:
                value += {"n": "\n"}.get(text[1], text[1])
                text = text[2:]
            else:
                value, text = value + text[0], text[1:]
        found[name.strip(", ")] = value
        text = text[1:]
    return found


def observed(wanted: dict[str, tuple[str, int, str]], timeout: float) -> dict[str, dict[str, Any]]:
    """Health, version, models and metrics of servers given as slug → (address, port, key), all at once."""
    paths = ("/health", "/version", "/v1/models", "/metrics")
    asked = {slug: [Exchange(*where[:2], path, where[2]) for path in paths] for slug, where in wanted.items()}
    fetch([exchange for row in asked.values() for exchange in row], timeout)
    return {slug: _described(row) for slug, row in asked.items()}


def unasked(address: str, port: int, problem: str) -> dict[str, Any]:
    """The endpoint of a server that cannot be asked."""
    silent: dict[str, Any] = dict.fromkeys(("health", "version", "metrics"))
    return dict(silent, address=address, port=port, problem=problem, models=[])


def _described(row: list[Exchange]) -> dict[str, Any]:
    """One server's endpoint in the wire's form."""
    health, version, models, metrics = row
    said = version.json() if version.status == 200 else None
    return {
        "address": health.address,
        "port": health.port,
        "health": health.status or None,
        "problem": health.problem or None,
        "version": said.get("version") if isinstance(said, dict) else None,
        "models": parse_models(models.json()) if models.status == 200 else [],
        "metrics": parse_metrics(metrics.body) if metrics.status == 200 else None,
    }

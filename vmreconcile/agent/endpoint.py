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
from .metrics import parse_metrics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Sequence

ANSWER_LIMIT = 1 << 23
LONGEST_TEXT = 4096  # letters of a name that a server says
MOST_MODELS = 1000  # with its adapters
LONGEST_NUMBER = 19  # digits of a length: Python refuses to read thousands, and no answer is that long
ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1", "*": "127.0.0.1"}  # noqa: S104 - turned into loopback


class Exchange:
    """One request and what became of it: `status` and `body`, or `problem`. `seconds` is how long it took.

    `late` where the time was over before there was an answer.

    `then` is asked after it, of the same server and over the same connection where that one lets us.
    """

    def __init__(self, address: str, port: int, path: str, key: str = "", body: bytes | None = None) -> None:
        """Prepare a GET, or a POST of JSON where there is a body; `key` goes into the Authorization header."""
        self.address, self.port = ANYWHERE.get(address, address), port
        host = "[{}]".format(self.address) if ":" in self.address else self.address
        lines = [
            "{} {} HTTP/1.1".format("GET" if body is None else "POST", path),
            "Host: {}:{}".format(host, port),
            "Accept: */*",
        ]
        if body is not None:
            lines += ["Content-Type: application/json", "Content-Length: {}".format(len(body))]
        if key:
            lines.append("Authorization: Bearer " + key.replace("\r", "").replace("\n", ""))
        self.head, self.data = lines, body or b""
        self.then: Exchange | None = None
        self.out = self.received = b""
        self.reused = False
        self.status = 0
        self.body = b""
        self.problem = ""
        self.late = False
        self.seconds = 0.0

    def begin(self, *, reused: bool) -> None:
        """Make ready to send, over a new connection or over one that served the exchange before."""
        lines = self.head if self.then else [*self.head, "Connection: close"]
        self.out = "\r\n".join([*lines, "", ""]).encode("utf-8") + self.data
        self.received, self.reused, self.problem = b"", reused, ""

    def json(self) -> Any:  # noqa: ANN401 - whatever the server says
        """The body as JSON; None where it is none."""
        try:
            return jsontext.loads(self.body.decode("utf-8"))
        except (ValueError, RecursionError):
            return None


def in_turn(exchanges: Sequence[Exchange]) -> Exchange:
    """Link the exchanges with one server, to be carried out one after another; the first of them."""
    for this, following in zip(exchanges, exchanges[1:]):
        this.then = following
    return exchanges[0]


def fetch(exchanges: Sequence[Exchange], timeout: float) -> None:
    """Carry all out in parallel, each with what follows it; all have `status` or `problem` within `timeout` seconds."""
    begun = time.monotonic()
    under_way = UnderWay()
    for exchange in exchanges:
        under_way.begin(exchange)
    while under_way.open:
        left = begun + timeout - time.monotonic()
        if left <= 0:
            break
        for fd, _ in under_way.poll.poll(max(left * 1000, 1)):
            under_way.go_on(fd, time.monotonic() - begun)
    for made, unanswered in under_way.open.values():
        made.close()
        late: Exchange | None = unanswered
        while late is not None:
            late.late, late.problem = True, "no answer within {:g} s".format(timeout)
            late.seconds = time.monotonic() - begun
            late = late.then


class UnderWay:
    """The connections of one `fetch`, by descriptor, each with the exchange that it carries now."""

    def __init__(self) -> None:
        """Begin with none."""
        self.poll = select.poll()
        self.open: dict[int, tuple[_socket.socket, Exchange]] = {}

    def begin(self, exchange: Exchange | None, made: _socket.socket | None = None) -> None:
        """Begin an exchange over `made`, or over a new connection; where that fails, the one after it."""
        while exchange is not None:
            exchange.begin(reused=made is not None)
            made = made or _connect(exchange)
            if made is not None:
                self.open[made.fileno()] = (made, exchange)
                self.poll.register(made.fileno(), select.POLLOUT)
                return
            exchange = exchange.then

    def go_on(self, fd: int, seconds: float) -> None:
        """Send or receive what is possible now; where an exchange is over, begin the next."""
        made, exchange = self.open[fd]
        if _advance(made, exchange, self.poll):
            return
        exchange.seconds = seconds
        self.poll.unregister(fd)
        del self.open[fd]
        if exchange.then and exchange.status and persists(exchange.received):
            self.begin(exchange.then, made)
            return
        made.close()
        left_alone = exchange.reused and not exchange.received  # closed by the server between two exchanges
        self.begin(exchange if left_alone else exchange.then)


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
    status, at = 100, 0
    while 100 <= status < 200:
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            plausible = b"HTTP/1.".startswith(data[at : at + 7]) and len(data) - at < 1 << 16
            return None if plausible and not ended else (0, b"")
        lines = data[at:end].split(b"\r\n")
        status, at = _status(lines[0]), end + 4
    body = data[at:]
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    if status in (0, 204, 304):
        return status, b""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        whole = dechunk(body)
        return (status, whole[0]) if whole[1] or ended else None
    length = headers.get(b"content-length", b"")
    if length.isdigit() and len(length) < LONGEST_NUMBER and len(body) >= int(length):
        return status, body[: int(length)]
    return (status, body) if ended else None


def _status(line: bytes) -> int:
    """The status of a response's first line (RFC 9112, 4: three digits); 0 where it is none."""
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or len(words[1]) != 3 or not words[1].isdigit():
        return 0
    return int(words[1])


def persists(data: bytes) -> bool:
    """Whether the connection may be used again after this response (RFC 9112, 9.3), all of which was received."""
    head = data.partition(b"\r\n\r\n")[0].lower() + b"\r\n"
    framed = b"\r\ncontent-length:" in head or b"\r\ntransfer-encoding: chunked\r\n" in head
    return head.startswith(b"http/1.1 ") and framed and b"\r\nconnection: close\r\n" not in head


def dechunk(data: bytes) -> tuple[bytes, bool]:
    """Join the chunks (RFC 9112, 7.1): (what there is, whether it is complete). Goes through each byte once."""
    joined = bytearray()
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        size = data[at : max(end, at)].partition(b";")[0].strip()
        try:
            count = int(size, 16) if end >= 0 else -1
        except ValueError:
            return bytes(joined), True
        if count == 0:
            return bytes(joined), True
        at = end + 2
        if count < 0 or len(data) - at < count + 2:
            joined += data[at : at + max(count, 0)]
            return bytes(joined), False
        joined += data[at : at + count]
        at += count + 2


def parse_models(answer: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - whatever the server says
    """What `/v1/models` lists: id, root, max_model_len; null for what is no such thing, and so many rows at most."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    found = [
        {"id": row["id"][:LONGEST_TEXT], "root": _word(row.get("root")), "max_model_len": _length(row)}
        for row in (rows if isinstance(rows, list) else [])[:MOST_MODELS]
        if isinstance(row, dict) and isinstance(row.get("id"), str)
    ]
    return sorted(found, key=lambda row: row["id"])


def _word(said: object) -> str | None:
    """A text of a server, cut; None for anything else: nested deep, it would spoil the whole answer."""
    return said[:LONGEST_TEXT] if isinstance(said, str) else None


def _length(row: dict[str, Any]) -> int | None:
    said = row.get("max_model_len")
    return said if type(said) is int and abs(said) < 1 << 63 else None


def observed(
    wanted: dict[str, tuple[str, int, str]],
    timeout: float,
    *,
    metrics: bool,
    stalls: Callable[..., dict[str, float]] | None,
) -> dict[str, dict[str, Any]]:
    """Health, version, models and, where asked for, metrics of servers given as slug → (address, port, key).

    `stalls` tells of those that have something to do, by address and key, a model and the page of metrics each, for
    how long they do nothing (`stalls.stalled`).
    """
    paths = ("/health", "/version", "/v1/models", *(["/metrics"] if metrics or stalls is not None else []))
    asked = {slug: [Exchange(*where[:2], path, where[2]) for path in paths] for slug, where in wanted.items()}
    fetch([in_turn(row) for row in asked.values()], timeout)
    found = {slug: _described(row) for slug, row in asked.items()}
    busy = [slug for slug, row in found.items() if row["models"] and (row["metrics"] or {}).get("requests_running")]
    if stalls is not None and busy:
        names = {slug: found[slug]["models"][0]["id"] for slug in busy}
        for slug, seconds in stalls(wanted, names, {slug: asked[slug][-1].body for slug in busy}).items():
            found[slug]["stalled_s"] = seconds
    return found


def unasked(address: str, port: int, problem: str) -> dict[str, Any]:
    """The endpoint of a server that cannot be asked."""
    silent: dict[str, Any] = dict.fromkeys(("health", "version", "metrics", "stalled_s"))
    return dict(silent, address=address, port=port, problem=problem, models=[])


def _described(row: list[Exchange]) -> dict[str, Any]:
    """One server's endpoint in the wire's form."""
    health, version, models, *metrics = row
    said = version.json() if version.status == 200 else None
    return {
        "address": health.address,
        "port": health.port,
        "health": health.status or None,
        "problem": health.problem or None,
        "version": _word(said.get("version")) if isinstance(said, dict) else None,
        "models": parse_models(models.json()) if models.status == 200 else [],
        "metrics": parse_metrics(metrics[0].body) if metrics and metrics[0].status == 200 else None,
        "stalled_s": None,
    }

"""Listening TCP sockets of our network namespace straight from the kernel (sock_diag(7)).

/proc/net/tcp tells the same, but walks the table of all connections for it: milliseconds even where there is none.
"""

from __future__ import annotations

import _socket
from sys import byteorder

SOCK_DIAG = 4
BY_FAMILY = 20
DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
ERROR, DONE = 2, 3
LISTEN = 10
HEADER, MESSAGE = 16, 72


def listening() -> dict[int, tuple[str, int, int]] | None:
    """Inode → (address, port, uid); None where this kernel does not tell."""
    found: dict[int, tuple[str, int, int]] = {}
    try:
        link = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, SOCK_DIAG)
    except (OSError, AttributeError):
        return None
    try:
        link.settimeout(2.0)
        for family in (_socket.AF_INET, _socket.AF_INET6):
            link.send(request(family))
            while not parse(link.recv(1 << 18), found):
                pass
    except (OSError, ValueError):
        return None
    finally:
        link.close()
    return found


def request(family: int) -> bytes:
    """An inet_diag_req_v2 for the listening sockets of a family."""
    body = bytes((family, _socket.IPPROTO_TCP, 0, 0)) + (1 << LISTEN).to_bytes(4, byteorder) + bytes(48)
    fields = ((HEADER + len(body), 4), (BY_FAMILY, 2), (DUMP, 2), (1, 4), (0, 4))
    return b"".join(number.to_bytes(size, byteorder) for number, size in fields) + body


def parse(data: bytes, found: dict[int, tuple[str, int, int]]) -> bool:
    """Add the sockets of one answer to `found`; True when there is no more to come.

    Raises:
        ValueError: where the kernel refuses.
    """
    while len(data) >= HEADER:
        length, kind = int.from_bytes(data[:4], byteorder), int.from_bytes(data[4:6], byteorder)
        if kind == DONE:
            return True
        if kind == ERROR or length < HEADER:
            raise ValueError("sock_diag refused")
        row = data[HEADER:length]
        if kind == BY_FAMILY and len(row) >= MESSAGE:
            inode, uid = int.from_bytes(row[68:72], byteorder), int.from_bytes(row[64:68], byteorder)
            found[inode] = (_address(row[0], row[8:24]), int.from_bytes(row[4:6], "big"), uid)
        data = data[(length + 3) & ~3 :]
    return False


def _address(family: int, raw: bytes) -> str:
    """The address in its usual form; IPv4 in IPv6's clothes as IPv4."""
    if family == _socket.AF_INET:
        return _socket.inet_ntop(family, raw[:4])
    if raw.startswith(b"\0" * 10 + b"\xff\xff"):
        return _socket.inet_ntop(_socket.AF_INET, raw[12:])
    return _socket.inet_ntop(family, raw)

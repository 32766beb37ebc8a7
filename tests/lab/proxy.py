"""A TCP relay that makes a link slow, silent or cut; it runs in threads of the test itself.

Owns the link's behaviour, byte by byte; knows no protocol. Started inside `with lab.network():`, it relays between
the person's machine and a host; point `ansible_host`, `ansible_port` or an endpoint at `address` and `port`.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 16384


class Proxy:
    """Relays connections to `target`. Every switch acts on connections that are open as on new ones."""

    def __init__(self, target: tuple[str, int], *, address: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on `address` and `port` (0: any) and relay to `target` from now on."""
        self.target = target
        self.delay = 0.0
        """Seconds that every chunk waits, in each direction."""
        self.rate = 0.0
        """Bytes a second in each direction; 0: as fast as it goes."""
        self.cut_after = 0
        """Cut the link once this many bytes in all came back from the target; 0: never."""
        self.connections = 0
        self.sent = 0
        """Bytes that went to the target."""
        self.received = 0
        """Bytes that came back."""
        self._flow = threading.Event()
        self._flow.set()
        self._cut = False
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((address, port), backlog=64)
        self.address, self.port = self._listener.getsockname()[:2]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def stall(self) -> None:
        """Let nothing through any more, and close nothing: the link hangs."""
        self._flow.clear()

    def resume(self) -> None:
        """End `stall` and `cut` for what comes."""
        self._cut = False
        self._flow.set()

    def cut(self) -> None:
        """Reset every connection, and each new one at once, until `resume`."""
        self._cut = True
        with self._lock:
            for connection in self._open:
                _reset(connection)

    def close(self) -> None:
        """Stop listening, end every connection and every thread."""
        self._closed.set()
        self._flow.set()
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._cut:
                _reset(client)
                client.close()
                continue
            # Threads inherit the network of the one that starts them, so the way on is in the listener's network.
            thread = threading.Thread(target=self._relay, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _relay(self, client: socket.socket) -> None:
        """Carry one connection to its end."""
        with client:
            try:
                server = socket.create_connection(self.target, timeout=10)
            except OSError:
                _reset(client)
                return
            server.settimeout(None)
            with server:
                with self._lock:
                    self._open |= {client, server}
                back = threading.Thread(target=self._pump, args=(server, client, self._count_received), daemon=True)
                back.start()
                self._pump(client, server, self._count_sent)
                back.join()
                with self._lock:
                    self._open -= {client, server}

    def _pump(self, source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
        """Carry bytes one way until that way ends."""
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK):
                self._closed.wait(self.delay + (len(data) / self.rate if self.rate else 0))
                self._flow.wait()
                sink.sendall(data)
                count(len(data))
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _count_sent(self, number: int) -> None:
        self.sent += number

    def _count_received(self, number: int) -> None:
        self.received += number
        if self.cut_after and self.received >= self.cut_after:
            self.cut()


def _reset(connection: socket.socket) -> None:
    """End a connection so that the other side sees a reset and a thread that reads it here wakes."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)

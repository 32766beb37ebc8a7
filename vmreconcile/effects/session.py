"""A conversation with the agent on one host: requests and their answers, as docs/wire.md has them.

Knows neither SSH nor processes (that is the channel's part) nor what a request means. A payload is written in one
place, where its secrets are revealed; no exception and no log line holds any of it.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, cast

from vmreconcile.effects import ends, ship
from vmreconcile.effects.local import start_local
from vmreconcile.effects.revealed import Revealed
from vmreconcile.errors import UnreachableError, VmreconcileError
from vmreconcile.model.connection import ConnectionKind
from vmreconcile.model.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from vmreconcile.effects.transport import Channel, TransportOptions
    from vmreconcile.model.connection import Connection
    from vmreconcile.model.values import JsonValue

MARKER = b"VMRECONCILE/1"
NEED = b"need"
LONGEST_LINE = 256 * 1024 * 1024
"""Bytes without a line's end after which the other side is no agent of ours."""

SEND_INLINE = 16384
"""Bytes that any pipe or window takes without anyone reading at the other end."""

NOISE_KEPT = 200
"""Bytes of the last line that was no answer: where a login is refused in words, that is where they are."""

LONGEST_WAIT = 3600.0
"""Seconds of one wait on a channel, however long the request may take: no system call takes 'for ever' in all forms."""


class AgentError(VmreconcileError):
    """The agent answered that it could not do what was asked."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        path: str = "",
        index: int | None = None,
        more: Mapping[str, JsonValue] | None = None,
    ) -> None:
        """`kind` is the wire's kebab-case class, `index` the step that failed, `path` the file it was about.

        `more` is all that the host said of it, unchecked.
        """
        super().__init__(message)
        self.more = more or {}
        self.kind = kind
        self.path = path
        self.index = index


def open_session(
    connection: Connection, options: TransportOptions, *, archive: ship.Archive | None = None
) -> AgentSession:
    """Reach a host and start the agent there; nothing is exchanged with it before the first request.

    `archive` is another agent than this installation's, for tests.

    Raises:
        UnreachableError: with one line that says why, and what to do.
    """
    archive = archive or ship.agent_archive()
    channel: Channel
    if connection.kind is ConnectionKind.LOCAL:
        channel = start_local(ship.start_line(connection, archive, own_python=sys.executable), options)
    else:
        from vmreconcile.effects.ssh import start_remote  # noqa: PLC0415 - Fabric costs 0.2 s, only where SSH is used

        channel = start_remote(ship.start_line(connection, archive), connection, options)
    return AgentSession(
        channel=channel,
        archive=archive,
        connection=connection,
        opening=connection.become_password if ship.needs_sudo_password(connection) else None,
        command_timeout=options.command_timeout,
    )


@dataclass(slots=True)
class AgentSession:
    """One agent on one host. Several threads may ask it: requests go one after the other, in no order of their own.

    The first request travels together with the greeting, so that a host that has the agent answers in one round trip.
    `opening` is what has to be written before the greeting (sudo's password).
    """

    channel: Channel
    archive: ship.Archive
    connection: Connection
    opening: Secret | None = None
    command_timeout: float = 60.0
    _pending: bytearray = field(default_factory=bytearray, repr=False)
    _scanned: int = 0
    _greeted: bool = False
    _shipped: bool = False
    _broken: bool = False
    _busy: bool = False
    _last_id: int = 0
    _noise: bytes = b""
    _revealed: Revealed = field(default_factory=Revealed, repr=False)
    _turn: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _closed: bool = False

    def request(
        self,
        payload: Mapping[str, object],
        *,
        timeout: float | None = None,
        on_progress: Callable[[dict[str, JsonValue]], None] | None = None,
    ) -> dict[str, JsonValue]:
        """Send `payload` (JSON values and secrets) and wait for its last answer, which is returned.

        Answers that announce more go to `on_progress` as they come. `timeout` is the longest silence, in seconds,
        between two answers, and without `on_progress` of all answers together; `math.inf` waits as long as the
        connection holds. The wait for other threads' requests does not count.

        Raises:
            AgentError: the agent refused or failed.
            UnreachableError: the connection was lost, or nothing came in time. The session is of no use afterwards.
        """
        with self._turn:
            if self._broken or self._closed:
                raise UnreachableError("the connection was lost before")
            self._last_id += 1
            self._busy, self._broken = True, True
            try:
                answer = self._converse(self._last_id, payload, timeout or self.command_timeout, on_progress)
            except AgentError:
                self._busy, self._broken = False, False
                raise
            self._busy, self._broken = False, False
            return answer

    def close(self) -> None:
        """End the conversation; the agent finishes what it does and ends. Waits for no other thread's request.

        There is something to wait for only where the agent was new to the host, and then keeps its compiled code.
        """
        self._closed = True
        self.channel.close(wait=2.0 if self._shipped and not self._busy else 0.0)

    def __enter__(self) -> Self:
        """Use the session in a `with` block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close the session."""
        self.close()

    def _converse(
        self,
        number: int,
        payload: Mapping[str, object],
        timeout: float,
        on_progress: Callable[[dict[str, JsonValue]], None] | None,
    ) -> dict[str, JsonValue]:
        line = self._encode(number, payload)
        if not self._greeted:
            self._greet(timeout)
            line = MARKER + b"\n" + line
            self._greeted = True
        writer = self._send(line)
        until = time.monotonic() + timeout
        while True:
            word = self._next(timeout)
            if word == NEED:
                _join(writer)
                content, self._shipped = self.archive.content, True
                writer = self._send(b"ARCHIVE %d\n" % len(content) + content)
                continue
            answer = self._decode(word)
            if answer.pop("id", None) != number:
                continue
            if not answer.pop("more", False):
                _join(writer)
                return self._checked(answer)
            if on_progress:
                on_progress(self._revealed.scrubbed(answer))
            elif time.monotonic() > until:
                raise UnreachableError("the agent goes on without an end", remedy="this is no agent of vmreconcile")

    def _greet(self, timeout: float) -> None:
        """Give sudo its password alone and wait until it let us in: a refused password makes it read on."""
        if self.opening is None:
            return
        self._revealed.add(self.opening)
        self._send((self.opening.reveal() + "\n").encode())
        deadline = time.monotonic() + timeout
        while True:
            if (line := self._line()) is not None:
                if line == ship.SUDO_READY.encode():
                    return
                self._noise = line[:NOISE_KEPT]
            elif b"try again" in self.channel.stderr.lower():
                raise self._ended(1)
            else:
                self._receive(deadline, longest=0.5)

    def _next(self, timeout: float) -> bytes:
        """The next line of the agent, without its marker."""
        deadline = time.monotonic() + timeout
        while True:
            line = self._line()
            if line is None:
                self._receive(deadline)
            elif line.startswith(MARKER + b" "):
                return line[len(MARKER) + 1 :]
            elif line:
                self._noise = line[:NOISE_KEPT]

    def _line(self) -> bytes | None:
        """A line that is complete; searches no byte twice, so that a long line costs its length."""
        end = self._pending.find(b"\n", self._scanned)
        if end < 0:
            self._scanned = len(self._pending)
            if self._scanned > LONGEST_LINE:
                raise UnreachableError("the host sends a line without end")
            return None
        line = bytes(self._pending[:end])
        del self._pending[: end + 1]
        self._scanned = 0
        return line.rstrip(b"\r")

    def _receive(self, deadline: float, longest: float = LONGEST_WAIT) -> None:
        left = max(0.0, deadline - time.monotonic())
        try:
            data = self.channel.receive(min(longest, left))
        except TimeoutError:
            if time.monotonic() < deadline:
                return
            raise UnreachableError(
                f"no answer in time{self._said()}",
                remedy="see whether the host is overloaded or a file system of it hangs",
            ) from None
        except OSError as error:
            raise UnreachableError(f"the connection was lost ({error.strerror or error}){self._said()}") from None
        if not data:
            raise self._ended(self.channel.exit_status(2.0))
        self._pending += data

    def _ended(self, status: int | None) -> UnreachableError:
        said = self.channel.stderr + b"\n" if self.channel.stderr else self._noise
        return ends.explain(self.connection, status, self._revealed.scrub(said.decode(errors="replace")))

    def _send(self, data: bytes) -> threading.Thread | None:
        """Write `data`; what may not fit at once goes from a thread of its own, while the answers are read."""
        if len(data) > SEND_INLINE:
            thread = threading.Thread(target=self._write, args=(data,), daemon=True)
            thread.start()
            return thread
        self._write(data)
        return None

    def _write(self, data: bytes) -> None:
        """Write; that the other side is gone shows when its answer is read, together with the reason."""
        try:
            self.channel.send(data)
        except (OSError, ValueError):
            return

    def _encode(self, number: int, payload: Mapping[str, object]) -> bytes:
        text = json.dumps({**payload, "id": number}, default=self._revealed.reveal, separators=(",", ":"))
        return text.encode("ascii") + b"\n"

    def _decode(self, word: bytes) -> dict[str, JsonValue]:
        try:
            answer = json.loads(word)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise UnreachableError("the agent's answer cannot be read", remedy="this is a bug of vmreconcile")
        return cast("dict[str, JsonValue]", answer)

    def _checked(self, answer: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """The answer, or its error raised; whatever a host says, no secret that it was sent comes back in it."""
        if answer.get("ok") is True:
            return self._revealed.scrubbed(answer)
        error = answer.get("error")
        told = error if isinstance(error, dict) else {}
        index = answer.get("index", told.get("index"))
        raise AgentError(
            _class(told.get("class")),
            self._revealed.scrub(str(told.get("message", "the agent gave no reason"))),
            path=self._revealed.scrub(str(told.get("path") or "")),
            index=index if isinstance(index, int) else None,
            more=self._revealed.scrubbed(told),
        )

    def _said(self) -> str:
        """The last line of standard error, for an error's text."""
        last = ends.last_line(self._revealed.scrub(self.channel.stderr.decode(errors="replace")))
        return f": {last}" if last else ""


def _class(said: JsonValue) -> str:
    """The class of an error, which decides what is done about it: a word, whatever the host says."""
    return said if isinstance(said, str) and re.fullmatch(r"[a-z][a-z0-9-]{0,39}", said) else "agent-bug"


def _join(writer: threading.Thread | None) -> None:
    if writer is not None:
        writer.join()

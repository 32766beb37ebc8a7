"""A folder watched by the kernel: every file that appears or changes in it, with its mode and owner at that moment."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MODIFY, ATTRIB, CLOSE_WRITE, MOVED_TO, CREATE = 0x2, 0x4, 0x8, 0x80, 0x100
NAMES = {MODIFY: "modify", ATTRIB: "attrib", CLOSE_WRITE: "close-write", MOVED_TO: "moved-to", CREATE: "create"}
EVENT = struct.Struct("iIII")


@dataclass(frozen=True, slots=True)
class Seen:
    """One event: what happened to which file, and its mode and owner right afterwards (None: gone by then)."""

    what: str
    name: str
    mode: int | None
    uid: int | None


@dataclass(slots=True)
class Watch:
    """What was seen so far."""

    folder: Path
    seen: list[Seen] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch, in a thread, while the block runs."""
        libc = ctypes.CDLL(None, use_errno=True)
        number = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(number, os.fsencode(self.folder), sum(NAMES)) >= 0, os.strerror(
            ctypes.get_errno()
        )
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(number, over))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            os.close(number)

    def _run(self, number: int, over: threading.Event) -> None:
        while True:
            last = over.is_set()
            ready, _, _ = select.select([number], [], [], 0.05)
            if ready:
                self._note(os.read(number, 1 << 16))
            elif last:
                return

    def _note(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            _, mask, _, length = EVENT.unpack_from(data, at)
            name = data[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0").decode()
            at += EVENT.size + length
            try:
                found = (self.folder / name).lstat()
                mode, uid = found.st_mode & 0o7777, found.st_uid
            except FileNotFoundError:
                mode = uid = None
            self.seen += [Seen(what, name, mode, uid) for bit, what in NAMES.items() if mask & bit]

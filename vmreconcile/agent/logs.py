"""The request `log`: the last lines of a server's log, and what follows, wherever its runtime keeps it."""

from __future__ import annotations

import os

from . import command, masks, proc, survey, units
from .files import READ_LIMIT, open_folder
from .folders import PREFIX, SUFFIX, Folders, is_slug
from .problems import Problem, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .frames import Channel

BLOCK = 1 << 16
BATCH = 500
LOOK_S = 0.4
LINE_LIMIT = 1 << 14
SHORTEST = 6  # letters of a secret; fewer would mask words
MARGIN = 1 << 12  # bytes beyond the limit in which a token that only looks like one may end
START = "vmreconcile: starting {} "  # what begins each start's part of a log file


class Lines:
    """Bytes in, whole lines out, with the server's own secrets masked."""

    def __init__(self, secrets: tuple[str, ...], progress: Callable[..., None]) -> None:
        """Take the values that must not be shown, and where the lines go."""
        parts = {part for secret in secrets for part in (secret, *secret.splitlines()) if len(part) >= SHORTEST}
        self.secrets = sorted(parts, key=len, reverse=True)  # the longest first: one may begin with another
        self.held = LINE_LIMIT + max(map(len, parts), default=0) * 4 + MARGIN
        self.skipping = False
        self.progress = progress
        self.rest = b""

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Send on the lines that are complete; with `last`, the rest too."""
        *whole, self.rest = (self.rest + data).split(b"\n")
        if self.skipping and whole:
            del whole[0]  # the end of a line whose beginning was sent
            self.skipping = False
        if self.skipping:
            self.rest = b""
        elif len(self.rest) > self.held or (last and self.rest):
            whole.append(self.rest)
            self.rest, self.skipping = b"", not last
        shown = [self._shown(line) for line in whole]
        for at in range(0, len(shown), BATCH):
            self.progress(lines=shown[at : at + BATCH])

    def _shown(self, line: bytes) -> str:
        """One line as it may leave the host: masked first and cut afterwards, or half a secret would be left."""
        text = line[: self.held].decode("utf-8", "backslashreplace").rstrip("\r")
        for secret in self.secrets:
            text = text.replace(secret, masks.STARS)
        return masks.mask_text(text)[:LINE_LIMIT]


def log(request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]) -> dict[str, Any]:
    """Send a server's log; with `follow`, until the controller closes its end or asks something else.

    Raises:
        Problem: `bad-request`, or `no-log` where the server has none.
    """
    slug, count, latest = request.get("slug"), request.get("lines", 200), request.get("latest") is True
    if not is_slug(slug) or not isinstance(count, int) or count < 0:
        raise Problem("bad-request", "log needs a slug and a number of lines")
    seen = survey.Survey(folders)
    entries = seen.environment(str(slug))[0]
    secrets = sorted(
        {value for name, value in entries.items() if masks.is_secret_name(name) and len(value) >= SHORTEST}
    )
    lines = Lines(tuple(secrets), progress)
    follow = channel if request.get("follow") else None
    if is_journal(str(slug), seen.records.get(str(slug)), folders):
        _journal(str(slug), count, lines, (folders, follow, latest))
    else:
        mark = START.format(slug).encode("ascii") if latest else b""
        fd = _opened(folders.log(str(slug)), folders)
        try:
            _file(fd, count, lines, (follow, mark))
        finally:
            os.close(fd)
    return {}


def is_journal(slug: str, record: object, folders: Folders) -> bool:
    """Whether a server's log is the journal: it has a unit, and the unit does not write to our log file."""
    if isinstance(record, dict) and record.get("runtime") == "process":
        return False
    unit = proc.read("{}/{}{}{}".format(folders.unit_folder(), PREFIX, slug, SUFFIX))
    if unit is None:
        return units.is_unit_record(record)
    return not units.appends(proc.text(unit), folders.log(slug))


def tail_offset(fd: int, count: int) -> int:
    """Where the last `count` lines of a file begin."""
    at = os.fstat(fd).st_size
    if count == 0 or at == 0:
        return at
    wanted = count + (os.pread(fd, 1, at - 1) == b"\n")
    while at > 0:
        start = max(at - BLOCK, 0)
        block = os.pread(fd, at - start, start)
        here = block.rfind(b"\n")
        while here >= 0:
            wanted -= 1
            if wanted == 0:
                return start + here + 1
            here = block.rfind(b"\n", 0, here)
        at = start
    return 0


def start_offset(fd: int, at: int, mark: bytes) -> int:
    """Where, from `at` on, the last line that begins with `mark` stands; `at` where there is none."""
    here = (b"\n" + os.pread(fd, READ_LIMIT, at)).rfind(b"\n" + mark)
    return at + max(here, 0)


def _opened(path: str, folders: Folders) -> int:
    """Open a log file of ours for reading; no link is followed, and no pipe waited for.

    Raises:
        Problem: `no-log` where there is none, `unsafe-path`, or as the system refused.
    """
    folder, _, name = path.rpartition("/")
    try:
        below = open_folder(folder, folders.base_of(path), folders.uid, create=False)
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=below)
        finally:
            os.close(below)
    except OSError as error:
        problem = from_os_error(error, path)
    except Problem as refused:
        problem = refused
    else:
        if os.fstat(fd).st_mode >> 12 == proc.REGULAR:
            return fd
        os.close(fd)
        problem = Problem("unsafe-path", path + ": not a regular file", path)
    raise Problem("no-log", path + ": no log yet", path) if problem.kind == "not-found" else problem


def _file(fd: int, count: int, lines: Lines, how: tuple[Channel | None, bytes]) -> None:
    """Send the end of a log file, from its last `mark` on if one is given, and what is appended while followed."""
    follow, mark = how
    begin = tail_offset(fd, count)
    os.lseek(fd, start_offset(fd, begin, mark) if mark else begin, os.SEEK_SET)
    while True:
        data = os.read(fd, BLOCK)
        if data:
            lines.feed(data)
        elif follow is None or follow.interrupted(LOOK_S):
            break
    lines.feed(b"", last=True)


def _journal(slug: str, count: int, lines: Lines, where: tuple[Folders, Channel | None, bool]) -> None:
    """Send what the journal has of a unit, or of its latest start; followed, until the controller says something.

    Raises:
        Problem: `no-log` where we may not read it: without a journal on disk, a user's units log to the system's.
    """
    folders, follow, latest = where
    scope = units.scope(folders.uid)
    unit = PREFIX + slug + SUFFIX
    chosen = "--unit=" + unit if scope == "system" else "--user-unit=" + unit
    argv = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--all", chosen, "--lines={}".format(count)]
    surroundings = units.surroundings(scope, folders.uid)
    said = command.run(["journalctl", "--no-pager", "--lines=1", chosen], 30, surroundings)[1]
    if "insufficient permissions" in said:
        remedy = "add the user to group systemd-journal, or make /var/log/journal"
        raise Problem("no-log", "{} may not read the journal of {}: {}".format(folders.user, unit, remedy))
    if latest and scope == "system":
        argv += units.invocation(unit)
    environment = command.environment(surroundings)
    pid, source = command.start([*argv, "--follow"] if follow else argv, environment)
    try:
        os.set_blocking(source, follow is None)
        while True:
            try:
                data = os.read(source, BLOCK)
            except BlockingIOError:
                if follow is not None and follow.interrupted(LOOK_S):
                    break
                continue
            if not data:
                break
            lines.feed(data)
        lines.feed(b"", last=True)
    finally:
        os.close(source)
        command.end(pid)

"""The request `lock`: one run at a time on a host, from before its first step to its end.

The lock is an open descriptor that no child inherits, so it ends with this process, however that ends. What its file
says of the holder is for people, and may have been written by anybody: it only decides whether a run whose connection
broke takes its own lock over from the agent that it lost. Steps are put in order by another lock (`steps`).
"""

from __future__ import annotations

import fcntl
import os
import time

from . import jsontext
from .files import open_folder
from .problems import Problem, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .folders import Folders
    from .frames import Channel

    Claim = dict[str, Any]

NAME = "run.lock"
GRACE_S = 1.0  # a run that has just ended may still have an agent that is about to
LOOK_S = 0.2
TELL_S = 1.0
MOST_S = 7 * 86400.0
LETTERS = {"owner": 120, "command": 300, "run": 64}
READ_LIMIT = 1 << 12
OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_held: dict[str, tuple[int, Claim]] = {}  # by the path of its file; the descriptor is -1 where it has lapsed


def lock(request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]) -> dict[str, Any]:
    """Take this host's run lock, or with `release` let it go; who holds it is told while it is waited for.

    With `lease`, it is let go as well where nothing is heard of the controller for so many seconds: a computer that was
    closed or lost its network leaves a connection behind that looks alive for hours. `again` is asked by a run that has
    held the host before: where our folders have gone meanwhile, none is made for it before the next steps.

    Raises:
        Problem: `locked` after `timeout` seconds, with the holder; `interrupted` where the controller went away.
    """
    if request.get("release") is True:
        return {"held": False, "changed": release(folders)}
    claim = _claim(request)
    until = time.monotonic() + max(_seconds(request, "timeout"), GRACE_S)
    lease, tell = _seconds(request, "lease"), time.monotonic() + GRACE_S
    while True:
        holder = _take(folders, claim, str(claim["run"]), make=request.get("again") is not True)
        if holder is None:
            channel.lease, channel.lapse = lease, lapse
            return {"held": _stands(_held[_path(folders)][0], folders)}
        now = time.monotonic()
        if now >= until:
            raise _refused(holder, folders)
        if now >= tell:
            progress(holder=_shown(holder))
            tell = now + TELL_S
        if channel.interrupted(min(LOOK_S, until - now)):
            raise Problem("interrupted", "the controller no longer waits for the lock")


def release(folders: Folders) -> bool:
    """Let the lock go; False where this process does not hold it."""
    fd, _ = _held.pop(_path(folders), (-1, {}))
    _drop(fd)
    return fd >= 0


def lapse() -> None:
    """Let every lock go for a silence; `keep` takes them again where the controller is heard of once more."""
    for path, (fd, claim) in list(_held.items()):
        _drop(fd)
        _held[path] = (-1, claim)


def keep(folders: Folders) -> None:
    """Before steps: make sure of a lock that this process took. Its file goes with the host's last server; it lapses.

    Raises:
        Problem: `locked` where another run, or another agent of this one, has it by now.
    """
    fd, claim = _held.get(_path(folders), (-1, {}))
    if claim and not _stands(fd, folders):
        holder = _take(folders, claim, "")
        if holder is not None:
            raise _refused(holder, folders)


def _path(folders: Folders) -> str:
    return folders.state + "/" + NAME


def _claim(request: dict[str, Any]) -> Claim:
    """Who asks, in words that fit on a line.

    Raises:
        Problem: `bad-request`.
    """
    if not all(isinstance(request.get(name), str) for name in LETTERS):
        raise Problem("bad-request", "lock: owner, command and run are texts")
    return {name: plain(request[name], most) for name, most in LETTERS.items()}


def _seconds(request: dict[str, Any], name: str) -> float:
    value = request.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_S:
        raise Problem("bad-request", "lock: {} is a number of seconds, a week at most".format(name))
    return float(value)


def plain(value: object, most: int) -> str:
    """Text of at most `most` letters without anything that drives a terminal; "" for what is no text."""
    text = value[: most * 2] if isinstance(value, str) else ""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:most]


def _take(folders: Folders, claim: Claim, over: str, *, make: bool = True) -> Claim | None:
    """Try once: None where this process holds the lock now, else who does. The lock of run `over` is taken over.

    Without `make`, a claim is kept for the next steps where the folder is not there.
    """
    fd, _ = _held.get(_path(folders), (-1, {}))
    if _stands(fd, folders):
        return None
    if not make and not os.path.lexists(folders.state):
        _drop(fd)
        _held[_path(folders)] = (-1, claim)
        return None
    folder = open_folder(folders.state, folders.state, folders.uid, create=True)
    try:
        _one_at_a_time(folder)
        fd = _open(folder, folders)
        if not _locked(fd):
            holder = _told(fd)
            os.close(fd)
            if not over or holder["run"] != over:
                return holder
            os.unlink(NAME, dir_fd=folder)  # a lock on a file that is gone is none
            fd = _open(folder, folders)
            _locked(fd)
        if not _stands(fd, folders):
            os.close(fd)
            return _holder({})
        _put(fd, claim, folders)
    except FileNotFoundError:
        return _holder({})  # the folder went with the host's last server: the next time, another is made
    except OSError as error:
        raise from_os_error(error, _path(folders)) from None
    finally:
        os.close(folder)
    return None


def _one_at_a_time(folder: int) -> None:
    """Look at the lock and take it as one, among agents; no file system has to lock a folder (NFS does not)."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
    except OSError:
        return


def _open(folder: int, folders: Folders) -> int:
    fd = os.open(NAME, OPEN, 0o600, dir_fd=folder)
    if os.fstat(fd).st_mode >> 12 != 8:
        os.close(fd)
        raise Problem("unsafe-path", _path(folders) + ": not a regular file", _path(folders))
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stands(fd: int, folders: Folders) -> bool:
    """Whether a descriptor is that of the lock's file as it lies there; a lock on another one is none."""
    try:
        return fd >= 0 and os.path.samestat(os.fstat(fd), os.lstat(_path(folders)))
    except OSError:
        return False


def _put(fd: int, claim: Claim, folders: Folders) -> None:
    """Keep the descriptor, and say who we are; on a full disk the lock is held all the same, and nobody is named."""
    _drop(_held.get(_path(folders), (-1, {}))[0])
    _held[_path(folders)] = (fd, claim)
    said = dict(claim, time=round(time.time(), 3), pid=os.getpid())
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, jsontext.dumps(said).encode("ascii"), 0)
    except OSError:
        return


def _drop(fd: int) -> None:
    """Close a descriptor, and take our name off its file."""
    if fd < 0:
        return
    try:
        os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        return
    os.close(fd)


def _told(fd: int) -> Claim:
    """What the lock's file says of its holder."""
    try:
        said = jsontext.loads(os.pread(fd, READ_LIMIT, 0).decode("ascii"))
    except (OSError, ValueError, RecursionError):
        said = {}
    return _holder(said if isinstance(said, dict) else {})


def _holder(said: dict[str, Any]) -> Claim:
    """Who holds the lock, in words that can be shown; "", 0 and null for what is not known. `age` is in seconds."""
    holder: Claim = {name: plain(said.get(name), most) for name, most in LETTERS.items()}
    since, pid, now = said.get("time"), said.get("pid"), time.time()
    since = since if isinstance(since, float) and 0 < since < 1e11 else None
    holder["since"] = since
    holder["age"] = None if since is None else round(max(0.0, now - since), 1)
    holder["pid"] = pid if type(pid) is int and 0 < pid < 1 << 31 else 0
    return holder


def _refused(holder: Claim, folders: Folders) -> Problem:
    """The refusal, with the holder for programs and in words for people."""
    age = "" if holder["age"] is None else " for {:.0f} s".format(holder["age"])
    who = "{}{} ({})".format(holder["owner"] or "another run", age, holder["command"] or "command not known")
    problem = Problem("locked", "the host is locked by " + who, _path(folders))
    problem.more = {"holder": _shown(holder)}
    return problem


def _shown(holder: Claim) -> Claim:
    """The holder as others may see it: who knows a run's name could take its lock over."""
    return {name: value for name, value in holder.items() if name != "run"}

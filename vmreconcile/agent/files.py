"""Reading, writing and removing files of ours in ways that no other user can subvert.

Every file is written to a new file beside it and renamed; every folder on the way is opened without following links
of others and must be the user's own. Decides nothing about contents.
"""

from __future__ import annotations

import errno
import os

from .problems import Problem, from_os_error

READ_LIMIT = 1 << 24
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
LINK = 10  # a mode's file type
MOST_LINKS = 40  # as the kernel has it (path_resolution(7))


def _check(fd: int, path: str, uid: int) -> None:
    """A folder of ours belongs to us and only we write there."""
    seen = os.fstat(fd)
    if seen.st_uid != uid:
        raise Problem("unsafe-path", "{}: belongs to uid {}, not to {}".format(path, seen.st_uid, uid), path)
    if seen.st_mode & 0o022:
        raise Problem(
            "unsafe-path", "{}: others may write there (mode {:04o})".format(path, seen.st_mode & 0o7777), path
        )


def _go_to(path: str, uid: int, *, create: bool) -> None:
    """Go down to `path`, links followed, and make sure that nobody else could put another folder in its place.

    Each folder and link on the way belongs to root or to us, and only these may rename what is in it. With `create`,
    what is missing is made; without, it ends the way.

    Raises:
        Problem: `unsafe-path`.
        OSError: as the system refused.
    """
    here, left, links = "/", path.split("/"), 0
    while left:
        part = left.pop(0)
        if part in ("", ".", ".."):
            here = os.path.dirname(here) if part == ".." else here
            continue
        there = os.path.join(here, part)
        if not os.path.lexists(there):
            if not create:
                return
            _make(there, 0o755 if uid == 0 else 0o700)
        seen = os.lstat(there)
        if seen.st_uid not in (0, uid):
            raise Problem(
                "unsafe-path", "{}: belongs to uid {}, on the way to {}".format(there, seen.st_uid, path), there
            )
        if seen.st_mode >> 12 == LINK:
            links += 1
            target = os.readlink(there)
            here, left = "/" if target.startswith("/") else here, target.split("/") + left
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        elif seen.st_mode & 0o022 and not seen.st_mode & 0o1000:
            raise Problem("unsafe-path", "{}: others could replace {} in it".format(there, path), there)
        else:
            here = there


def _make(path: str, mode: int) -> None:
    """Make a folder; who was faster is looked at like anything else."""
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return


def open_folder(path: str, base: str, uid: int, create: bool) -> int:  # noqa: FBT001 - reads well at its two callers
    """Open folder `path`, at or below `base`, following no link from `base` on; with `create`, make what is missing.

    Raises:
        Problem: `unsafe-path`, or as the operating system refused.
    """
    here = base
    try:
        _go_to(os.path.dirname(base), uid, create=create)
        if create and not os.path.lexists(base):
            _make(base, 0o700)
        fd = os.open(base, FOLDER)
        try:
            _check(fd, here, uid)
            for part in path[len(base) :].strip("/").split("/"):
                if not part:
                    continue
                here += "/" + part
                fd = _descend(fd, part, create)
                _check(fd, here, uid)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise from_os_error(error, here) from None
    return fd


def _descend(fd: int, part: str, create: bool) -> int:  # noqa: FBT001 - as in its caller
    """Open `part` in the open folder `fd`, which is closed."""
    if create and part not in os.listdir(fd):
        os.mkdir(part, 0o700, dir_fd=fd)
    below = os.open(part, FOLDER, dir_fd=fd)
    os.close(fd)
    return below


def read_file(path: str, uid: int) -> tuple[bytes, os.stat_result] | None:
    """Read a regular file without following a link at its end; None where there is none.

    Raises:
        Problem: `unsafe-path` where it is a link, no regular file or another user's; or as the system refused.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, path) from None
    seen = os.fstat(fd)
    if seen.st_mode >> 12 != 8:
        os.close(fd)
        raise Problem("unsafe-path", path + ": not a regular file", path)
    with open(fd, "rb", buffering=0) as file:
        if seen.st_uid not in (uid, 0):
            raise Problem("unsafe-path", "{}: belongs to uid {}".format(path, seen.st_uid), path)
        data = b""
        while len(data) <= READ_LIMIT:
            block = file.read(READ_LIMIT)
            if not block:
                return data, seen
            data += block
    raise Problem("too-large", "{}: larger than {} bytes".format(path, READ_LIMIT), path)


def write_file(path: str, base: str, uid: int, data: bytes, mode: int) -> bool:
    """Put `data` at `path` with `mode`, whole or not at all; False where it was so already.

    Raises:
        Problem: `unsafe-path`, `disk-full`, `read-only`, `permission-denied`; the old file is then untouched.
    """
    folder, _, name = path.rpartition("/")
    fd = _open_for(folder, base, uid, create=True)
    try:
        if _same(fd, name, uid, data, mode):
            return False
        _replace(fd, name, data, mode)
    except OSError as error:
        raise from_os_error(error, path) from None
    finally:
        os.close(fd)
    return True


def _open_for(folder: str, base: str, uid: int, *, create: bool) -> int:
    """Open one of our folders, or systemd's own for units, which is not ours to judge."""
    if not base.endswith(("/systemd/system", "/systemd/user")):
        return open_folder(folder, base, uid, create)
    try:
        os.makedirs(folder, 0o755, exist_ok=True)
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise from_os_error(error, folder) from None


def _same(folder: int, name: str, uid: int, data: bytes, mode: int) -> bool:
    """Whether the file is already as it should be."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return False
    seen = os.fstat(fd)
    if seen.st_mode >> 12 != 8:
        os.close(fd)
        return False
    with open(fd, "rb", buffering=0) as file:
        wanted = seen.st_mode == 0o100000 | mode and seen.st_uid == uid and seen.st_size == len(data)
        return wanted and file.readall() == data


def _part(name: str) -> str:
    """What the new file beside `name` is called until it takes its place."""
    return ".{}.new".format(name)


def _replace(folder: int, name: str, data: bytes, mode: int) -> None:
    """Write a new file beside `name`, sync it, rename it over, sync the folder."""
    part = _part(name)
    if part in os.listdir(folder):
        os.unlink(part, dir_fd=folder)  # left by a run that was killed; the lock says that nobody writes it now
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(part, dir_fd=folder)
        raise
    os.fsync(folder)


def remove_file(path: str, base: str, uid: int) -> bool:
    """Remove a file of ours, and what a kill in mid-write left beside it; False where there was neither."""
    folder, _, name = path.rpartition("/")
    names = [each for each in (name, _part(name)) if os.path.lexists("{}/{}".format(folder, each))]
    if not names:
        return False
    fd = _open_for(folder, base, uid, create=False)
    gone = False
    try:
        for each in names:
            gone = _unlinked(each, fd) or gone
        os.fsync(fd)
    except OSError as error:
        raise from_os_error(error, path) from None
    finally:
        os.close(fd)
    return gone


def _unlinked(name: str, folder: int) -> bool:
    """Remove a file; False where it is gone by now."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True

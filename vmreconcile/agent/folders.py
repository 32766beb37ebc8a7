"""Our folders and the names in them: where each file of ours is, and what a server's slug and unit are called.

Opens nothing: that is the part of `files`.
"""

from __future__ import annotations

import os
import pwd

from .problems import Problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PREFIX, SUFFIX = "vmreconcile-", ".service"


class Folders:
    """The config and state folders of one user, and the files we keep there."""

    __slots__ = ("config", "home", "state", "uid", "user")

    def __init__(self, config: str, state: str, uid: int, home: str, user: str) -> None:
        """Take absolute paths; `home` is the passwd database's, not the environment's (sudo leaves that one)."""
        self.config, self.state, self.uid, self.home, self.user = config, state, uid, home, user

    @classmethod
    def of(cls, wanted: Any) -> Folders:  # noqa: ANN401 - from the wire, checked here
        """Read the request's `folders`; None means the user's defaults.

        Raises:
            Problem: `bad-request` where it is neither null nor two absolute paths.
        """
        uid = os.getuid()
        try:
            entry = pwd.getpwuid(uid)
            home, user = entry.pw_dir, entry.pw_name
        except KeyError:
            home, user = os.environ.get("HOME", "/"), str(uid)
        if wanted is None and uid == 0:
            return cls("/etc/vmreconcile", "/var/lib/vmreconcile", uid, home, user)
        if wanted is None:
            return cls(home + "/.config/vmreconcile", home + "/.local/state/vmreconcile", uid, home, user)
        named = [wanted.get(key) for key in ("config", "state")] if isinstance(wanted, dict) else []
        paths = [path for path in named if isinstance(path, str) and path]
        if len(paths) != 2:
            raise Problem("bad-request", "folders is null or has config and state")
        config, state = (os.path.normpath(home + path[1:] if path.startswith("~/") else path) for path in paths)
        if not config.startswith("/") or not state.startswith("/"):
            raise Problem("bad-request", "folders are absolute paths")
        return cls(config, state, uid, home, user)

    def token_file(self, slug: str) -> str:
        """The token of a server that gets it as a systemd credential."""
        return token_beside(self.env_file(slug))

    def env_file(self, slug: str) -> str:
        """The env file of a server."""
        return "{}/env/{}.env".format(self.config, slug)

    def record(self, slug: str) -> str:
        """The ownership record of a server."""
        return "{}/servers/{}.json".format(self.state, slug)

    def history(self, slug: str) -> str:
        """What a server ran before."""
        return "{}/history/{}.json".format(self.state, slug)

    def log(self, slug: str) -> str:
        """The log of a server of runtime `process`."""
        return "{}/log/{}.log".format(self.state, slug)

    def unit_folder(self) -> str:
        """Where this user's unit files are."""
        return "/etc/systemd/system" if self.uid == 0 else self.home + "/.config/systemd/user"

    def base_of(self, path: str) -> str:
        """Say which of our folders a path is in.

        Raises:
            Problem: `not-ours` where it is in none and is no unit file of ours.
        """
        if os.path.normpath(path) == path and "\0" not in path:
            for base in (self.config, self.state):
                if path.startswith(base + "/"):
                    return base
            folder, _, name = path.rpartition("/")
            if folder == self.unit_folder() and slug_of_unit(name):
                return folder
        raise Problem("not-ours", "{}: neither in our folders nor a unit of ours".format(path), path)


def token_beside(env_path: str) -> str:
    """Where the token is that belongs to an env file, if it is kept apart from it."""
    return env_path[: -len(".env")] + ".token" if env_path.endswith(".env") else env_path + ".token"


def is_slug(text: object) -> bool:
    """Whether `text` is a server's name on its host: `NAME` or `NAME_N`."""
    if not isinstance(text, str) or not text.isascii():
        return False
    name, underscore, number = text.partition("_")
    if underscore and not (number.isdigit() and len(number) <= 4):
        return False
    letters = name.replace(".", "a").replace("-", "a")
    return 0 < len(name) <= 63 and name[0] not in ".-" and letters.isalnum() and letters == letters.lower()


def slug_of_unit(name: str) -> str:
    """The server that a unit's name stands for; "" where it is no unit of ours."""
    if name.startswith(PREFIX) and name.endswith(SUFFIX):
        slug = name[len(PREFIX) : -len(SUFFIX)]
        return slug if is_slug(slug) else ""
    return ""


def unwritable(path: str) -> str:
    """Why nothing can be written in a folder (or where it is to be made); "" where it can."""
    while not os.path.lexists(path) and path != "/":
        path = os.path.dirname(path)
    if os.access(path, os.W_OK | os.X_OK):
        return ""
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    return "{}: {}".format(path, "read-only file system" if read_only else "no permission to write there")

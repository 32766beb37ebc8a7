"""The folder of the `vm` command where it is not called beside an inventory: an inventory of this machine, and models.

`$VM_HOME`, else `~/.vmreconcile`. A project folder (with `models.d/` or `inventory/`) is used as it is.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.effects.model_files import ModelFileError, create
from vmreconcile.effects.save import SaveError, replace_text
from vmreconcile.effects.yaml_edit import EditError, set_text
from vmreconcile.errors import UsageError

HOSTS = """\
# The hosts of the `vm` command, as vmreconcile and Ansible read them; `vm add --host NAME` puts others here.
all:
  hosts:
    localhost:
      ansible_connection: local
"""
HERE = "localhost,"
"""The same hosts as a source without a file (Ansible reaches `localhost` without SSH)."""
_DESTINATION = re.compile(r"(?:(?P<user>[A-Za-z_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9_.-]*)")


def project_here(folder: Path) -> bool:
    """Whether `folder` holds an inventory or models."""
    return (folder / "models.d").is_dir() or (folder / "inventory").exists()


def home_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Where the `vm` command keeps its own inventory and models."""
    return Path(environ["VM_HOME"]) if environ.get("VM_HOME") else home / ".vmreconcile"


def make_home(folder: Path) -> bool:
    """See to it that the folder is there, with this machine as its host; whether it was made.

    Raises:
        ModelFileError: it cannot be made.
    """
    try:
        (folder / "models.d").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(
            f"{folder} cannot be made: {error.strerror}", remedy="name another one in VM_HOME"
        ) from None
    if _has_inventory(folder / "inventory"):
        return False
    try:
        create(folder / "inventory" / "hosts.yml", HOSTS)
    except ModelFileError:
        if not (folder / "inventory" / "hosts.yml").exists():  # else another first use was quicker
            raise
        return False
    return True


def _has_inventory(path: Path) -> bool:
    """Whether somebody's file is there; a folder that a full disk left empty holds none."""
    try:
        return any(not entry.name.startswith(".") for entry in path.iterdir())
    except FileNotFoundError:
        return path.is_symlink()
    except OSError:
        return True  # a file, or what cannot be read: reading it says why


def destination(text: str) -> tuple[str, str]:
    """The user ("" for SSH's own choice) and the host of `HOST` or `USER@HOST`.

    Raises:
        UsageError: that is none.
    """
    match = _DESTINATION.fullmatch(text)
    if match is None:
        raise UsageError(f"--host: {text!r} is no host", remedy="give HOST or USER@HOST; ports belong in ~/.ssh/config")
    return match["user"] or "", match["host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewHost:
    """A host for an inventory file of the `vm` command, to be reached over SSH."""

    name: str
    user: str
    path: Path

    def text(self, *, known: bool) -> str:
        """The file with this host in it, all else as it is; of a host that is `known`, only the user is said anew.

        Raises:
            UsageError: the file cannot be changed safely.
        """
        place = ("all", "hosts", self.name)
        try:
            text = self.path.read_bytes().decode("utf-8") if self.path.exists() else HOSTS
            if not known:
                text = set_text(text, (*place, "ansible_connection"), "ssh")
            return set_text(text, (*place, "ansible_user"), self.user) if self.user else text
        except (OSError, UnicodeDecodeError, EditError) as error:
            remedy = f"write {self.name} into it yourself"
            raise UsageError(f"{self.path} cannot be changed: {error}", remedy=remedy) from None

    def write(self, *, known: bool) -> None:
        """Put this host into the file as that is now: others may put theirs there at the same time.

        Raises:
            UsageError: the file cannot be changed safely.
            SaveError: it cannot be written.
        """
        with _one_at_a_time(self.path):
            text = self.text(known=known)
            if self.path.exists():
                replace_text(self.path, text)
            else:
                create(self.path, text)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Keep others of us from changing the file meanwhile; the lock is a file beside it, which inventories leave out.

    Raises:
        SaveError: there can be no lock.
    """
    try:
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SaveError(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""The folder of the `vm` command where it is not called beside an inventory: an inventory of this machine, and models.

`$VM_HOME`, else `~/.vmreconcile`. A project folder (with `models.d/` or `inventory/`) is used as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vmreconcile.effects.model_files import ModelFileError, create
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
    if (folder / "inventory").exists():
        return False
    create(folder / "inventory" / "hosts.yml", HOSTS)
    return True


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
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else HOSTS
            if not known:
                text = set_text(text, (*place, "ansible_connection"), "ssh")
            return set_text(text, (*place, "ansible_user"), self.user) if self.user else text
        except (OSError, UnicodeDecodeError, EditError) as error:
            remedy = f"write {self.name} into it yourself"
            raise UsageError(f"{self.path} cannot be changed: {error}", remedy=remedy) from None

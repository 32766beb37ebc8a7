"""The folder of the `vm` command where it is not called beside an inventory: an inventory of this machine, and models.

`$VM_HOME`, else `~/.vmreconcile`. A project folder (with `models.d/` or `inventory/`) is used as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vmreconcile.effects.model_files import ModelFileError, create
from vmreconcile.effects.save import replace_text
from vmreconcile.effects.yaml_edit import EditError, set_text
from vmreconcile.errors import UsageError

HOSTS = """\
# The hosts of the `vm` command, as vmreconcile and Ansible read them; `vm add --host NAME` puts others here.
all:
  hosts:
    localhost:
      ansible_connection: local
"""
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


def record_host(folder: Path, destination: str) -> tuple[str, Path]:
    """Put `HOST` or `USER@HOST` into the inventory, to be reached over SSH; its name there, and the file.

    Raises:
        UsageError: that is no host, or the file cannot be changed safely.
        SaveError: it cannot be written.
    """
    match = _DESTINATION.fullmatch(destination)
    if match is None:
        raise UsageError(f"{destination!r} is no host", remedy="give HOST or USER@HOST; ports belong in ~/.ssh/config")
    path = folder / "inventory" / "hosts.yml"
    try:
        text = path.read_text(encoding="utf-8")
        text = set_text(text, ("all", "hosts", match["host"], "ansible_connection"), "ssh")
        if match["user"]:
            text = set_text(text, ("all", "hosts", match["host"], "ansible_user"), match["user"])
    except (OSError, UnicodeDecodeError, EditError) as error:
        raise UsageError(f"{path} cannot be changed: {error}", remedy=f"write {destination} into it yourself") from None
    replace_text(path, text)
    return match["host"], path

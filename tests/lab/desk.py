"""A person's desk without a network: a folder with inventory and models, the command line in this process, fake hosts.

Only the last step, opening a session to a host, is replaced; everything before and after it is the tool's own.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.worlds import TOKEN
from vmreconcile.cli.main import main
from vmreconcile.core import conduct
from vmreconcile.effects.fleet import Session
from vmreconcile.errors import UnreachableError
from vmreconcile.flows import draining, prepare, ready
from vmreconcile.model.connection import Connection
from vmreconcile.model.desired import Health

INVENTORY = "gpu:\n  hosts:\n    gpu1:\n    gpu2:\n"
MODEL = """\
name: qwen  # the name
model: org/qwen
hosts: gpu
port: 8001
args:
  max_model_len: 4096
  gpu_memory_utilization: 0.5
health: {startup_timeout: 2s, soak: 0}
"""


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON values
        """The one document on standard output."""
        return json.loads(self.out)


@dataclass(slots=True)
class Desk:
    """The folder, the hosts by name, and the command line. `opened` are the hosts that were reached, in order."""

    folder: Path
    capture: pytest.CaptureFixture[str]
    hosts: dict[str, FakeHost] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)

    def __call__(self, *words: str) -> Said:
        """Run `vmreconcile WORDS…` in the folder."""
        self.capture.readouterr()
        code = main(words)
        said = self.capture.readouterr()
        return Said(code, said.out, said.err)

    def write(self, path: str, text: str) -> None:
        """Write a file of the desk."""
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def change(self, old: str, new: str, path: str = "models.d/qwen.yaml") -> None:
        """Replace words in a file; they must be there."""
        text = (self.folder / path).read_text(encoding="utf-8")
        assert old in text
        self.write(path, text.replace(old, new))

    def read(self, path: str = "models.d/qwen.yaml") -> str:
        """A file of the desk."""
        return (self.folder / path).read_text(encoding="utf-8")

    def pids(self) -> dict[str, int]:
        """The pid of every root by `SLUG@HOST`."""
        return {
            f"{slug}@{name}": root.pid
            for name, host in self.hosts.items()
            for slug in host.slugs()
            if (root := host.root(slug))
        }

    def _open(self, connection: Connection) -> Session:
        host = self.hosts[connection.host]
        self.opened.append(connection.host)
        if host.unreachable:
            raise UnreachableError(host.unreachable, remedy="look at the host")
        return host.open()


def make_desk(folder: Path, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Desk:
    """Two hosts with systemd, one model, a token in the environment, nobody else's settings."""
    desk = Desk(folder, capture, {name: FakeHost(name) for name in ("gpu1", "gpu2")})
    desk.write("inventory/hosts.yml", INVENTORY)
    desk.write("models.d/qwen.yaml", MODEL)
    for name in [
        name for name in os.environ if name.startswith(("HF_", "HUGGING", "ANSIBLE", "NO_COLOR", "VMRECONCILE"))
    ]:
        patch.delenv(name)
    patch.setenv("HOME", str(folder))
    patch.setenv("HF_TOKEN", TOKEN)
    patch.setenv("HF_HUB_OFFLINE", "1")  # no test asks the real Hub
    patch.chdir(folder)
    patch.setattr(conduct, "Health", functools.partial(Health, soak=0.0))  # no test waits for it unless it says so
    patch.setattr(ready, "FIRST_PAUSE_S", 0.001)
    patch.setattr(ready, "LONGEST_PAUSE_S", 0.002)
    patch.setattr(draining, "PAUSE_S", 0.001)

    def opener(options: object) -> Callable[[Connection], Session]:
        del options
        return desk._open

    patch.setattr(prepare, "_real_opener", opener)
    return desk

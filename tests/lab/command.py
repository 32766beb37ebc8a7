"""The tool as a person runs it: a HOME, an inventory, models and commands.

Owns the person's folder and how a run's outcome is shown. Knows nothing of what the tool should answer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.lab.hosts import Lab

EXIT_CODES = {0, 1, 2, 3, 4, 5, 64, 130}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run of the tool ended; its text shows what a failed assertion needs."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the one document is
        """The one document on stdout."""
        return json.loads(self.stdout)

    def __str__(self) -> str:
        """Render the command with all it said."""
        return f"{' '.join(self.argv)} → {self.returncode}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


def checked(outcome: Outcome) -> Outcome:
    """What holds for every run: no traceback, a code of the contract, and with --json nothing but one document."""
    assert "Traceback" not in outcome.stderr, outcome
    assert "a fault of vmreconcile itself" not in outcome.stderr, outcome
    assert outcome.returncode in EXIT_CODES, outcome
    if "--json" in outcome.argv and outcome.stdout:
        json.loads(outcome.stdout)
    return outcome


class Cli:
    """The tool in `folder`: call it with its arguments. `env` is laid over the person's environment."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        """Make a HOME, an inventory of the lab's hosts and an empty models.d in `folder`."""
        self.lab = lab
        self.folder = folder
        self.home = folder / "home"
        self.env: dict[str, str] = {}
        lab.make_home(self.home)
        self.models_folder = folder / "models.d"
        self.models_folder.mkdir()
        self.inventory()

    def inventory(
        self, variables: Mapping[str, object] | None = None, hosts: Mapping[str, Mapping[str, object]] | None = None
    ) -> None:
        """Write the inventory: `variables` for all hosts (group `gpu`), `hosts` for one host each."""
        (self.folder / "inventory").mkdir(exist_ok=True)
        (self.folder / "inventory/hosts.yaml").write_text(self.lab.inventory(variables, hosts))

    def model(self, name: str, text: str) -> Path:
        """Write models.d/`name`.yaml; a `name:` line is put in front where `text` has none."""
        path = self.models_folder / f"{name}.yaml"
        path.write_text(text if text.startswith("name:") else f"name: {name}\n{text}")
        return path

    def models(self, **texts: str) -> None:
        """Write several model files and remove all others."""
        for path in self.models_folder.iterdir():
            path.unlink()
        for name, text in texts.items():
            self.model(name, text)

    def __call__(
        self, *argv: str, env: Mapping[str, str] | None = None, data: str = "", timeout: float = 120
    ) -> Outcome:
        """Run the tool to its end, with `data` as its standard input; whatever it did, it said it in its own words."""
        done = self.lab.run(self.argv(*argv), env=self._environ(env), cwd=self.folder, data=data, timeout=timeout)
        return checked(Outcome(argv=argv, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr))

    def popen(self, *argv: str, env: Mapping[str, str] | None = None, **options: object) -> subprocess.Popen[str]:
        """Start the tool; its pid is the tool's own, to be interrupted or killed. It is the caller's to end."""
        return self.lab.popen(self.argv(*argv), env=self._environ(env), cwd=self.folder, **options)

    def finish(self, process: subprocess.Popen[str], timeout: float = 60) -> Outcome:
        """Wait for the end of what `popen` started, and say how it ended."""
        with process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        argv = tuple(str(word) for word in process.args[3:])  # type: ignore[index]  # the list that `argv` gave
        return checked(Outcome(argv=argv, returncode=process.returncode, stdout=out, stderr=err))

    def argv(self, *argv: str) -> list[str]:
        """Return the whole command line."""
        return [sys.executable, "-m", "vmreconcile", *argv]

    def _environ(self, env: Mapping[str, str] | None) -> dict[str, str]:
        return {"HOME": str(self.home)} | self.env | dict(env or {})

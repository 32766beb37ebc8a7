"""The tool as a person runs it: a HOME, an inventory, models and commands.

Owns the person's folder and how a run's outcome is shown. Knows nothing of what the tool should answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

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


class Running:
    """The tool while it runs, or a moment of it: to be interrupted, killed, waited for."""

    def __init__(self, argv: tuple[str, ...], process: subprocess.Popen[str], out: IO[str], err: IO[str]) -> None:
        """Take the process and the files that it writes to."""
        self.process = process
        self._argv = argv
        self._files = (out, err)

    def stderr(self) -> str:
        """What it said on standard error so far."""
        return _read(self._files[1])

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, timeout: float = 60) -> Outcome:
        """Wait for its end; kill it where that does not come."""
        try:
            self.process.wait(timeout)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        out, err = map(_read, self._files)
        for file in self._files:
            file.close()
        outcome = Outcome(argv=self._argv, returncode=self.process.returncode, stdout=out, stderr=err)
        return outcome if outcome.returncode == -signal.SIGKILL else checked(outcome)


def _read(file: IO[str]) -> str:
    """The whole of a file that another process may be writing to."""
    return os.pread(file.fileno(), 1 << 24, 0).decode(errors="replace")


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

    def begin(self, *argv: str, env: Mapping[str, str] | None = None) -> Running:
        """Start the tool and let it run."""
        files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - `Running.end` closes them
        was = signal.getsignal(signal.SIGINT)
        if was is signal.SIG_IGN:  # as a shell sets it for what runs in the background; a person's tool hears Ctrl-C
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = self.popen(*argv, env=env, stdout=files[0], stderr=files[1])
        finally:
            signal.signal(signal.SIGINT, was)
        return Running(argv, process, *files)

    def argv(self, *argv: str) -> list[str]:
        """Return the whole command line."""
        return [sys.executable, "-m", "vmreconcile", *argv]

    def _environ(self, env: Mapping[str, str] | None) -> dict[str, str]:
        # No test asks the real Hub; one that has a Hub of its own takes HF_HUB_OFFLINE back.
        return {"HOME": str(self.home), "HF_HUB_OFFLINE": "1"} | self.env | dict(env or {})

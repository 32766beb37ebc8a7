"""Drives a real agent as a local subprocess: builds the archive, runs the bootstrap, talks frames.

Used by this room's tests and by whoever wants the real agent beside a fake one. Not a transport: no SSH, no sudo.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import queue
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOM = Path(__file__).parents[2] / "vmreconcile" / "agent"
BOOTSTRAP = (ROOM / "bootstrap.py").read_text()
MAGIC = "VMRECONCILE/1"
SALT = "00112233445566778899aabbccddeeff"


def build_archive(*, pynvml: bool = False, replacing: Mapping[str, str] | None = None) -> bytes:
    """Zip the room as package `vmreconcile_agent`, the same bytes each time; `replacing` names other sources."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(ROOM.glob("*.py")):
            source = (replacing or {}).get(path.name)
            data = path.read_bytes() if source is None else source.encode()
            archive.writestr(zipfile.ZipInfo(f"vmreconcile_agent/{path.name}"), data)
        if pynvml:
            found = importlib.util.find_spec("pynvml")
            assert found is not None
            assert found.origin is not None
            archive.writestr(zipfile.ZipInfo("pynvml.py"), Path(found.origin).read_bytes())
    return buffer.getvalue()


class Refused(Exception):  # noqa: N818 - an answer, not a failure of the test
    """The agent's error answer."""

    def __init__(self, error: dict[str, Any], answer: dict[str, Any], progress: list[dict[str, Any]]) -> None:
        """Keep the error and what was answered before it."""
        super().__init__(f"{error['class']}: {error['message']}")
        self.kind: str = error["class"]
        self.path: str = error.get("path", "")
        self.answer = answer
        self.progress = progress


class Agent:
    """One agent process with its own folders; root None means the user's default ones."""

    def __init__(
        self,
        root: Path | None,
        *,
        python: str = sys.executable,
        prefix: tuple[str, ...] = (),
        noise: bytes = b"",
        archive: bytes | None = None,
    ) -> None:
        """Start the bootstrap under `python`; `prefix` (sudo, nsenter) goes before it, `noise` before the magic."""
        self.folders = {"config": f"{root}/config", "state": f"{root}/state"} if root else None
        self.archive = build_archive() if archive is None else archive
        self.digest = sha256(self.archive).hexdigest()
        self.sent_archive = 0
        self.number = 0
        argv = [*prefix, python, "-I", "-S", "-X", "utf8", "-c", BOOTSTRAP, self.digest, str(root or "")]
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(root or "/root"),
            "HF_TOKEN": "hf_sessiontokenthatmustnotleak",
        }
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self.errors = b""
        self.threads = [threading.Thread(target=part, daemon=True) for part in (self._read_lines, self._read_errors)]
        for thread in self.threads:
            thread.start()
        self.write(noise + MAGIC.encode() + b"\n")

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            return

    def next_answer(self, timeout: float = 60) -> dict[str, Any]:
        """Return the next frame, sending the archive where the agent asks for it."""
        while True:
            line = self.lines.get(timeout=timeout)
            if not line:
                self.threads[1].join(5)
                raise AssertionError(f"the agent ended: {self.process.wait()} {self.errors.decode()}")
            if line.strip() == f"{MAGIC} need".encode():
                self.sent_archive += 1
                self.write(b"ARCHIVE %d\n" % len(self.archive) + self.archive)
            elif line.startswith(MAGIC.encode() + b" "):
                answer: dict[str, Any] = json.loads(line[len(MAGIC) + 1 :])
                return answer

    def send(self, do: str, **fields: Any) -> int:  # noqa: ANN401 - JSON values
        """Send a request; return its id."""
        self.number += 1
        request = {"id": self.number, "do": do, "folders": self.folders, **fields}
        self.write(json.dumps(request).encode() + b"\n")
        return self.number

    def ask(self, do: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:  # noqa: ANN401 - JSON values
        """Send a request and collect its answers: the last, and those before it."""
        number = self.send(do, **fields)
        progress = []
        while True:
            answer = self.next_answer()
            assert answer["id"] == number
            if not answer["ok"]:
                raise Refused(answer["error"], answer, progress)
            if not answer.get("more"):
                return answer, progress
            progress.append(answer)

    def observe(self, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
        """Look at this host."""
        request = {
            "salt": SALT,
            "executables": [],
            "ports": [],
            "servers": None,
            "http_timeout": 2.0,
            "gpus": False,
            "metrics": False,
        }
        observation: dict[str, Any] = self.ask("observe", **{**request, **fields})[0]["observation"]
        return observation

    def server(self, slug: str, **fields: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
        """One server of an observation."""
        return next(row for row in self.observe(**fields)["servers"] if row["slug"] == slug)

    def steps(self, *steps: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - JSON values
        """Carry steps out; return the progress of each."""
        return self.ask("steps", steps=list(steps), **fields)[1]

    def close(self) -> int:
        """End the channel and wait for the agent."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(30)
        for thread in self.threads:
            thread.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status

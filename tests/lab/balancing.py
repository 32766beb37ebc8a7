"""A client behind a balancer that is a file: it asks whom that names, one request after the other, and counts losses.

Hooks of the tool edit the file. Knows nothing of the tool.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.hosts import Lab

TARGET = "$VMRECONCILE_ADDRESS:$VMRECONCILE_PORT"


@dataclass(frozen=True, slots=True)
class Balancer:
    """The file with its targets, `ADDRESS:PORT` a line; hooks of several servers may edit it at the same time."""

    path: Path

    @property
    def remove(self) -> str:
        """The hook that takes a server out."""
        lock = f"exec 9>>{self.path}.lock; flock 9"
        return f"{lock}; sed -i '/^'{TARGET}'$/d' {self.path}; echo out {TARGET} >> {self.path}.log"

    @property
    def add(self) -> str:
        """The hook that puts it in; twice is once."""
        return (
            f"exec 9>>{self.path}.lock; flock 9; grep -qx {TARGET} {self.path} || echo {TARGET} >> {self.path}; "
            f"echo in {TARGET} >> {self.path}.log"
        )

    def targets(self) -> list[str]:
        """Who may be asked now; read while no hook writes."""
        with Path(f"{self.path}.lock").open("a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return self.path.read_text(encoding="utf-8").split() if self.path.exists() else []

    def log(self) -> list[str]:
        """What the hooks did, in order."""
        path = Path(f"{self.path}.log")
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@dataclass(slots=True)
class Client:
    """A client that sends a request every `every` seconds, and what came of them."""

    balancer: Balancer
    model: str
    tokens: int = 8
    every: float = 0.05
    answered: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    unserved: int = 0
    """Requests that nobody was there for."""
    fewest: int = 99
    """Targets at the worst moment."""
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sent(self) -> int:
        """Requests so far that have come to an end."""
        return sum(self.answered.values()) + len(self.lost)

    @contextmanager
    def asking(self, lab: Lab) -> Iterator[None]:
        """Ask on and on, from the hosts' network; at the end every answer is waited for."""
        threads: list[threading.Thread] = []

        def work() -> None:
            with lab.network():
                self._work(lab, threads)

        working = threading.Thread(target=work)
        working.start()
        try:
            yield
        finally:
            self._over.set()
            working.join()
            for thread in threads:
                thread.join()

    def _work(self, lab: Lab, threads: list[threading.Thread]) -> None:
        turn = 0
        while not self._over.wait(self.every):
            targets = self.balancer.targets()
            self.fewest = min(self.fewest, len(targets))
            if not targets:
                self.unserved += 1
                continue
            turn += 1
            thread = threading.Thread(target=self._ask, args=(lab, targets[turn % len(targets)]))
            thread.start()
            threads.append(thread)

    def _ask(self, lab: Lab, target: str) -> None:
        problem = ""
        begun = time.monotonic()
        with lab.network():
            try:
                problem = self._problem(target)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                problem = f"{type(error).__name__}: {error}"
        with self._lock:
            if problem:
                self.lost.append(f"{target} after {time.monotonic() - begun:.2f} s: {problem}")
            else:
                self.answered[target] = self.answered.get(target, 0) + 1

    def _problem(self, target: str) -> str:
        """What is wrong with the answer to one request; a whole one has as many tokens as were asked for."""
        address, _, port = target.partition(":")
        connection = http.client.HTTPConnection(address, int(port), timeout=30)
        try:
            body = json.dumps({"model": self.model, "prompt": "x", "max_tokens": self.tokens})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            said = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            return f"{response.status} {said[:200]}"
        tokens = json.loads(said)["usage"]["completion_tokens"]
        return "" if tokens == self.tokens else f"{tokens} of {self.tokens} tokens"

"""What a running simulated server knows: its options, its adapters, its counters, whether it is dead or stopping.

Owns that knowledge and its lock. Must not speak HTTP.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vmreconcile.simulator.faults import Faults
from vmreconcile.simulator.log import Log
from vmreconcile.simulator.memory import Found
from vmreconcile.simulator.options import Options


@dataclass(slots=True, kw_only=True)
class Serving:
    """One server, shared by the threads of its connections. `adapters` maps a LoRA's name to its path.

    `wake` interrupts the root's sleep, so that it looks at the flags.
    """

    options: Options
    version: str
    memory: Found
    log: Log
    faults: Callable[[], Faults]
    wake: Callable[[], None]
    runtime_lora: bool
    api_keys: frozenset[str]
    adapters: dict[str, str] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    dead: bool = False
    stopping: bool = False
    refused_when_dead: bool = False
    crash_wanted: bool = False
    running: int = 0
    cut: threading.Event = field(default_factory=threading.Event)
    """Set once nothing more is computed for the requests in flight."""
    silent: bool = False
    """They are not even answered any more: their engine is gone."""
    hung: int = 0
    """How many requests the engine had when it began to hang: what the metrics show from then on; 0: it does not."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        """Count a request in."""
        with self.lock:
            self.running += 1

    def hang(self) -> None:
        """The engine hangs from now on, with what it was given before: its counters stand still, whoever leaves."""
        with self.lock:
            self.hung = self.hung or self.running

    def recover(self) -> None:
        """The engine works again; what its clients have given up is gone."""
        self.hung = 0

    def end(self, *, prompt: int = 0, generated: int = 0, finished: bool = False) -> None:
        """Count a request out, with the tokens it took; one that wrote none and is not `finished` was given up."""
        with self.lock:
            self.running -= 1
            self.prompt_tokens += prompt
            self.generation_tokens += generated
            self.finished += bool(generated) or finished
        self.wake()

    @property
    def patience(self) -> int:
        """Seconds that requests in flight may take once it is told to stop."""
        return self.options.shutdown_timeout

    @property
    def fragile(self) -> bool:
        """Whether its engine has workers, which a SIGTERM ends at once, requests with them."""
        return self.options.tensor_parallel * self.options.pipeline_parallel > 1

    def work(self, seconds: float) -> bool:
        """Take so long for a part of a request; False where that is cut short."""
        return not self.cut.wait(seconds)

    def abort(self) -> None:
        """Answer the requests in flight with what there is of them."""
        self.cut.set()

    def give_up(self) -> None:
        """Answer the requests in flight no more; each holds its connection until the client leaves."""
        self.silent = True
        self.cut.set()

    def names(self) -> list[str]:
        """The names under which completions can be asked for, adapters last."""
        return [*self.options.served_names, *self.adapters]


def new_id(prefix: str) -> str:
    """Make an identifier like vLLM's: `cmpl-` and 16 hex digits."""
    return f"{prefix}-{os.urandom(8).hex()}"

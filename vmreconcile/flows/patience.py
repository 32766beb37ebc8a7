"""How long a start is waited for: until its deadline, and longer while its log shows that it goes on.

The log is looked at only in the second half of the time. Progress that is seen moves the deadline to a quarter of the
time after it, a minute at least; four times the time is the end in any case.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from vmreconcile.core.gates import extension_of, longest_wait
from vmreconcile.core.gates import startup_timeout as with_weights
from vmreconcile.effects.session import AgentError
from vmreconcile.flows.explaining import latest_start_of
from vmreconcile.flows.run import Run
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.plan import Gate
from vmreconcile.vllm.memory.stored import total_bytes
from vmreconcile.vllm.progress import Progress, further, progress_of

LOOKS = 16
"""The log is read so many times in the time that a start has: each minute of the usual quarter of an hour."""


@dataclass(slots=True, kw_only=True)
class Patience:
    """The deadline of one start. Times in seconds since it is waited for."""

    wanted: DesiredServer
    gate: Gate
    run: Run
    timeout: float = field(init=False)
    _seen: Progress | None = None
    _next_look: float = field(init=False)
    _last_progress: float | None = None
    _asked_weights: bool = False
    _told: bool = False

    def __post_init__(self) -> None:
        """Begin with what the gate says."""
        self.timeout = self.gate.timeout
        self._next_look = self.timeout / 2

    @property
    def deadline(self) -> float:
        """Until when it is waited for, by what was seen so far."""
        if self._last_progress is None:
            return self.timeout
        return min(max(self.timeout, self._last_progress + extension_of(self.timeout)), longest_wait(self.timeout))

    def is_over(self, waited: float) -> bool:
        """Whether a start that is not ready after `waited` seconds is given up."""
        if waited < min(self._next_look, self.deadline):
            return False
        self._look(waited)
        self._next_look = waited + self.timeout / LOOKS
        if waited >= self.timeout:
            self._weigh()
        if waited >= self.deadline:
            return True
        if waited >= self.gate.timeout and not self._told:
            self._told = True
            self.run.reporter.says(self.wanted.id, self._news(waited))
        return False

    def _look(self, waited: float) -> None:
        """See whether the log has come further since the last look."""
        now = progress_of(latest_start_of(self.wanted.id, self.run.fleet))
        if self._seen is not None and further(self._seen, now):
            self._last_progress = waited
        self._seen = {name: max(now.get(name, 0), reached) for name, reached in {**now, **(self._seen or {})}.items()}

    def _weigh(self) -> None:
        """Give a model more time by its files, where nobody said how long it may take; asked once, at the deadline."""
        if self._asked_weights or not self.gate.grows:
            return
        self._asked_weights = True
        with suppress(AgentError):
            files = self.run.model_files(self.wanted.id)
            if files is not None and files.tensors is not None:
                self.timeout = max(self.timeout, with_weights(self.wanted, total_bytes(files.tensors)))

    def _news(self, waited: float) -> str:
        if self._last_progress is None:
            return f"not ready after {waited:.0f} s; it has {self.timeout:.0f} s, for its weights are large"
        return (
            f"not ready after {waited:.0f} s, but its log goes on: waited for up to {longest_wait(self.timeout):.0f} s"
        )

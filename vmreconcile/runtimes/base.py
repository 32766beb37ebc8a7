"""What a runtime is: a pure translator between observed facts, wanted launches and steps. Acts on nothing."""

from __future__ import annotations

from typing import Protocol

from vmreconcile.model.launch import Launch
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.plan import Field
from vmreconcile.model.steps import Step


class Runtime(Protocol):
    """One way to keep a server running on a host."""

    name: str
    open_files: int | None
    """Open files that it asks for on behalf of its servers; None: they get what started them has."""

    def problem(self, host: HostView) -> str:
        """Why this runtime cannot be used on `host`; '' where it can."""

    def refusal(self, launch: Launch) -> str:
        """Why this runtime cannot start just this launch; '' where it can."""

    def crashed(self, server: ObservedServer) -> bool:
        """Whether a server without a root process ended by itself, rather than being stopped."""

    def drift(self, launch: Launch, server: ObservedServer) -> tuple[Field, ...]:
        """What differs in the runtime's own files, process aside."""

    def start(self, launch: Launch) -> tuple[Step, ...]:
        """Write everything and start; right from any state without a running root."""

    def begin(self, launch: Launch) -> tuple[Step, ...]:
        """Start, where everything is written already."""

    def refresh(self, launch: Launch) -> tuple[Step, ...]:
        """Write everything again without touching the process."""

    def stop(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Stop what runs, orphans included, and keep it stopped over a reboot."""

    def halt(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Stop what runs, orphans included, as something that comes back."""

    def remove(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Remove every file of this server; right only after `stop`."""

"""`--shutdown-timeout`: how long a vLLM that is told to stop goes on with the requests it has. Pure.

vLLM 0.32.0, v1/engine/core.py: 0 aborts them at once, anything above waits for them; new ones are refused either way.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import from_argv

SHUTDOWN_TIMEOUT = "shutdown_timeout"


def shutdown_timeout_of(argv: Sequence[str]) -> int:
    """Seconds that a root started with `argv` may take for the requests in flight; 0 where it aborts them."""
    command = from_argv(argv, catalogue_for(None))
    return whole_seconds(command.settings.get(SHUTDOWN_TIMEOUT) if command else None)


def whole_seconds(value: object) -> int:
    """The value of the argument as a count; what vLLM would refuse counts as none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0

"""One run at a time on a host: its lock is taken before anything is changed there, and held until the run ends."""

from __future__ import annotations

from vmreconcile.effects.locks import LOCKED, Holder, whoami
from vmreconcile.effects.session import AgentError
from vmreconcile.flows.acting import INTERRUPTED
from vmreconcile.flows.run import Run
from vmreconcile.model.outcome import Failure


class _Stopped(Exception):  # noqa: N818 - what the person asked for
    """The lock is no longer waited for."""


def lock_host(host: str, run: Run) -> Failure | None:
    """Hold a host for this run; None where it is held now, else why nothing may be changed there.

    Raises:
        UnreachableError: the host was lost.
    """
    waiting = _Waiting(host, run)
    try:
        run.fleet.lock(host, owner=whoami(), command=run.command, timeout=run.lock_timeout, on_wait=waiting)
    except AgentError as error:
        return lock_failure(host, error)
    except _Stopped:
        run.fleet.drop(host)  # the agent stops waiting as its controller goes away
        return INTERRUPTED
    return None


def lock_failure(host: str, error: AgentError) -> Failure:
    """The failure of every server of a host that could not be held."""
    if error.kind == LOCKED:
        return Failure(kind=LOCKED, summary=f"{host}: {error}; nothing was changed there", remedy=error.remedy)
    where = f" ({error.path})" if error.path else ""
    return Failure(
        kind=error.kind.replace("-", "_"),
        summary=f"{host}: its lock could not be taken: {error}{where}",
        remedy=error.remedy or "mend it on the host, then run apply again",
    )


class _Waiting:
    """Tells who holds a host, once for each holder, while its lock is waited for."""

    def __init__(self, host: str, run: Run) -> None:
        self._host = host
        self._run = run
        self._told: tuple[str, str] | None = None

    def __call__(self, holder: Holder) -> None:
        if self._run.stopping.is_set():
            raise _Stopped
        if self._run.lock_timeout and (holder.owner, holder.command) != self._told:
            self._told = holder.owner, holder.command
            self._run.reporter.queues(self._host, str(holder))

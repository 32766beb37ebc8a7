"""Waiting until the memory that a server needs is seen free on its GPUs, before it is started."""

from __future__ import annotations

import time

from vmreconcile.core.gpus.room import Short, held_by, missing, short_of, unreadable
from vmreconcile.effects.session import AgentError
from vmreconcile.flows.failing import NotReady
from vmreconcile.flows.ready import Interrupted
from vmreconcile.flows.run import Run
from vmreconcile.model.gpus import Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 2.0
LONGEST_WAIT_S = 30.0
"""The memory of a vLLM that was stopped is seen free within seconds; what is held for longer is somebody's."""

STOPPED = "; what ran before was stopped for this"


def see_devices(server: ServerId, placed: Placed, run: Run) -> None:
    """See that the GPUs are there before what runs is stopped for them; nothing where that cannot be seen.

    Raises:
        NotReady: one is not there any more.
        UnreachableError: the host was lost.
    """
    try:
        host = run.fleet.observe_gpus(server.host)
    except AgentError:
        return
    gone = None if unreadable(placed, host) else missing(server, placed, host, "; what runs was left as it is")
    if gone is not None:
        raise NotReady(gone)


def wait_for_room(server: ServerId, placed: Placed, run: Run, *, stopped: bool) -> None:
    """Wait until each GPU of a server has the bytes free that its start takes, `LONGEST_WAIT_S` at most.

    `stopped`: it ran until now and was stopped for this; a Ctrl-C then does not end the wait, for what was begun with
    the stop ends with the start.

    Raises:
        NotReady: the memory is held by something else, or a GPU is not there any more.
        Interrupted: the person asked to stop before anything was begun.
        UnreachableError: the host was lost.
    """
    begun, pause = time.monotonic(), FIRST_PAUSE_S
    while short := _short(server, placed, run, stopped=stopped):
        waited = time.monotonic() - begun
        run.reporter.waits(server, waited, str(short[0]))
        if waited > LONGEST_WAIT_S:
            return _last_look(server, placed, run, stopped=stopped)
        if run.stopping.is_set() and not stopped:
            raise Interrupted("interrupted")
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE_S)
    return None


def _short(server: ServerId, placed: Placed, run: Run, *, stopped: bool) -> tuple[Short, ...]:
    """The GPUs that have not enough free memory yet; none where that cannot be seen, which is told."""
    try:
        host = run.fleet.observe_gpus(server.host)
    except AgentError as error:
        return _unseen(server, str(error), run)
    return _judged(server, placed, host, run, stopped=stopped)


def _judged(server: ServerId, placed: Placed, host: HostView, run: Run, *, stopped: bool) -> tuple[Short, ...]:
    problem = unreadable(placed, host)
    if problem:
        return _unseen(server, problem, run)
    gone = missing(server, placed, host, STOPPED if stopped else "")
    if gone is not None:
        raise NotReady(gone)
    return short_of(placed, host)


def _unseen(server: ServerId, why: str, run: Run) -> tuple[Short, ...]:
    run.reporter.says(server, f"its GPUs cannot be read now ({why}): started without waiting for free memory")
    return ()


def _last_look(server: ServerId, placed: Placed, run: Run, *, stopped: bool) -> None:
    """Look at the whole host, for the names of those who hold the memory; go on where it was freed at last.

    What vLLM may yet find enough, because CUDA takes less here than is estimated, is left to vLLM.
    """
    host = run.fleet.observe_host(server.host)
    short = _judged(server, placed, host, run, stopped=stopped)
    if any(each.surely for each in short):
        raise NotReady(held_by(server, short, host, STOPPED if stopped else ""))
    for each in short:
        run.reporter.says(server, f"{each}, CUDA's own share among them: started all the same, vLLM will see")

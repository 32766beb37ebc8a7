"""The agent's loop: one request a line, answered in order until the controller closes the channel.

Owns what every request shares (ids, errors, hardening); what a request does lives in the module it names.
"""

from __future__ import annotations

import os
import resource

from . import frames
from .folders import Folders
from .problems import Problem, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Any, Callable

    Answering = Callable[["dict[str, Any]", Folders, frames.Channel, Callable[..., None]], "dict[str, Any]"]
else:
    import _signal  # the signal module loads enum, 6 ms


def main(fd_in: int = 0, fd_out: int = 1, pending: bytes = b"", digest: str = "") -> None:
    """Serve requests from `fd_in` until it ends; `digest` is the archive's hash, reported to the controller."""
    channel = frames.Channel(*_keep_apart(fd_in, fd_out), pending)
    os.chdir("/")  # whoever owns the login's folder has no say in what runs here
    harden()
    while True:
        try:
            request = channel.receive()
        except Problem as problem:
            channel.send({"id": None, "ok": False, "error": problem.as_json()})
            continue
        if request is None:
            return
        answer(request, channel, digest)


def _keep_apart(fd_in: int, fd_out: int) -> tuple[int, int]:
    """Move the channel to descriptors that no child inherits; what else is printed goes to standard error."""
    apart = os.dup(fd_in), os.dup(fd_out)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    return apart


def harden() -> None:
    """No core dump may hold a token, and a hang-up or Ctrl-C does not end a request half-way.

    A soft limit of 1 also keeps the kernel from piping a core into a collector, which 0 does not (man 5 core).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if soft != 0 or hard != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))
    for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)


def answer(request: Any, channel: frames.Channel, digest: str) -> None:  # noqa: ANN401 - unchecked so far
    """Carry one request out; whatever happens, exactly one last answer is sent."""
    identity = request.get("id") if isinstance(request, dict) else None

    def progress(**fields: Any) -> None:  # noqa: ANN401 - JSON values
        channel.send(dict(fields, id=identity, ok=True, more=True))

    try:
        if not isinstance(request, dict):
            raise Problem("bad-request", "a request is a JSON object")  # noqa: TRY301 - the one place that answers
        folders = Folders.of(request.get("folders"))
        request["agent"] = digest
        result = answering(str(request.get("do")))(request, folders, channel, progress)
        channel.send(dict(result, id=identity, ok=True))
    except Problem as problem:
        extra = {} if problem.index is None else {"index": problem.index}
        channel.send(dict(extra, id=identity, ok=False, error=problem.as_json()))
    except OSError as error:
        refused = from_os_error(error, str(error.filename or "?"))
        channel.send({"id": identity, "ok": False, "error": refused.as_json()})
    except Exception as error:  # noqa: BLE001 - a bug must reach the controller without values and without a traceback
        channel.send({"id": identity, "ok": False, "error": {"class": "agent-bug", "message": place(error)}})


def place(error: BaseException) -> str:
    """Say where an exception came from: its type, file and line; never its text, which may hold values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = ""
    if trace is not None:
        where = " at {}:{}".format(trace.tb_frame.f_code.co_filename.rpartition("/")[2], trace.tb_lineno)
    return type(error).__name__ + where


def answering(name: str) -> Answering:
    """Return what answers a request of that name.

    Raises:
        Problem: `bad-request` where there is none.
    """
    if name == "observe":
        from .observe import observe as found  # noqa: PLC0415 - each run loads only what it uses
    elif name == "steps":
        from .steps import steps as found  # noqa: PLC0415 - as above
    elif name == "lock":
        from .lock import lock as found  # noqa: PLC0415 - as above
    elif name == "gate":
        from .gate import gate as found  # noqa: PLC0415 - as above
    elif name == "revisions":
        from .history import revisions as found  # noqa: PLC0415 - as above
    elif name == "log":
        from .logs import log as found  # noqa: PLC0415 - as above
    else:
        return _about_models(name)
    return found


def _about_models(name: str) -> Answering:
    """As `answering`, for what is asked about models' files, the Hub and the host itself."""
    if name == "checkpoint":
        from .checkpoint import checkpoint as found  # noqa: PLC0415 - each run loads only what it uses
    elif name == "checkup":
        from .checkup import checkup as found  # noqa: PLC0415 - as above
    elif name == "fetch":
        from .fetch import fetch as found  # noqa: PLC0415 - as above
    elif name == "hub-check":
        from .hub import hub_check as found  # noqa: PLC0415 - as above
    else:
        raise Problem("bad-request", "no request is called {!r}".format(name[:40]))
    return found


if __name__ == "__main__":
    main()

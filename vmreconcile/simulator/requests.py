"""A request for work, whatever its route: read, checked for its model, taken up, and what can become of it then.

Owns what all routes have in common: refusals in vLLM's envelope, a dead engine, one that hangs. Must not know what a
route answers.
"""

from __future__ import annotations

import json
import time
from typing import Any, NoReturn

from vmreconcile.simulator.httpd import Request
from vmreconcile.simulator.serving import Serving

Body = dict[str, Any]

DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DRAINING = "cannot schedule new futures after shutdown"
"""What vLLM 0.32.0 says to new requests while it finishes those that it has (and has been given time for)."""


class RefusedError(Exception):
    """A request that vLLM would not take: the status, and the error's type and parameter."""

    def __init__(
        self, message: str, *, status: int = 400, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        """Keep what the answer says."""
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


def read_body(request: Request) -> Body:
    """The request's JSON object.

    Raises:
        RefusedError: it has none.
    """
    try:
        body = json.loads(request.body)
    except ValueError:
        raise RefusedError("1 validation error:\n  {'type': 'json_invalid', 'msg': 'JSON decode error'}",
                           kind="Bad Request", param="body") from None  # fmt: skip
    if not isinstance(body, dict):
        raise RefusedError("1 validation error:\n  {'type': 'dict_type', 'loc': 'body'}", kind="Bad Request")
    return body


def named_model(serving: Serving, body: Body) -> str:
    """The model that is asked for; the first name where none is said.

    Raises:
        RefusedError: it is not served here.
    """
    model = body.get("model") or serving.options.served_names[0]
    if model not in serving.names():
        known = ", ".join(serving.names())
        raise RefusedError(f"The model `{model}` does not exist. Valid aliases: {known}.",
                           status=404, kind="NotFoundError", param="model")  # fmt: skip
    return str(model)


def take_up(serving: Serving, request: Request) -> float:
    """Hand a request to the engine, and count it; how long its work takes, in seconds.

    Raises:
        RefusedError: the engine is dead, or dies of it.
        OSError: the engine hangs, and the client went away after a while.
    """
    faults = serving.faults()
    if faults.crash_on_request and not serving.dead:
        serving.crash_wanted = True
        serving.wake()
    if serving.dead or serving.stopping or faults.crash_on_request:
        serving.refused_when_dead = serving.dead
        serving.wake()
        draining = serving.stopping and serving.patience and not serving.dead
        raise RefusedError(DRAINING if draining else DEAD, status=500, kind="InternalServerError")
    serving.begin()
    if faults.wedged:
        serving.hang()
        _stay_silent(serving, request)
    serving.recover()
    return faults.request_seconds


def work(serving: Serving, request: Request, seconds: float) -> float | None:
    """Let the time of a request pass; None where it did, else the part of it after which it was cut short.

    Raises:
        RefusedError: the engine died of a signal.
        OSError: it was ended, or began to hang, while this request was waited for.
    """
    begun = time.monotonic()
    if serving.work(seconds):
        if seconds and serving.faults().wedged:
            serving.hang()
            _stay_silent(serving, request)
        return None
    if serving.silent:
        _stay_silent(serving, request)
    if serving.dead:
        serving.end()
        raise RefusedError(DEAD, status=500, kind="InternalServerError")
    return min((time.monotonic() - begun) / seconds, 1.0) if seconds else 1.0


def _stay_silent(serving: Serving, request: Request) -> NoReturn:
    """Give no answer: wait until the client goes away.

    Raises:
        OSError: it went.
    """
    try:
        request.connection.recv(1)
    finally:
        serving.end()
    raise OSError("the client left without an answer")

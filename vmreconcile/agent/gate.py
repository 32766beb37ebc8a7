"""The request `gate`: is a server really serving? Health, its models, and one real answer.

/health stays 200 on a wedged engine, so only a completion counts (vllm#39863). The API key never leaves the host, and
is shown only to a port that our own process listens on.
"""

from __future__ import annotations

import time

from . import jsontext, masks, stop, survey
from .classify import classify
from .endpoint import Exchange, fetch, parse_models
from .folders import Folders, is_slug
from .observe import option
from .problems import Problem
from .questions import NO_ROUTE, NO_SUCH_ROUTE, NOT_THIS_ONE, questions
from .sockets import Listeners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .frames import Channel

SHOWN = 300


def gate(request: dict[str, Any], folders: Folders, channel: Channel, progress: Callable[..., None]) -> dict[str, Any]:
    """Answer `health`, `models` and `completion` of a server.

    Raises:
        Problem: `bad-request`.
    """
    del channel, progress
    slug, port, address = request.get("slug"), request.get("port"), request.get("address", "")
    timeout, named, runner = request.get("timeout", 30.0), request.get("model"), request.get("runner", "")
    good = is_slug(slug) and type(port) is int and 0 < port < 65536 and isinstance(address, str)
    good = good and (named is None or isinstance(named, str)) and isinstance(runner, str)
    if not good or not isinstance(timeout, (int, float)) or not 0 < timeout <= 3600:
        raise Problem("bad-request", "gate needs slug, address, port and timeout")
    until = time.monotonic() + timeout
    problem, heard, key = _server(str(slug), int(str(port)), folders)
    where = (heard or address, int(str(port)))
    asked = bool(request.get("completion", True))
    answer: dict[str, Any] = {"health": None, "models": [], "problem": problem, "completion": None}
    if problem is not None:
        answer["completion"] = _failed(problem) if asked else None
        return answer
    health, models = Exchange(*where, "/health", key), Exchange(*where, "/v1/models", key)
    fetch([health, models], min(timeout, 10.0))
    answer["health"] = health.status or None
    answer["problem"] = health.problem or None
    listed = models.json() if models.status == 200 else None
    answer["models"] = parse_models(listed)
    name = named or _first_model(listed)
    if asked and health.status != 200:
        answer["completion"] = _failed(health.problem or "/health says {}".format(health.status))
    elif asked and not name:
        answer["completion"] = _failed("/v1/models names no model")
    elif asked:
        answer["completion"] = complete(where, (name, runner), key, until)
    return answer


def _server(slug: str, port: int, folders: Folders) -> tuple[str | None, str, str]:
    """Who listens there: (why it is not our server, the address it listens on, its API key)."""
    known = stop.known_now(folders, with_units=True)
    verdict = classify(survey.processes(known), known)
    root = verdict.roots.get(slug)
    if root is None:
        return "no process of this server runs", "", ""
    listeners = Listeners()
    heard = listeners.of([root.pid, *(child.pid for child in verdict.children[root.pid])])
    if port not in {number for _, number in heard}:
        taken = [str(pid or "?") for _, pid, _ in listeners.taken([port])]
        if taken:
            return "port {} is held by pid {}, which is not this server".format(port, taken[0]), "", ""
        return "not listening on port {}".format(port), "", ""
    entries = survey.Survey(folders).environment(slug)[0]
    key = entries.get("VLLM_API_KEY", "") or option(root.argv, "--api-key", "")
    return None, next(address for address, number in heard if number == port), key


def _first_model(listed: Any) -> str:  # noqa: ANN401 - whatever the server says
    """The model that the server was started with; adapters come after it."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    first = rows[0] if isinstance(rows, list) and rows else None
    name = first.get("id") if isinstance(first, dict) else None
    return name if isinstance(name, str) else ""


def _failed(problem: str, seconds: float = 0.0) -> dict[str, Any]:
    """A completion that was none."""
    return {"ok": False, "seconds": round(seconds, 3), "problem": masks.mask_text(problem)[:SHOWN]}


def complete(where: tuple[str, int], what: tuple[str, str], key: str, until: float) -> dict[str, Any]:
    """Ask the model (name, runner) one thing, one token where it writes, by the first of the routes that it serves."""
    begun = time.monotonic()
    missing = said = ""
    for path, body in questions(what[1]):
        left = until - time.monotonic()
        if left <= 0:
            break
        exchange = Exchange(*where, path, key, jsontext.dumps(dict(body, model=what[0])).encode("ascii"))
        fetch([exchange], left)
        if exchange.status == 200:
            return {"ok": True, "seconds": round(time.monotonic() - begun, 3), "problem": None, "path": path}
        told = exchange.problem or "status {} {}".format(
            exchange.status, exchange.body[:SHOWN].decode("utf-8", "replace")
        )
        told = "{}: {}".format(path, told)
        if exchange.status not in NOT_THIS_ONE:
            said = told
            break
        if exchange.status in NO_ROUTE and NO_SUCH_ROUTE in exchange.body:
            missing = missing or told
        else:
            said = said or told  # a model that is not there is 404, too
    return _failed(said or missing or "no time left", time.monotonic() - begun)

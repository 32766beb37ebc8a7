"""Servers that are healthy and do no work. `/health` stays 200 on an engine that hangs (vllm#39863).

A false alarm restarts a busy server, so three things must come together: requests run; nothing that any of them could
move has moved for `WINDOW_S`; and one token, asked for then, did not come within `ANSWER_S`, in which nothing moved
either. Measured on vLLM 0.32.0 with its engine stopped: these numbers stand still, whoever comes and leaves. Who has
nothing to do is asked nothing: an engine that began to hang before it took up a request counts none, and is not seen.
"""

from __future__ import annotations

import time

from . import jsontext
from .endpoint import Exchange, fetch, in_turn
from .metrics import parse_metrics
from .questions import NO_ROUTE, questions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable

    Where = tuple[str, int, str]

QUICK_S = (0.05, 0.1, 0.2)  # a server at work has moved by then
PAUSE_S = 1.0
WINDOW_S = 5.0
ANSWER_S = 20.0
PAGE_S = 2.0
MOVING = frozenset(
    b"vllm:" + name
    for name in (
        b"num_requests_running",
        b"num_requests_waiting",
        b"kv_cache_usage_perc",  # moves with each part of a long prompt, before any token is counted
        b"gpu_cache_usage_perc",  # its name up to 0.10
        b"prompt_tokens_total",
        b"generation_tokens_total",
        b"request_success_total",
        b"num_preemptions_total",
        b"iteration_tokens_total_count",
    )
)


def marks(page: bytes) -> bytes:
    """What must change on the page of metrics as soon as any request moves."""
    return b"\n".join(line for line in page.split(b"\n") if line.partition(b"{")[0] in MOVING)


def stalled(wanted: dict[str, Where], names: dict[str, str], pages: dict[str, bytes]) -> dict[str, float]:
    """For how many seconds servers that hang did nothing. `pages` are the metrics of those that have requests.

    `wanted` holds address, port and key of each server, `names` a model that it shows.
    """
    begun = time.monotonic()
    still = {slug: marks(page) for slug, page in pages.items()}
    for pause in QUICK_S:
        still = _unmoved(wanted, still, pause)
    while still and time.monotonic() - begun < WINDOW_S:
        still = _unmoved(wanted, still, PAUSE_S)
    silent = _unanswered({slug: wanted[slug] for slug in still}, names) if still else ()
    still = _unmoved(wanted, {slug: still[slug] for slug in silent}, 0.0)
    return {slug: round(time.monotonic() - begun, 1) for slug in still}


def _unmoved(wanted: dict[str, Where], still: dict[str, bytes], pause: float) -> dict[str, bytes]:
    """Those that after a pause still have requests, and have moved none; who does not tell is no suspect any more."""
    if not still:
        return still
    time.sleep(pause)
    asked = {slug: Exchange(*wanted[slug][:2], "/metrics", wanted[slug][2]) for slug in still}
    fetch(list(asked.values()), PAGE_S)
    return {
        slug: still[slug]
        for slug, page in asked.items()
        if page.status == 200 and marks(page.body) == still[slug] and parse_metrics(page.body)["requests_running"]
    }


def _unanswered(wanted: dict[str, Where], names: dict[str, str]) -> Iterable[str]:
    """Those that do not answer one request of their own task in time."""
    asked = {}
    for slug, (path, body) in _routes(wanted).items():
        data = jsontext.dumps(dict(body, model=names[slug])).encode("ascii")
        asked[slug] = Exchange(*wanted[slug][:2], path, wanted[slug][2], data)
    fetch(list(asked.values()), ANSWER_S)
    return [slug for slug, exchange in asked.items() if exchange.late]


def _routes(wanted: dict[str, Where]) -> dict[str, tuple[str, dict[str, object]]]:
    """The first question that each server has a route for; an empty body is refused without asking the engine."""
    every = questions("")
    asked = {slug: [Exchange(*where[:2], path, where[2], b"{}") for path, _ in every] for slug, where in wanted.items()}
    fetch([in_turn(row) for row in asked.values()], PAGE_S)
    found = {}
    for slug, row in asked.items():
        there = [question for question, said in zip(every, row) if said.status and said.status not in NO_ROUTE]
        if there:
            found[slug] = there[0]
    return found

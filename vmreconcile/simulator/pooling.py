"""`/v1/embeddings`, `/pooling`, `/classify` and `/score`: what a model answers that pools instead of writing.

Owns the answers' shapes, which are those of vLLM 0.32.0. The numbers mean nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

from vmreconcile.simulator.httpd import Request, Response
from vmreconcile.simulator.requests import Body, RefusedError, named_model, read_body, take_up, work
from vmreconcile.simulator.serving import Serving, new_id

WIDTH = 8
"""Numbers of an embedding."""

_Row = Callable[[int], dict[str, object]]
_ROWS: Mapping[str, tuple[str, str, _Row]] = {
    "/v1/embeddings": ("embd", "list", lambda at: {"index": at, "object": "embedding", "embedding": [0.5] * WIDTH}),
    "/pooling": ("pooling", "list", lambda at: {"index": at, "object": "pooling", "data": [0.5] * WIDTH}),
    "/classify": (
        "classify",
        "list",
        lambda at: {"index": at, "label": "LABEL_0", "probs": [0.5, 0.5], "num_classes": 2},
    ),
    "/score": ("score", "list", lambda at: {"index": at, "object": "score", "score": 0.5}),
}

ROUTES: Mapping[str, tuple[str, ...]] = {
    "embed": ("/v1/embeddings", "/pooling", "/score"),
    "classify": ("/classify", "/pooling", "/score"),
}
"""The routes that there are, by what the model was converted to (vLLM 0.32.0: entrypoints/pooling/factories.py)."""


def pool(serving: Serving, request: Request) -> Response:
    """Answer a request for an embedding, a class or a score, by the route that it came to.

    Raises:
        RefusedError: the request is one that vLLM would refuse.
    """
    body = read_body(request)
    model = named_model(serving, body)
    given = _given(request.path, body)
    work(serving, request, take_up(serving, request))
    tokens = max(1, len(json.dumps(given).split()))
    serving.end(prompt=tokens, finished=True)
    prefix, kind, row = _ROWS[request.path]
    answer = {
        "id": new_id(prefix),
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "data": [row(index) for index in range(len(given) if isinstance(given, list) else 1)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }
    return Response(body=json.dumps(answer, separators=(",", ":")).encode(), content_type="application/json")


def _given(path: str, body: Body) -> object:
    """What is to be pooled."""
    names = ("text_1", "text_2") if path == "/score" else ("input",)
    for name in names:
        if not body.get(name):
            text = f"1 validation error:\n  {{'type': 'missing', 'loc': 'body.{name}', 'msg': 'Field required'}}"
            raise RefusedError(text, kind="Bad Request", param=f"body.{name}")
    return body[names[-1]]

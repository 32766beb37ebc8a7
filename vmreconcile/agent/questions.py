"""What proves that a model works: the smallest request of each task."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GENERATE = (
    ("/v1/completions", {"prompt": "1", "max_tokens": 1, "temperature": 0}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1, "temperature": 0}),
)
POOL = (
    ("/v1/embeddings", {"input": "1"}),
    ("/pooling", {"input": "1"}),
    ("/classify", {"input": "1"}),
    ("/score", {"text_1": "1", "text_2": "1"}),
)
NO_ROUTE = (404, 405)  # a task that the server does not have has no route (0.32.0), or says so with 400 (older)
NO_SUCH_ROUTE = b'{"detail":'  # as FastAPI says it; what vLLM itself says has an "error"
NOT_THIS_ONE = (400, *NO_ROUTE, 422, 501)


def questions(runner: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Each a path and a body without the model's name, in the order to be tried: `runner` is vLLM's, "" not known."""
    return POOL + GENERATE if runner == "pooling" else GENERATE + POOL

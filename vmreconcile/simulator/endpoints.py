"""The routes of a simulated server: which exist, who may ask, what they answer.

Owns routing, the API key and the answers' envelopes. Must not touch processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from vmreconcile.simulator.completions import complete
from vmreconcile.simulator.httpd import REASONS, Request, Response
from vmreconcile.simulator.log import write
from vmreconcile.simulator.metrics import metrics_page
from vmreconcile.simulator.pooling import ROUTES, pool
from vmreconcile.simulator.requests import RefusedError
from vmreconcile.simulator.serving import Serving, new_id

GUARDED = ("/v1", "/v2", "/inference")
OWNER = "vllm-simulator"
_Route = Callable[[Serving, Request], Response]


def answer(serving: Serving, request: Request) -> Response:
    """Answer one request and write its line to the access log."""
    try:
        response = _authorised(serving, request)
    except RefusedError as refused:
        error = {"message": str(refused), "type": refused.kind, "param": refused.param, "code": refused.status}
        response = _json({"error": error}, status=refused.status)
    if serving.options.access_log:
        line = f"{request.method} {request.path} HTTP/1.1"
        write(f'INFO:     {request.client} - "{line}" {response.status} {_reason(response.status)}\n')
    return response


def routes(serving: Serving) -> dict[str, dict[str, _Route]]:
    """Every path with its methods; those of a task, and the adapters', are there only where vLLM has them."""
    found: dict[str, dict[str, _Route]] = {
        "/health": {"GET": _health},
        "/load": {"GET": lambda serving, _: _json({"server_load": serving.running})},
        "/metrics": {"GET": _metrics},
        "/ping": {"GET": _health, "POST": _health},
        "/v1/models": {"GET": _models},
        "/version": {"GET": lambda serving, _: _json({"version": serving.version})},
    }
    if serving.options.pools:
        found |= {path: {"POST": pool} for path in ROUTES[serving.options.pools]}
    else:
        found["/v1/chat/completions"] = {"POST": lambda serving, request: complete(serving, request, chat=True)}
        found["/v1/completions"] = {"POST": lambda serving, request: complete(serving, request, chat=False)}
    if serving.options.enable_lora and serving.runtime_lora:
        found["/v1/load_lora_adapter"] = {"POST": _load_adapter}
        found["/v1/unload_lora_adapter"] = {"POST": _unload_adapter}
    return found


def _authorised(serving: Serving, request: Request) -> Response:
    """Check the key where one is wanted, then find the route."""
    if serving.api_keys and request.path.startswith(GUARDED):
        word, _, key = request.headers.get("authorization", "").partition(" ")
        if word.lower() != "bearer" or key not in serving.api_keys:
            return _json({"error": "Unauthorized"}, status=401)
    methods = routes(serving).get(request.path)
    if methods is None:
        return _json({"detail": "Not Found"}, status=404)
    if request.method not in methods:
        return Response(
            status=405,
            body=b'{"detail":"Method Not Allowed"}',
            content_type="application/json",
            headers=(("allow", ", ".join(sorted(methods))),),
        )
    return methods[request.method](serving, request)


def _json(value: object, *, status: int = 200) -> Response:
    """Wrap a value the way FastAPI writes it."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(status=status, body=body, content_type="application/json")


def _reason(status: int) -> str:
    """The words beside a status in the access log."""
    return REASONS[status]


def _health(serving: Serving, _request: Request) -> Response:
    """200 unless the engine is dead: a wedged engine is not noticed here, as in vLLM."""
    return Response(status=503 if serving.dead else 200)


def _metrics(serving: Serving, _request: Request) -> Response:
    """The metrics as text."""
    return Response(body=metrics_page(serving).encode(), content_type="text/plain; version=1.0.0; charset=utf-8")


def _models(serving: Serving, _request: Request) -> Response:
    """The served names, then the adapters."""
    options = serving.options
    cards = [_card(serving, name, options.model, None, options.max_model_len) for name in options.served_names]
    first = options.served_names[0]
    cards += [_card(serving, name, path, first, None) for name, path in serving.adapters.items()]
    return _json({"object": "list", "data": cards})


def _card(serving: Serving, name: str, root: str, parent: str | None, limit: int | None) -> dict[str, object]:
    """One model as `/v1/models` shows it."""
    permission = {
        "id": new_id("modelperm"),
        "object": "model_permission",
        "created": serving.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": OWNER,
        "root": root,
        "parent": parent,
        "max_model_len": limit,
        "permission": [permission],
    }


def _adapter_body(request: Request, required: str) -> dict[str, object]:
    """Read an adapter request's body, which must have the field `required`."""
    try:
        body = json.loads(request.body)
    except ValueError:
        body = None
    if not isinstance(body, dict) or required not in body:
        text = f"1 validation error:\n  {{'type': 'missing', 'loc': 'body.{required}', 'msg': 'Field required'}}"
        raise RefusedError(text, kind="Bad Request", param=f"body.{required}")
    return body


def _load_adapter(serving: Serving, request: Request) -> Response:
    """Load a LoRA adapter from a folder that has its configuration."""
    body = _adapter_body(request, "lora_name")
    name, path = str(body["lora_name"]), str(body.get("lora_path") or "")
    if not name or not path:
        raise RefusedError("Both 'lora_name' and 'lora_path' must be provided.", kind="InvalidUserInput")
    if name in serving.adapters and not body.get("load_inplace"):
        text = (
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True."
        )
        raise RefusedError(text, kind="InvalidUserInput")
    if Path(path).is_absolute() and not Path(path, "adapter_config.json").exists():
        text = f"Loading lora {name} failed: No adapter found for <path>"
        raise RefusedError(text, status=404, kind="NotFoundError")
    serving.adapters[name] = path
    serving.log("serving.py:226", f"Loaded new LoRA adapter: name '{name}', path '{path}'")
    return Response(body=f"Success: LoRA adapter '{name}' added successfully.".encode())


def _unload_adapter(serving: Serving, request: Request) -> Response:
    """Unload a LoRA adapter by name."""
    name = str(_adapter_body(request, "lora_name")["lora_name"])
    if serving.adapters.pop(name, None) is None:
        raise RefusedError(f"The lora adapter '{name}' cannot be found.", status=404, kind="NotFoundError")
    serving.log("serving.py:244", f"Removed LoRA adapter: name '{name}'")
    return Response(body=f"Success: LoRA adapter '{name}' removed successfully.".encode())

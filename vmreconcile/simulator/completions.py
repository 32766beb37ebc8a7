"""`/v1/completions` and `/v1/chat/completions`: the answers' shapes, whole and streamed, with words from nobody.

Owns what a completion looks like. Every text says that a simulator wrote it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vmreconcile.simulator.httpd import Request, Response
from vmreconcile.simulator.requests import RefusedError, named_model, read_body, take_up, work
from vmreconcile.simulator.serving import Serving, new_id

WORDS = " this text comes from a simulator of vLLM, not from a model.".replace(" ", "| ").split("|")[1:]
DEFAULT_TOKENS = 16
_Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request for tokens, checked."""

    chat: bool
    model: str
    prompt_tokens: int
    tokens: int
    choices: int
    stream: bool
    usage: bool


def complete(serving: Serving, request: Request, *, chat: bool) -> Response:
    """Answer a completion; with the fault `wedged` stay silent until the client goes away.

    Raises:
        RefusedError: the request is one that vLLM would refuse.
    """
    asked = _read(serving, request, chat=chat)
    seconds = take_up(serving, request)
    if asked.stream:
        return Response(
            stream=_stream(serving, asked, seconds, request), content_type="text/event-stream; charset=utf-8"
        )
    reason, done = "length", work(serving, request, seconds)
    if done is not None:
        asked, reason = replace(asked, tokens=int(asked.tokens * done)), "abort"
    serving.end(prompt=asked.prompt_tokens, generated=asked.tokens * asked.choices)
    body = json.dumps(_whole(serving, asked, reason), separators=(",", ":")).encode()
    return Response(body=body, content_type="application/json")


def _read(serving: Serving, request: Request, *, chat: bool) -> _Asked:
    """Check a request's body as vLLM does, in its order."""
    body = read_body(request)
    model = named_model(serving, body)
    prompt = body.get("messages") if chat else body.get("prompt")
    if not prompt:
        param = "messages" if chat else "prompt"
        raise RefusedError(
            f"Either {param} or prompt_embeds must be provided and non-empty. (parameter={param})", param=param
        )
    limit = serving.options.max_model_len
    tokens = body.get("max_completion_tokens") or body.get("max_tokens") or min(DEFAULT_TOKENS, limit)
    if not isinstance(tokens, int) or tokens < 1:
        raise RefusedError(f"max_tokens must be at least 1, got {tokens}. (parameter=max_tokens)", param="max_tokens")
    if tokens > limit:
        raise RefusedError(
            f"max_tokens={tokens} cannot be greater than max_model_len={limit}. Please request fewer output tokens. "
            f"(parameter=max_tokens, value={tokens})",
            param="max_tokens",
        )
    options = body.get("stream_options") or {}
    return _Asked(
        chat=chat,
        model=model,
        prompt_tokens=max(1, len(json.dumps(prompt).split())),
        tokens=tokens,
        choices=body.get("n") or 1,
        stream=bool(body.get("stream")),
        usage=bool(options.get("include_usage")),
    )


def _word(index: int) -> str:
    """The text of a token."""
    return WORDS[index % len(WORDS)]


def _frame(serving: Serving, asked: _Asked, identifier: str, choices: list[_Json]) -> _Json:
    """The fields that every answer and every part of one have."""
    kind = "chat.completion" + ".chunk" * asked.stream if asked.chat else "text_completion"
    return {
        "id": identifier,
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
        "choices": choices,
        "system_fingerprint": f"vllm-{serving.version}",
    }


def _usage(asked: _Asked) -> _Json:
    """Count tokens for the answer."""
    generated = asked.tokens * asked.choices
    return {
        "prompt_tokens": asked.prompt_tokens,
        "total_tokens": asked.prompt_tokens + generated,
        "completion_tokens": generated,
    }


def _whole(serving: Serving, asked: _Asked, reason: str) -> _Json:
    """An answer in one piece."""
    text = "".join(map(_word, range(asked.tokens)))
    choices: list[_Json] = []
    for index in range(asked.choices):
        said: _Json = {"text": text}
        if asked.chat:
            said = {"message": {"role": "assistant", "content": text.lstrip(), "refusal": None, "reasoning": None}}
        choices.append({"index": index, **said, "logprobs": None, "finish_reason": reason, "stop_reason": None})
    identifier = new_id("chatcmpl" if asked.chat else "cmpl")
    return _frame(serving, asked, identifier, choices) | {"usage": _usage(asked)}


def _stream(serving: Serving, asked: _Asked, seconds: float, request: Request) -> Iterator[bytes]:
    """An answer in server-sent events, one a token, evenly over `seconds`."""
    identifier = new_id("chatcmpl" if asked.chat else "cmpl")
    generated = 0
    try:
        for number in range(asked.tokens):
            going = serving.work(seconds / asked.tokens)
            if not going and serving.silent:
                request.connection.recv(1)
            if not going and (serving.silent or serving.dead):
                raise OSError("no more of it comes")
            last = number == asked.tokens - 1 or not going
            said: _Json = {"text": _word(number)}
            if asked.chat:
                role = {"role": "assistant"} if number == 0 else {}
                said = {"delta": role | {"content": _word(number)}}
            part = {"logprobs": None, "finish_reason": ("length" if going else "abort") if last else None}
            choices: list[_Json] = [{"index": index, **said, **part} for index in range(asked.choices)]
            yield _event(_frame(serving, asked, identifier, choices))
            generated += asked.choices
            if last:
                break
        if asked.usage:
            yield _event(_frame(serving, asked, identifier, []) | {"usage": _usage(asked)})
        yield b"data: [DONE]\n\n"
    finally:
        serving.end(prompt=asked.prompt_tokens, generated=generated)


def _event(value: _Json) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"

"""GPUs of a model against what its vLLM takes, and needs of its KV cache against what else is said of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.core.checks.environment import GPUS
from vmreconcile.core.checks.source import Finding, dotted
from vmreconcile.core.checks.stacks import Said, Stack
from vmreconcile.core.needs import requests_of, tokens_of
from vmreconcile.errors import Severity
from vmreconcile.model.showing import shown
from vmreconcile.vllm.world import WORLD, gpus_needed

SHARE, LENGTH, CACHE = "gpu_memory_utilization", "max_model_len", "kv_cache_memory_bytes"

ASKED = WORLD | {SHARE, LENGTH, CACHE}
"""The arguments that are looked at."""

_PRODUCT = "tensor_parallel_size x pipeline_parallel_size x data_parallel_size"


def check_gpus(stack: Stack) -> Iterator[Finding]:
    """Look at `gpus`: as many as vLLM takes, and said once."""
    gpus = stack.said("gpus")
    count = _count(gpus)
    if gpus is None or count is None:
        return
    needed = gpus_needed({name: said.value for name, said in stack.args.items()})
    if needed and needed != count:
        yield _too_few(gpus, count, needed, stack) if needed > count else _too_many(gpus, count, needed)
    variable = stack.said("env", GPUS)
    if variable is not None:
        yield Finding(
            path=(variable if variable.level >= gpus.level else gpus).path,
            code="env-owned",
            summary=f"{GPUS} and gpus say the same thing twice.",
            why="The GPUs of a server are handed to it in this very variable.",
            remedy="Keep gpus and remove the variable.",
            at_key=True,
        )


def _count(gpus: Said | None) -> int | None:
    """How many GPUs are given, None where that is left open, or cannot be read."""
    value = gpus.value if gpus else None
    if isinstance(value, list):
        return len(value) if len(set(map(str, value))) == len(value) > 0 else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _too_few(gpus: Said, count: int, needed: int, stack: Stack) -> Finding:
    sizes = {name: stack.args[name] for name in sorted(WORLD & stack.args.keys())}
    elsewhere = [f" {name} is said in {said.origin}." for name, said in sizes.items() if said.origin]
    return Finding(
        path=max([gpus, *sizes.values()], key=lambda each: each.level).path,
        code="too-few-gpus",
        summary=f"{needed} GPUs are needed, gpus gives {count}.",
        why=f"{_PRODUCT} GPUs make one server.{''.join(elsewhere)}",
        remedy=f"Give {needed} GPUs, or leave gpus out.",
        at_key=True,
    )


def _too_many(gpus: Said, count: int, needed: int) -> Finding:
    return Finding(
        path=gpus.path,
        code="idle-gpus",
        summary=f"gpus gives {count}, and vLLM takes {needed}.",
        why=f"GPUs beyond {_PRODUCT} stay idle, and are kept from others.",
        remedy=f"Write tensor_parallel_size: {count} to spread the model over them, or give {needed}."
        if needed == 1
        else f"Give {needed}, or make the parallel sizes larger.",
        severity=Severity.WARNING,
    )


def check_needs(stack: Stack) -> Iterator[Finding]:
    """Look at `needs`: readable, enough for one request, and not overruled."""
    tokens, requests = stack.said("needs", "kv_tokens"), stack.said("needs", "concurrency")
    stated = max((said for said in (tokens, requests) if said), key=lambda said: said.level, default=None)
    if stated is None:
        return
    yield from _unreadable(tokens)
    yield from _less_than_one_request(tokens, requests, stack.args.get(LENGTH))
    cache, share = stack.args.get(CACHE), stack.args.get(SHARE)
    if cache is not None:
        yield _overruled(
            cache,
            stated,
            code="needs-overruled",
            summary=f"{CACHE} alone says how large the KV cache is; needs does not count.",
            remedy="Keep one of them.",
        )
    elif share is not None and isinstance(share.value, float) and 0 < share.value <= 1:
        yield _overruled(
            share,
            stated,
            code="needs-only-checked",
            summary=f"{SHARE} stays {share.value:g}, as written; needs is only checked against it.",
            remedy=f"Take the number out, or write {SHARE}: auto, and it is worked out from needs.",
        )


def _overruled(stronger: Said, stated: Said, *, code: str, summary: str, remedy: str) -> Finding:
    """A warning at what was written last; the inventory's value is named."""
    return Finding(
        path=(stronger if stronger.level >= stated.level else stated).path,
        code=code,
        summary=summary,
        why=f"It is said in {stronger.origin}." if stronger.origin else "",
        remedy=remedy,
        at_key=True,
        severity=Severity.WARNING,
    )


def _unreadable(tokens: Said | None) -> Iterator[Finding]:
    """A text that has the form of a number of tokens, and is none."""
    if tokens is not None and isinstance(tokens.value, str) and tokens_of(tokens.value) is None:
        yield Finding(
            path=tokens.path,
            code="wrong-value",
            summary=f"{dotted(tokens.path)} cannot be {shown(tokens.value)}.",
            why="kv_tokens is a whole number from 1, or one with a suffix such as 200k or 256K.",
        )


def _less_than_one_request(tokens: Said | None, requests: Said | None, length: Said | None) -> Iterator[Finding]:
    """Such a cache is refused (vLLM 0.32.0, v1/core/kv_cache_utils.py: _check_enough_kv_cache_memory)."""
    count, longest = tokens_of(tokens.value) if tokens else None, tokens_of(length.value) if length else None
    if tokens and count is not None and longest is not None and count < longest:
        yield _small(tokens, f"is {count}, less than one request of max_model_len, {longest}", f"{longest} or more")
    number = requests_of(requests.value) if requests else None
    if requests and number is not None and number < 1:
        yield _small(requests, f"is {number:g}, less than one request", "1 or more")


def _small(said: Said, what: str, instead: str) -> Finding:
    return Finding(
        path=said.path,
        code="needs-too-small",
        summary=f"{dotted(said.path)} {what}.",
        why="vLLM does not start with a KV cache that cannot hold one request of the longest context.",
        remedy=f"Write {instead}, or make max_model_len smaller.",
        severity=Severity.WARNING,
    )

"""A model's files on its host before the server needs them: nothing that runs is stopped while they are fetched."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from vmreconcile.core.fingerprints import shown
from vmreconcile.core.gpus.lanes import starts
from vmreconcile.effects.fleet import Answer, Fleet
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import VmreconcileError
from vmreconcile.flows.ready import Interrupted
from vmreconcile.flows.run import Run
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Change
from vmreconcile.model.secret import HIDDEN, Secret

SILENCE_S = 120.0
"""The agent says something every two seconds while it fetches; the Hub may take its time before that."""

GIB = 1 << 30
LARGEST = 1 << 63
KIND = "fetch-"
BEARABLE = frozenset({"no_hub"})
"""Kinds for which the server is started anew all the same: nothing is known to be missing."""

BEARABLE_AT_A_START = BEARABLE | {"hub_unreachable", "offline", "failed"}
"""Kinds for which a server that does not run is started all the same: vLLM may find what it needs in its own way."""

REMEDIES: Mapping[str, str] = {
    "disk_full": "free space there (hf cache prune), or set HF_HOME under env to another disk",
    "gated": "ask for access on the model's page, with the account that vmreconcile auth status names",
    "bad_token": "vmreconcile auth status tells which token it is; log in anew",
    "no_such_repo": "correct model:, or name a token source whose account may see it",
    "revision_not_found": "correct revision:",
    "no_permission": "let the user that vmreconcile works as write to the cache, or set HF_HOME under env",
    "disk_error": "look at the file system of the cache there (vmreconcile doctor), or set HF_HOME under env",
    "no_hub": "nothing was fetched: vLLM itself does so at its start",
    "hub_unreachable": "look at the host's network, HTTPS_PROXY and HF_ENDPOINT (vmreconcile doctor)",
    "untrusted": "see what answers at HF_ENDPOINT: the Hub names commits and files by letters and digits alone",
    "offline": "unset HF_HUB_OFFLINE for this server, or bring the files there yourself",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What is on the host now: bytes fetched in this run (0: it was there), in all, and where."""

    fetched: int
    total: int
    path: str


class NotFetched(VmreconcileError):  # noqa: N818 - an outcome, reported as one
    """The files could not be fetched; what came stays, and is not fetched again."""

    def __init__(self, failure: Failure) -> None:
        """Keep the failure."""
        super().__init__(failure.summary, remedy=failure.remedy)
        self.failure = failure

    def bearable(self, *, disruptive: bool) -> bool:
        """Whether to go on without them; `disruptive`: something that runs would be stopped for it."""
        return self.failure.kind in (BEARABLE if disruptive else BEARABLE_AT_A_START)


def fetch(
    server: DesiredServer, fleet: Fleet, secrets: Mapping[str, Secret], tell: Callable[[float, str], None]
) -> Fetched:
    """Fetch on the server's host; `tell` hears seconds and a line every two seconds, and may raise to end it.

    Raises:
        NotFetched: with class and remedy.
        UnreachableError: the host was lost.
    """
    begun = time.monotonic()

    def progress(answer: Answer) -> None:
        tell(time.monotonic() - begun, _line(server, answer))

    setting = server.settings.get("load_format")
    payload: dict[str, object] = {
        "do": "fetch",
        "slug": server.id.slug,
        "model": server.model,
        "revision": server.revision or "",
        "executable": server.executable,
        "load_format": str(setting.value) if setting else "",
        "env": {name: _guarded(name, str(each.value)) for name, each in server.env.items()},
        "token": server.token,
        "secrets": {name: secret for name, secret in secrets.items() if name == server.token},
    }
    try:
        answer = fleet.request(server.id.host, payload, timeout=SILENCE_S, on_progress=progress)
    except AgentError as error:
        raise NotFetched(_failure(server, error)) from error
    return Fetched(
        fetched=_whole(answer.get("fetched")), total=_whole(answer.get("total")), path=str(answer.get("path") or "")
    )


def fetch_first(changes: Iterable[Change], run: Run) -> dict[ServerId, Failure]:
    """Fetch models for servers that ask for it before anything of theirs is stopped; why some must not go on."""
    failed: dict[ServerId, Failure] = {}
    for change in changes:
        wanted = run.desired.get(change.server)
        if wanted is None or not (wanted.prefetch and starts(change) and wanted.from_hub):
            continue
        if run.stopping.is_set():
            break
        try:
            fetch(wanted, run.fleet, run.secrets, functools.partial(_tell, change.server, run))
        except NotFetched as error:
            if error.bearable(disruptive=change.disruptive):
                run.reporter.says(change.server, f"{error.failure.summary}; going on without")
            else:
                failed[change.server] = replace(error.failure, untouched=True)
        except Interrupted:
            run.fleet.drop(change.server.host)  # the agent ends the fetching as its controller goes away
            break
    return failed


def _tell(server: ServerId, run: Run, seconds: float, line: str) -> None:
    """Tell of a fetch that goes on.

    Raises:
        Interrupted: the person asked to stop.
    """
    run.reporter.waits(server, seconds, line)
    if run.stopping.is_set():
        raise Interrupted("interrupted")


def _guarded(name: str, value: str) -> str | Secret:
    """A value that looks like a secret as one: it is looked for in what the host says, which a `1` must not be."""
    return Secret(value) if shown(name, value) == HIDDEN else value


def _line(server: DesiredServer, answer: Answer) -> str:
    if answer.get("event") == "size":
        need, free = _whole(answer.get("need")) / GIB, _whole(answer.get("free")) / GIB
        return f"{server.model}: {need:.2f} GiB to fetch, {free:.1f} GiB free"
    done, total = _whole(answer.get("done")) / GIB, _whole(answer.get("total")) / GIB
    return f"fetching {server.model}: {done:.2f} of {total:.2f} GiB" if total else f"asking the Hub for {server.model}"


def _failure(server: DesiredServer, error: AgentError) -> Failure:
    kind = error.kind.removeprefix(KIND).replace("-", "_")
    return Failure(
        kind=kind,
        summary=f"{server.id}: {server.model} could not be fetched: {error}",
        remedy=error.remedy or REMEDIES.get(kind, "fetch it on the host by hand (hf download), or go without prefetch"),
    )


def _whole(value: object) -> int:
    """A number of bytes, whatever a host calls one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST else 0

"""Tokens and access as hosts have them: each env file and process, and what the Hub says to the hosts themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmreconcile.core.access import Asker, chose_offline, question_about
from vmreconcile.core.diff import other_tokens
from vmreconcile.core.launching import TOKEN_VARIABLE
from vmreconcile.core.planning import subject_of
from vmreconcile.effects.fleet import Answer
from vmreconcile.effects.lost import reached
from vmreconcile.effects.parallel import for_each
from vmreconcile.flows.prepare import Prepared
from vmreconcile.flows.reconcile import within
from vmreconcile.model.access import CHOSEN, Access, Question, Verdict
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import EnvFile, EnvValue, HostView, TokenPlace, Unreachable
from vmreconcile.model.secret import Secret

ASK_TIMEOUT_S = 10.0
SHORT = 8
"""Digits of a salted fingerprint that are shown: enough to see which hosts have the same token."""

WHOSE = ("controller", "env-file", "none")
"""Whose token a host may have asked with (docs/wire.md)."""

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOnHost:
    """One server's token on its host. `right` and `current` are None where nothing can be said of them."""

    server: ServerId
    source: str | None
    file: EnvFile | None
    fingerprint: str = ""
    right: bool | None = None
    """Whether the env file holds the token that its source gives (or none, where it is to have none)."""
    age: float = 0.0
    pid: int | None = None
    current: bool | None = None
    """Whether the running process has just that."""
    places: tuple[TokenPlace, ...] = ()

    @property
    def good(self) -> bool:
        """Nothing is wrong with it, as far as can be seen."""
        if self.file is None:
            return self.pid is None and not self.places  # without its file, what runs could not be started again
        own = self.file.mode == 0o600 and not self.file.problem
        return own and self.right is not False and self.current is not False and not self.places


def tokens_on_hosts(prepared: Prepared) -> tuple[tuple[TokenOnHost, ...], tuple[Unreachable, ...]]:
    """Every wanted server of the selected hosts, and the hosts that could not be seen."""
    view = prepared.fleet.observe(prepared.hosts, once=True)
    found = []
    for server in within(prepared).servers:
        host = view.host(server.id.host)
        if host is not None and server.state is not DesiredState.ABSENT:
            found.append(_token(server, host, prepared))
    return tuple(found), view.unreachable


def _token(server: DesiredServer, host: HostView, prepared: Prepared) -> TokenOnHost:
    subject = subject_of(server, host, prepared.known)
    observed = subject.observed
    file, process = observed.env_file, observed.process
    known = None if server.token is None else prepared.known.tokens.get(server.token)
    in_file = file.env.get(TOKEN_VARIABLE) if file else None
    in_process = process.env.get(TOKEN_VARIABLE) if process else None
    wanted = in_file.fingerprint if known is None and server.token is not None and in_file else known
    return TokenOnHost(
        server=server.id,
        source=server.token,
        file=file,
        fingerprint=in_file.fingerprint[:SHORT] if in_file else "",
        right=_same(in_file, known, server) if file else None,
        age=max(0.0, host.now - file.mtime) if file else 0.0,
        pid=process.pid if process else None,
        current=_same(in_process, wanted, server) if process else None,
        places=other_tokens(subject),
    )


def _same(seen: EnvValue | None, wanted: str | None, server: DesiredServer) -> bool | None:
    if server.token is None:
        return seen is None
    if wanted is None:
        return None  # not on this controller: whatever the host has is left as it is
    return seen is not None and seen.fingerprint == wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOnHost:
    """What the Hub said to a host about one server's model; `whose` token was used: controller, env-file or none."""

    server: ServerId
    question: Question
    verdict: Verdict
    whose: str = "none"


def check_on_hosts(prepared: Prepared) -> tuple[tuple[CheckedOnHost, ...], tuple[Unreachable, ...]]:
    """Have every selected host ask the Hub about the models of its servers, with the tokens that these would have."""
    asker = Asker(environ={}, sources=prepared.secrets)
    asked: dict[str, list[tuple[DesiredServer, Question]]] = {}
    offline: list[CheckedOnHost] = []
    for server in within(prepared).servers:
        if server.state is DesiredState.ABSENT or not server.from_hub:
            continue
        question = question_about(server, asker)
        if chose_offline(server):
            offline.append(CheckedOnHost(server=server.id, question=question, verdict=CHOSEN))
        else:
            asked.setdefault(server.id.host, []).append((server, question))
    answers, lost = reached(for_each(asked, lambda host: _ask(host, asked[host], prepared), prepared.fleet.forks))
    found = [*offline, *(each for checked in answers.values() for each in checked)]
    return tuple(sorted(found, key=lambda each: each.server)), lost


def _ask(host: str, asked: list[tuple[DesiredServer, Question]], prepared: Prepared) -> list[CheckedOnHost]:
    sources = sorted({question.source for _, question in asked if question.source})
    payload: dict[str, object] = {
        "do": "hub-check",
        "checks": [_check(server, question) for server, question in asked],
        "secrets": {name: prepared.secrets[name] for name in sources},
        "timeout": ASK_TIMEOUT_S,
    }
    answer = prepared.fleet.request(host, payload, timeout=(ASK_TIMEOUT_S * 2 + 1) * len(asked))
    rows = {row.get("slug"): row for row in _rows(answer)}
    return [_checked(server.id, question, rows.get(server.id.slug)) for server, question in asked]


def _checked(server: ServerId, question: Question, row: Mapping[str, object] | None) -> CheckedOnHost:
    if row is None:
        verdict = Verdict(access=Access.HUB_UNREACHABLE, detail="the host gave no answer")
        return CheckedOnHost(server=server, question=question, verdict=verdict)
    whose = next((word for word in WHOSE if row.get("token") == word), WHOSE[-1])
    return CheckedOnHost(server=server, question=question, verdict=_verdict(row), whose=whose)


def _check(server: DesiredServer, question: Question) -> dict[str, object]:
    env = {name.lower(): str(setting.value) for name, setting in server.env.items()}
    return {
        "slug": server.id.slug,
        "model": question.model,
        "revision": question.revision,
        "endpoint": question.endpoint,
        "token": server.token,
        "proxies": {name: Secret(env[name]) for name in PROXY_VARIABLES if name in env},
    }


def _rows(answer: Answer) -> list[Mapping[str, object]]:
    rows = answer.get("answers")
    return (
        [row for row in rows if isinstance(row, dict) and isinstance(row.get("slug"), str)]
        if isinstance(rows, list)
        else []
    )


def _verdict(row: Mapping[str, object]) -> Verdict:
    try:
        return Verdict(access=Access(str(row.get("access"))), detail=str(row.get("detail") or ""))
    except ValueError:
        return Verdict(access=Access.HUB_UNREACHABLE, detail="the agent gave no verdict")

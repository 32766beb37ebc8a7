"""Which models the Hub is asked about, and what its verdict means for a server. Pure; asks nobody."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from vmreconcile.core.blocks import Block
from vmreconcile.core.launching import TOKEN_VARIABLE
from vmreconcile.model.access import HUB, Access, Question, Verdict
from vmreconcile.model.desired import DesiredFleet, DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView
from vmreconcile.model.plan import Action, Plan, Reason

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = frozenset({"1", "ON", "YES", "TRUE"})
"""What huggingface_hub takes for true in a variable (huggingface_hub.constants)."""

FINE_GRAINED = "fine-grained"
"""The Hub's word where it refuses a token for its own permissions."""

_REASONS = {
    Access.NO_TOKEN: Reason.TOKEN_MISSING,
    Access.TOKEN_INVALID: Reason.TOKEN_INVALID,
    Access.GATED: Reason.GATED,
    Access.NO_SUCH_MODEL: Reason.MODEL_NOT_FOUND,
    Access.NO_SUCH_REVISION: Reason.REVISION_NOT_FOUND,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """What decides a question beside the server: the controller's environment, and the sources that hold a token."""

    environ: Mapping[str, str]
    sources: Collection[str]


def offline(environ: Mapping[str, str]) -> bool:
    """Whether the Hub is not to be asked in this environment."""
    return any(environ.get(name, "").upper() in TRUE for name in OFFLINE_VARIABLES)


def without_offline(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as it would be if asking were not forbidden."""
    return {name: value for name, value in environ.items() if name not in OFFLINE_VARIABLES}


def endpoint_of(environ: Mapping[str, str]) -> str:
    """The Hub's address in this environment."""
    return environ.get("HF_ENDPOINT", "").rstrip("/") or HUB


def question_of(server: DesiredServer, asker: Asker) -> Question | None:
    """What to ask for a server; None where it loads from a path, or never asks the Hub itself."""
    environ = {**asker.environ, **{name: str(each.value) for name, each in server.env.items()}}
    if not server.from_hub or offline(environ):
        return None
    source = server.token if server.token in asker.sources else None
    return Question(
        model=server.model,
        revision=server.revision or "",
        endpoint=endpoint_of(environ),
        source=source or "",
    )


def questions_of(desired: DesiredFleet, asker: Asker) -> dict[Question, list[ServerId]]:
    """Every question of the servers that are not to go, each with those that it is about."""
    found: dict[Question, list[ServerId]] = {}
    for server in desired.servers:
        question = question_of(server, asker) if server.state is not DesiredState.ABSENT else None
        if question is not None:
            found.setdefault(question, []).append(server.id)
    return dict(sorted(found.items()))


def questions_about(plan: Plan, desired: DesiredFleet, view: FleetView, asker: Asker) -> dict[ServerId, Question]:
    """What to ask before this plan is carried out: for each server that would load its model anew."""
    wanted = {server.id: server for server in desired.servers}
    found: dict[ServerId, Question] = {}
    for change in plan.changes:
        loads = change.action is Action.START or (
            change.disruptive and change.action in {Action.RESTART, Action.RETUNE}
        )
        server = wanted.get(change.server) if loads else None
        if server is None or _keeps_its_token(server, view, asker):
            continue
        question = question_of(server, asker)
        if question is not None:
            found[change.server] = question
    return found


def _keeps_its_token(server: DesiredServer, view: FleetView, asker: Asker) -> bool:
    """Whether the host has a token that this controller does not: then only the host could ask."""
    host = view.host(server.id.host)
    if server.token is None or server.token in asker.sources or host is None:
        return False
    env_file = host.server(server.id.slug).env_file
    return env_file is not None and TOKEN_VARIABLE in env_file.env


def block_by(question: Question, verdict: Verdict) -> Block | None:
    """What keeps a server from starting; None where nothing does, or where nobody could be asked."""
    reason = _REASONS.get(verdict.access)
    if reason is None:
        return None
    return Block(reason=reason, note=told(question, verdict), remedy=remedy(question, verdict))


def told(question: Question, verdict: Verdict) -> str:
    """The verdict in a sentence."""
    what = question.model + (f" at revision {question.revision}" if question.revision else "")
    token = f"the token of source {question.source!r}" if question.source else "no token"
    match verdict.access:
        case Access.OK:
            return f"{what} may be read with {token}"
        case Access.NO_TOKEN:
            return f"{what} is gated, and there is no token for it"
        case Access.TOKEN_INVALID:
            return f"the Hub does not accept {token}"
        case Access.GATED:
            lacks = "has no permission for gated models" if _is_narrow(verdict) else "was not granted access"
            return f"{what} is gated, and {token} {lacks}"
        case Access.NO_SUCH_MODEL:
            return f"{question.endpoint} has no model {question.model}, or a private one that {token} may not see"
        case Access.NO_SUCH_REVISION:
            return f"{question.model} has no revision {question.revision}"
        case Access.OFFLINE:
            return f"{what}: not asked, for HF_HUB_OFFLINE is set here"
        case Access.HUB_UNREACHABLE:
            return f"{question.endpoint} cannot be asked: {verdict.detail or 'no answer'}"


def remedy(question: Question, verdict: Verdict) -> str:
    """What to do about it; "" where nothing needs to be done."""
    match verdict.access:
        case Access.NO_TOKEN:
            return f"vmreconcile auth login, then ask for access on {question.page}"
        case Access.TOKEN_INVALID:
            renew = "vmreconcile auth login" if question.source == "default" else f"renew source {question.source!r}"
            return f"{renew}; vmreconcile auth status shows where it comes from"
        case Access.GATED:
            allow = f"allow it public gated repositories on {question.endpoint}/settings/tokens"
            granted = f"ask for access on {question.page} with the account that vmreconcile auth status names"
            return allow if _is_narrow(verdict) else granted
        case Access.NO_SUCH_MODEL:
            return f"correct model: (see {question.page}), or name a token source whose account may see it"
        case Access.NO_SUCH_REVISION:
            return f"correct revision: (see {question.page}/tree/main)"
        case Access.HUB_UNREACHABLE:
            return "look at the network, a proxy or HF_ENDPOINT; a server whose model is cached on its host may start"
        case Access.OFFLINE:
            return "unset HF_HUB_OFFLINE to ask"
        case Access.OK:
            return ""


def _is_narrow(verdict: Verdict) -> bool:
    """Whether the token's own permissions are what is missing, and not its account's."""
    return FINE_GRAINED in verdict.detail


def unreachable_notes(verdicts: Iterable[tuple[Question, Verdict]]) -> tuple[str, ...]:
    """One line for each endpoint that could not be asked."""
    lines = {
        question.endpoint: f"{told(question, verdict)}: access to models was not checked"
        for question, verdict in verdicts
        if verdict.access is Access.HUB_UNREACHABLE
    }
    return tuple(lines[endpoint] for endpoint in sorted(lines))

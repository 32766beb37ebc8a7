"""Which models the Hub is asked about, and what its verdict means for a server. Pure; asks nobody."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from vmreconcile.core.launching import TOKEN_VARIABLE
from vmreconcile.model.access import HUB, Access, Question, Verdict
from vmreconcile.model.desired import DesiredFleet, DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView
from vmreconcile.model.plan import Action, Block, Plan, Reason
from vmreconcile.model.values import OriginKind

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = frozenset({"1", "ON", "YES", "TRUE"})
"""What huggingface_hub takes for true in a variable (huggingface_hub.constants)."""

FINE_GRAINED = "fine-grained"
"""The Hub's word where it refuses a token for its own permissions."""

SHOWN = 3
"""Servers that a warning names."""

OWN_ENDPOINT = "write it under env: of the model, or under vllm_env in the inventory"
"""How servers come to ask another Hub."""

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


def elsewhere(servers: Iterable[DesiredServer], environ: Mapping[str, str]) -> str:
    """What is to be said where servers would ask another Hub than is asked from here; "" where none would."""
    if endpoint_of(environ) == HUB or offline(environ):
        return ""
    names = [
        str(server.id)
        for server in servers
        if server.from_hub
        and server.state is not DesiredState.ABSENT
        and not chose_offline(server)
        and not _own(server).get("HF_ENDPOINT")
    ]
    if not names:
        return ""
    some = [*names[:SHOWN], *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])]
    one = len(names) == 1
    return (
        f"HF_ENDPOINT is set here and not for {len(names)} server{'' if one else 's'} ({', '.join(some)}): "
        f"{'it asks' if one else 'they ask'} {HUB}"
    )


def question_of(server: DesiredServer, asker: Asker) -> Question | None:
    """What to ask for a server; None where it loads from a path, or never asks the Hub itself.

    Nor where only its host says which Hub: no token of this controller goes to an address that a host made up.
    """
    if not server.from_hub or offline({**asker.environ, **_own(server)}) or _hub_of_its_host(server):
        return None
    return question_about(server, asker)


def _hub_of_its_host(server: DesiredServer) -> bool:
    """Whether a revision that its host kept names its Hub, and no file of ours."""
    said = server.env.get("HF_ENDPOINT")
    return said is not None and said.origin.kind is OriginKind.REVISION


def question_about(server: DesiredServer, asker: Asker) -> Question:
    """What would be asked for a server whose model is the Hub's, if asking were not forbidden."""
    return Question(
        model=server.model,
        revision=server.revision or "",
        endpoint=endpoint_of({**asker.environ, **_own(server)}),
        source=server.token if server.token and server.token in asker.sources else "",
    )


def chose_offline(server: DesiredServer) -> bool:
    """Whether the server's own environment says that it never asks the Hub."""
    return server.from_hub and offline(_own(server))


def _own(server: DesiredServer) -> dict[str, str]:
    return {name: str(each.value) for name, each in server.env.items()}


def questions_of(servers: Iterable[DesiredServer], asker: Asker) -> dict[Question, list[ServerId]]:
    """Every question of the servers that are not to go, each with those that it is about."""
    return _grouped((question_of(server, asker), server) for server in servers)


def questions_not_asked(servers: Iterable[DesiredServer], asker: Asker) -> dict[Question, list[ServerId]]:
    """The same of the servers that chose to be offline."""
    return _grouped((question_about(server, asker), server) for server in servers if chose_offline(server))


def _grouped(rows: Iterable[tuple[Question | None, DesiredServer]]) -> dict[Question, list[ServerId]]:
    found: dict[Question, list[ServerId]] = {}
    for question, server in rows:
        if question is not None and server.state is not DesiredState.ABSENT:
            found.setdefault(question, [])
            if server.id.host:
                found[question].append(server.id)
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
    unseen = f"that {token} may not see" if question.source else "that nobody sees without a token"
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
            return f"{question.address} has no model {question.model}, or a private one {unseen}"
        case Access.NO_SUCH_REVISION:
            return f"{question.model} has no revision {question.revision}"
        case Access.OFFLINE:
            where = "in the servers' own environment" if verdict.chosen else "here"
            return f"{what}: not asked, for HF_HUB_OFFLINE is set {where}"
        case Access.HUB_UNREACHABLE:
            return f"{question.address} cannot be asked: {verdict.detail or 'no answer'}"


def remedy(question: Question, verdict: Verdict) -> str:
    """What to do about it; "" where nothing needs to be done."""
    match verdict.access:
        case Access.NO_TOKEN:
            return f"vmreconcile auth login, then ask for access on {question.page}"
        case Access.TOKEN_INVALID:
            renew = "vmreconcile auth login" if question.source == "default" else f"renew source {question.source!r}"
            return f"{renew}; vmreconcile auth status shows where it comes from"
        case Access.GATED:
            allow = f"allow it public gated repositories on {question.address}/settings/tokens"
            granted = f"ask for access on {question.page} with the account that vmreconcile auth status names"
            return allow if _is_narrow(verdict) else granted
        case Access.NO_SUCH_MODEL:
            see = "name a token source whose account may see it" if question.source else "vmreconcile auth login"
            return f"correct model: (see {question.page}), or {see}"
        case Access.NO_SUCH_REVISION:
            return f"correct revision: (see {question.page}/tree/main)"
        case Access.HUB_UNREACHABLE:
            return "look at the network, a proxy or HF_ENDPOINT; a server whose model is cached on its host may start"
        case Access.OFFLINE:
            return "" if verdict.chosen else "unset HF_HUB_OFFLINE to ask"
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

"""The files of models that servers load, config.json and tensors' headers, read where they are nearest. No weights.

A path is its host's. A model of the Hub is looked for in this machine's cache, in those of its hosts, and at the Hub;
whoever has all of it is believed, and config.json alone is better than nothing. Changes nothing on any host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmreconcile.core.access import question_of, remedy, told
from vmreconcile.effects.checkpoint import CONFIG, HubError, read_cached, read_hub
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.host_checkpoints import host_checkpoints
from vmreconcile.effects.looks import LookedFor
from vmreconcile.effects.parallel import for_each
from vmreconcile.effects.session import AgentError
from vmreconcile.effects.token import hub_folder
from vmreconcile.errors import UnreachableError, VmreconcileError
from vmreconcile.flows.access import Hub
from vmreconcile.model.access import Access, Question, Verdict
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.secret import Secret
from vmreconcile.vllm.memory.stored import Checkpoint

HOST_TIMEOUT_S = 45.0
"""For all models of one host: its agent gives up on headers after 10 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """What was read, by server; and for every other server that was asked about, why nothing was."""

    checkpoints: Mapping[ServerId, Checkpoint] = field(default_factory=dict)
    problems: Mapping[ServerId, VmreconcileError] = field(default_factory=dict)

    @property
    def reasons(self) -> dict[ServerId, str]:
        """The problems as one line each, without any secret."""
        return {server: " ".join(str(problem).split()) for server, problem in self.problems.items()}


class NotGivenError(VmreconcileError):
    """The Hub does not give a model's files, as its verdict says."""

    def __init__(self, question: Question, verdict: Verdict) -> None:
        """Say it in the words of `auth check`."""
        super().__init__(told(question, verdict), remedy=remedy(question, verdict))
        self.verdict = verdict


def read_model_files(
    servers: Iterable[DesiredServer], fleet: Fleet, hub: Hub | None = None, *, once: bool = False
) -> ModelFiles:
    """Read the files of the servers' models, each once; never raises for what a file, a host or the Hub does.

    Without `hub` only the hosts are asked: one on which a server has started has its files. With `once`, a host's
    session ends with its answer.
    """
    wanted: dict[_Model, list[DesiredServer]] = {}
    for server in sorted(servers, key=lambda each: each.id):
        wanted.setdefault(_model_of(server), []).append(server)
    search = _Search(wanted=wanted, fleet=fleet, hub=hub, once=once)
    search.look_here()
    search.ask_hosts(others=False)
    search.ask_hosts(others=True)
    search.ask_hub()
    found, problems = search.found, search.problems
    return ModelFiles(
        checkpoints={each.id: found[model] for model, row in wanted.items() if model in found for each in row},
        problems={
            each.id: problems.get(model) or _nowhere(each, hub)
            for model, row in wanted.items()
            if model not in found
            for each in row
        },
    )


def hub_files(question: Question, token: Secret | None, cache: Path) -> Checkpoint:
    """What the Hub gives of a model; its config.json goes to `cache`.

    Raises:
        NotGivenError: it gives nothing.
        InputError: what it gives is of no use.
    """
    try:
        return read_hub(question, token, cache)
    except HubError as error:
        raise NotGivenError(question, error.verdict) from None


def local_cache(environ: Mapping[str, str], home: Path) -> Path:
    """The Hub client's cache on this machine: huggingface_hub.constants.HF_HUB_CACHE."""
    said = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expanduser(said)) if said else hub_folder(environ, home) / "hub"  # noqa: PTH111 - never raises


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What is read once: an id of the Hub, for whichever hosts; or what one host has at a path."""

    model: str
    revision: str = ""
    host: str = ""
    from_hub: bool = True


def _model_of(server: DesiredServer) -> _Model:
    if server.from_hub:
        return _Model(model=server.model, revision=server.revision or "")
    return _Model(model=server.model, host=server.id.host, from_hub=False)


@dataclass(slots=True, kw_only=True)
class _Search:
    """What was found so far of what is wanted, and what went wrong last where nothing was."""

    wanted: Mapping[_Model, list[DesiredServer]]
    fleet: Fleet
    hub: Hub | None
    once: bool
    found: dict[_Model, Checkpoint] = field(default_factory=dict)
    problems: dict[_Model, VmreconcileError] = field(default_factory=dict)

    def missing(self) -> list[_Model]:
        """Models of which not everything is known."""
        return [model for model in self.wanted if model not in self.found or self.found[model].tensors is None]

    def take(self, model: _Model, result: Checkpoint | Exception | None) -> None:
        """Keep what is more than was known."""
        match result:
            case Checkpoint():
                if model not in self.found or result.tensors is not None:
                    self.found[model] = result
            case VmreconcileError():
                self.problems[model] = result
            case Exception():
                kind = type(result).__name__
                self.problems[model] = VmreconcileError(f"vmreconcile failed on the files of {model.model} ({kind})")

    def look_here(self) -> None:
        """Look into this machine's cache of the Hub."""
        if self.hub is None:
            return
        models = [model for model in self.wanted if model.from_hub]
        cache = local_cache(self.hub.options.environ, self.hub.options.home)
        for model, result in for_each(models, lambda at: read_cached(at.model, at.revision, cache), self.hub.forks):
            self.take(model, result)

    def ask_hosts(self, *, others: bool) -> None:
        """Ask one host of each model that is missing; with `others`, all the rest of them."""
        asked: dict[str, list[tuple[_Model, DesiredServer]]] = {}
        for model in self.missing():
            places = _places(model, self.wanted[model])
            for server in places[1:] if others else places[:1]:
                asked.setdefault(server.id.host, []).append((model, server))
        look = for_each(asked, lambda host: self._on_host(host, [each for _, each in asked[host]]), self.fleet.forks)
        for host, result in sorted(look, key=lambda row: row[0]):
            for model, server in asked[host]:
                self.take(model, _lost(host, result) if isinstance(result, Exception) else result.get(server.id.slug))

    def _on_host(self, host: str, servers: list[DesiredServer]) -> dict[str, Checkpoint]:
        models = [
            LookedFor(slug=each.id.slug, model=each.model, revision=each.revision or "", env=each.cache_variables)
            for each in servers
        ]
        try:
            payload = {"do": "checkpoint", "models": [model.as_json() for model in models]}
            answer = self.fleet.request(host, payload, timeout=HOST_TIMEOUT_S)
        finally:
            if self.once:
                self.fleet.drop(host)
        return host_checkpoints(answer, {each.id.slug: _source(each) for each in servers})

    def ask_hub(self) -> None:
        """Ask the Hub, with the servers' own tokens."""
        if self.hub is None:
            return
        questions = {model: _questions(self.wanted[model], self.hub) for model in self.missing()}
        asking = _Asking(hub=self.hub)
        models = [model for model, asked in questions.items() if asked]
        for model, result in for_each(models, lambda at: asking.first(questions[at]), self.hub.forks):
            self.take(model, result)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """Asks the Hub, each question once in a run. An endpoint that cannot be reached is not asked for another model."""

    hub: Hub
    lost: dict[str, NotGivenError] = field(default_factory=dict)

    def first(self, questions: list[Question]) -> Checkpoint | VmreconcileError | None:
        """The first good answer, else the last bad one."""
        result: Checkpoint | VmreconcileError | None = None
        for question in questions:
            result = self.hub.files.get(question) or self.lost.get(question.endpoint) or self._ask(question)
            if isinstance(result, Checkpoint):
                break
        return result

    def _ask(self, question: Question) -> Checkpoint | VmreconcileError:
        options = self.hub.options
        result: Checkpoint | VmreconcileError
        try:
            result = hub_files(
                question, self.hub.secrets.get(question.source), local_cache(options.environ, options.home)
            )
        except NotGivenError as error:
            result = error
            if error.verdict.access is Access.HUB_UNREACHABLE:
                self.lost[question.endpoint] = error
        except VmreconcileError as error:
            result = error
        self.hub.files[question] = result
        return result


def _questions(servers: list[DesiredServer], hub: Hub) -> list[Question]:
    """What may be asked about a model: by endpoint and token; nothing of paths and for servers that are offline."""
    found = {question_of(server, hub.asker) for server in servers}
    return sorted(question for question in found if question is not None)


def _places(model: _Model, servers: list[DesiredServer]) -> list[DesiredServer]:
    """One server for each place where a model may be: a path, or the caches of its hosts."""
    found: dict[tuple[object, ...], DesiredServer] = {}
    for server in servers:
        if server.id.host and (model.from_hub or model.model.startswith("/")):
            cache = tuple(sorted(server.cache_variables.items())) if model.from_hub else ()
            found.setdefault((server.id.host, cache), server)
    return list(found.values())


def _source(server: DesiredServer) -> str:
    """Where a host's files are, for a person."""
    return f"{server.model} in the cache of {server.id.host}" if server.from_hub else f"{server.id.host}:{server.model}"


def _lost(host: str, error: Exception) -> Exception:
    """A host that did not answer."""
    match error:
        case UnreachableError():
            return UnreachableError(f"{host}: {error.reason}", remedy=error.remedy, cause=error.cause)
        case AgentError():
            return VmreconcileError(f"{host}: {error}", remedy=error.remedy)
    return error


def _nowhere(server: DesiredServer, hub: Hub | None) -> VmreconcileError:
    """Why there is nothing of a model although nobody failed."""
    model, host = server.model, server.id.host
    if model.startswith("/"):
        return VmreconcileError(
            f"{host} has no {CONFIG} in {model} that can be read", remedy="correct model:, or bring the files there"
        )
    if not server.from_hub:
        return VmreconcileError(
            f"{model} is no absolute path: what it is on {host} nobody can tell", remedy="write the whole path"
        )
    if hub is None:
        return VmreconcileError(f"{model} is not in the cache of {host}")
    return VmreconcileError(
        f"{model} is neither in the cache here nor in that of {host}, and HF_HUB_OFFLINE is set",
        remedy="unset HF_HUB_OFFLINE, or fetch the model to its host: vmreconcile prefetch",
    )

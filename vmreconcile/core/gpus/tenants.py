"""Each server that is to run on a host, as one who asks for GPUs: how many, which, how much of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from vmreconcile.core.gpus.demand import LENGTH, SHARE, Demand, is_open
from vmreconcile.core.gpus.ground import Ground
from vmreconcile.core.gpus.visible import VISIBLE, named, split_words, words_in
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.tuning import Manner, Tuned
from vmreconcile.model.values import JsonValue, OriginKind
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.command import differences, from_argv
from vmreconcile.vllm.world import gpus_needed

CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One server. `server` has what tuning rules set; `version` is its host's vLLM.

    `count` GPUs are wanted, 0 where the choice is not ours. `listed` are words for GPUs that somebody wrote.
    `number` is a utilization that somebody wrote, `floor` the least that a rule allows, `default` what vLLM takes by
    itself. `runs_with` is what its process was started with, `chosen` whether the tool chose that.
    """

    server: DesiredServer
    observed: ObservedServer
    catalogue: Catalogue
    version: str
    count: int
    listed: tuple[str, ...] = ()
    number: float | None = None
    floor: float = 0.0
    default: float = 0.9
    runs_with: float | None = None
    told: bool = False
    """Whether its process was given that number, and did not take vLLM's default."""
    runs_long: int | None = None
    changed: bool = False
    """Whether its process was started with another model, or with settings that are not wanted any more."""
    chosen: bool = False
    now: tuple[str, ...] = ()
    """The GPUs that it is on, or was on (`where_now`); filled in, as are the next two, by who knows the GPUs."""
    demand: Callable[[str], Demand | str] = field(default=lambda _: "nobody asked", compare=False)
    """What it needs of a GPU, by UUID; in words why nobody can say. Notes that the model's files are wanted."""
    hint: Callable[[str], Demand | str] = field(default=lambda _: "nobody asked", compare=False)
    """The same, where it is known anyway."""

    @property
    def id(self) -> ServerId:
        """Its name."""
        return self.server.id

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.observed.process is not None

    @property
    def rank(self) -> tuple[int, int, ServerId]:
        """Who chooses first: the more important, then the larger, then by name."""
        return self.server.priority, -self.count, self.id


def tenant_of(
    server: DesiredServer, tuning: tuple[Tuned, ...], observed: ObservedServer, catalogue: Catalogue, version: str
) -> Tenant:
    """Read a wanted server; what depends on its host's GPUs is left open."""
    floors = [each.rule.sets[SHARE][1] for each in tuning if _is_floor(each)]
    command = from_argv(observed.process.argv, catalogue) if observed.process else None
    running = command.settings if command else {}
    share = running.get(SHARE)
    default = _default(catalogue)
    length = running.get("max_model_len")
    decided = observed.record.decided if observed.record else {}
    return Tenant(
        server=server,
        observed=observed,
        catalogue=catalogue,
        version=version,
        count=_count(server),
        listed=_listed(server),
        number=_number(server, tuning),
        floor=max((float(floor) for floor in floors if isinstance(floor, int | float)), default=0.0),
        default=default,
        runs_with=float(share) if isinstance(share, int | float) else default if observed.process else None,
        told=share is not None,
        runs_long=length if isinstance(length, int) else None,
        changed=command is not None and (command.model != server.model or _differs(server, running, catalogue)),
        chosen=share is None or decided.get(SHARE) == share,
    )


def _is_floor(each: Tuned) -> bool:
    return each.argument == SHARE and each.rule.sets.get(SHARE, (None,))[0] is Manner.AT_LEAST


def _number(server: DesiredServer, tuning: tuple[Tuned, ...]) -> float | None:
    """A utilization that is not left to the tool: written by somebody, or a rule's own value."""
    setting = server.settings.get(SHARE)
    if setting is None or not isinstance(setting.value, int | float):
        return None
    of_floor = setting.origin.kind is OriginKind.TUNING and not any(
        each.argument == SHARE and not _is_floor(each) and each.value == setting.value for each in tuning
    )
    return None if of_floor else float(setting.value)


def _default(catalogue: Catalogue) -> float:
    argument = catalogue.arguments.get(SHARE)
    value = argument.default if argument else None
    return float(value) if isinstance(value, int | float) else 0.9


def _differs(server: DesiredServer, running: Mapping[str, JsonValue], catalogue: Catalogue) -> bool:
    """Whether more differs than what may be left to the tool, and where it listens."""
    wanted = {name: setting.value for name, setting in server.settings.items()}
    found = {name for name, *_ in differences(wanted, running, catalogue)}
    return bool(found - {SHARE, LENGTH, "port", "revision"}) or (LENGTH in found and not is_open(server))


def _count(server: DesiredServer) -> int:
    """GPUs that it takes; 0 where that is not known here, or it runs on the CPU."""
    settings = {name: setting.value for name, setting in server.settings.items()}
    if settings.get("device") == CPU:
        return 0
    if isinstance(server.gpus, tuple):
        return len(server.gpus)
    if isinstance(server.gpus, int):
        return server.gpus
    hidden = VISIBLE in server.env and not _listed(server)
    return 0 if hidden else gpus_needed(settings) or 0


def _listed(server: DesiredServer) -> tuple[str, ...]:
    if isinstance(server.gpus, tuple):
        return tuple(map(str, server.gpus))
    said = server.env.get(VISIBLE) if server.gpus == "auto" else None
    return split_words(str(said.value)) if said else ()


def where_now(tenant: Tenant, ground: Ground) -> tuple[str, ...]:
    """The GPUs that a server is on, or was on when it last ran, by rank; () where that cannot be told.

    What its processes hold says it before the environment does: an index means another GPU where CUDA counts in its
    own order.
    """
    observed = tenant.observed
    process, env_file = observed.process, observed.env_file
    env = process.env if process else env_file.env if env_file else {}
    words = words_in(env)
    named = [uuid for word in words if (uuid := ground.named(word)) is not None]
    if len(named) < len(words):
        named = []
    held = [uuid for uuid, gpu in ground.gpus.items() if gpu.held_by(observed.pids) and not gpu.split]
    if process and not set(held) <= set(named):
        return tuple(held)
    return tuple(named)


def as_it_is(tenant: Tenant, devices: tuple[str, ...]) -> Tenant:
    """A running server that is left alone: it has what it has, and asks for nothing else."""
    return replace(tenant, number=tenant.runs_with, count=len(devices), listed=(), floor=0.0)


def was_told(tenant: Tenant) -> bool:
    """Whether a running server was given GPUs by name."""
    return bool(told_now(tenant))


def told_now(tenant: Tenant) -> tuple[str, ...]:
    """The words for GPUs that a running server was given, () for none."""
    process = tenant.observed.process
    return words_in(process.env) if process else ()


def is_unclear(tenant: Tenant, host: HostView, ground: Ground) -> bool:
    """Whether a server runs on a GPU that is there and tells nothing of its memory."""
    on = {gpu.uuid for gpu in host.gpus if tenant.runs and gpu.held_by(tenant.observed.pids)}
    on |= {uuid for word in told_now(tenant) if (uuid := named(word, host.gpus)) is not None}
    return any(gpu.uuid in on and not gpu.split and gpu.uuid not in ground.gpus for gpu in host.gpus)

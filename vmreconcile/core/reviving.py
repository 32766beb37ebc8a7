"""From a kept launch back to a wanted server, so that going back is planned and proven as all else. Pure."""

from __future__ import annotations

from dataclasses import replace

from vmreconcile.core.diff import release
from vmreconcile.core.gpus.room import short_of
from vmreconcile.core.gpus.visible import ORDER, VISIBLE
from vmreconcile.core.launching import CREDENTIAL, TOKEN_VARIABLE
from vmreconcile.errors import VmreconcileError
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.gpus import Needs, Placed
from vmreconcile.model.launch import MARKER
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView
from vmreconcile.model.revision import Kept, Revision
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting
from vmreconcile.runtimes.registry import RUNTIMES
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import from_argv

TOKEN_NAME = "the host's own"  # noqa: S105 - a name that no source can have
"""What a token is called whose source no file names any more: it is kept as the host has it.

No source is called so: a host that says of itself that it had a token never gets one of this controller asked with.
"""


class CannotGoBackError(VmreconcileError):
    """A revision cannot be brought back; says why, and what to do."""


def executable_of(revision: Revision) -> str:
    """The program that a revision was started with."""
    return revision.kept.argv[0]


def port_of(revision: Revision) -> int | None:
    """Where it listened; None where its command line cannot be read."""
    command = from_argv(revision.kept.argv, catalogue_for(revision.kept.vllm_version))
    port = command.settings.get("port") if command else None
    return port if isinstance(port, int) else None


def placed_anew(revision: Revision, tried: Placed | None, host: HostView) -> Revision:
    """The revision on the GPUs that were `tried` for a later one, where another server has taken those that it had."""
    had = revision.kept.placed
    if had is None or tried is None or len(had.devices) != len(tried.devices):
        return revision
    if set(had.devices) == set(tried.devices) or not short_of(had, host):
        return revision
    placed = replace(had, devices=tried.devices, visible=tried.visible)
    return replace(revision, kept=replace(revision.kept, placed=placed))


def as_wanted(revision: Revision, server: DesiredServer, host: HostView) -> DesiredServer:
    """The server wanted as it was launched then; what was no part of the launch (health, rollout …) is today's.

    `host` was looked at for the revision's program too.

    Raises:
        CannotGoBackError: its program is gone, a secret of it is not on the host any more, or it cannot be read.
    """
    kept, name = revision.kept, server.id
    version = host.installed(executable_of(revision)).version or kept.vllm_version
    command = from_argv(kept.argv, catalogue_for(version))
    if command is None or command.problems or command.model is None or kept.runtime not in RUNTIMES:
        raise _cannot(revision, name, "cannot be read by this version of vmreconcile")
    _see_program(revision, name, host)
    settings = dict(command.settings)
    port, commit = settings.pop("port", None), settings.pop("revision", None)
    if not isinstance(port, int):
        raise _cannot(revision, name, "names no port")
    keeps, todays = _secrets(revision, server, host)
    public = {key: each for key, each in kept.public.items() if key != MARKER}
    if kept.placed is not None:
        public = {key: each for key, each in public.items() if key not in {VISIBLE, ORDER}}
    return replace(
        server,
        model=command.model,
        revision=None if commit is None else str(commit),
        port=port,
        state=DesiredState.RUNNING,
        settings=_settings(revision, settings),
        env={**{key: _variable(revision, key, each, server) for key, each in public.items()}, **todays},
        keeps=tuple(sorted(keeps)),
        gpus=_gpus(kept, host),
        needs=Needs(),
        prefetch=False,
        token=(server.token or TOKEN_NAME) if TOKEN_VARIABLE in kept.secrets else None,
        delivery=CREDENTIAL if kept.credential else "environment",
        runtime=kept.runtime,
        executable=_asked(executable_of(revision), server, host),
        rules=(),
        architectures=(),
        visible=kept.placed.visible if kept.placed else (),
    )


def literal(kept: Kept, command_line: tuple[str, ...]) -> tuple[str, ...]:
    """The words to start with: those that were kept, with the program as it is found now."""
    return (command_line[0], *kept.argv[1:])


def _cannot(revision: Revision, server: ServerId, why: str, remedy: str = "") -> CannotGoBackError:
    remedy = remedy or f"vmreconcile history {server} lists what there is to go back to"
    return CannotGoBackError(f"revision {revision.number} of {server} {why}", remedy=remedy)


def _see_program(revision: Revision, server: ServerId, host: HostView) -> None:
    """Make sure that the program is there.

    Raises:
        CannotGoBackError: it is gone.
    """
    path = executable_of(revision)
    there = host.installed(path)
    if there.path is None or there.version is None:
        was = f"vLLM {revision.kept.vllm_version} at {path}" if revision.kept.vllm_version else path
        why = f"was started with {was}, which is not there any more ({there.problem or 'not found'})"
        raise _cannot(revision, server, why, f"install it there again, or mend the settings and apply on {server.host}")


def other_version(revision: Revision, host: HostView) -> str:
    """The version that is installed now in the place of the revision's own; '' where it is the same, or not known."""
    now, then = host.installed(executable_of(revision)).version, revision.kept.vllm_version
    return now if now and then and release(now) != release(then) else ""


def _secrets(revision: Revision, server: DesiredServer, host: HostView) -> tuple[set[str], dict[str, Setting]]:
    """The names whose values the host keeps, and those that today's files have to give.

    Raises:
        CannotGoBackError: one is nowhere: a server must not come up without the key that guarded it.
    """
    env_file = host.server(server.id.slug).env_file
    there = set(env_file.env) if env_file is not None else set()
    keeps = set(revision.kept.secrets & there)
    todays = {}
    for name in sorted(revision.kept.secrets - there):
        if name == TOKEN_VARIABLE and server.token is not None:
            continue  # today's source gives it, as to any server
        if name not in server.env:
            remedy = f"give it the variable again, under env: of its model file, then apply on {server.id.host}"
            raise _cannot(revision, server.id, f"had {name}, which its env file has no more", remedy)
        todays[name] = server.env[name]
    return keeps, todays


def _settings(revision: Revision, settings: dict[str, JsonValue]) -> dict[str, Setting]:
    return {name: _setting(revision, value, chosen=name in revision.kept.decided) for name, value in settings.items()}


def _variable(revision: Revision, name: str, value: str, server: DesiredServer) -> Setting:
    """A variable of a revision; where today's files say just the same, it is theirs."""
    today = server.env.get(name)
    return today if today is not None and str(today.value) == value else _setting(revision, value)


def _setting(revision: Revision, value: JsonValue, *, chosen: bool = False) -> Setting:
    """A value of a revision; a number that the tool chose stays the tool's."""
    kind = OriginKind.TOOL if chosen else OriginKind.REVISION
    return Setting(value=value, origin=Origin(kind=kind, note=f"number {revision.number}"))


def _gpus(kept: Kept, host: HostView) -> str | int | tuple[int, ...]:
    """The GPUs by number where all are whole ones that are still there; else what its arguments ask for."""
    if kept.placed is None:
        return "auto"
    indices = {gpu.uuid: gpu.index for gpu in host.gpus if not gpu.parent}
    if not all(device in indices for device in kept.placed.devices):
        return "auto"
    return tuple(indices[device] for device in kept.placed.devices)


def _asked(path: str, server: DesiredServer, host: HostView) -> str:
    """How the program is asked for: as today's files do, where that is the same one."""
    return server.executable if host.installed(server.executable).path == path else path

"""Field by field: what differs between a wanted server and the observed one. Pure; decides no action."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vmreconcile.core.fingerprints import Known, fingerprint, shown
from vmreconcile.core.gpus.visible import ORDER, VISIBLE, named, words_in
from vmreconcile.core.launching import TOKEN_VARIABLE, launch_settings, public_env
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.launch import MARKER, Launch
from vmreconcile.model.observed import EnvFile, EnvValue, HostView, ObservedServer, Process, TokenPlace
from vmreconcile.model.plan import Field
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.tuning import Tuned
from vmreconcile.runtimes.base import Runtime
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.command import SECRET_ARGUMENTS, differences, from_argv

OWNED_PATHS = frozenset({"port", "revision"})
"""Settings that stand beside `args` in a model file, so their field's path has no `args.` before it."""


PLACING = frozenset({VISIBLE, ORDER})

OTHERS = 0o077
"""Mode bits that an env file must not have."""

STARS = "***"
"""What the agent puts in place of secrets in arguments (docs/wire.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What differs, by what it takes to mend: `files` are written anew, all else needs a new process."""

    settings: tuple[Field, ...] = ()
    program: tuple[Field, ...] = ()
    gpus: tuple[Field, ...] = ()
    environment: tuple[Field, ...] = ()
    token: tuple[Field, ...] = ()
    version: tuple[Field, ...] = ()
    files: tuple[Field, ...] = ()
    shadows: tuple[Field, ...] = ()
    """Tokens that the unit or a drop-in names beside ours. What to do about them: `shadows`."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a person wants to read: the process's own; its files, which follow, only where they alone differ."""
        process = (*self.settings, *self.program, *self.gpus, *self.environment, *self.token, *self.version)
        return (*(process or self.files), *self.shadows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One wanted server beside everything that is needed to compare it."""

    wanted: DesiredServer
    observed: ObservedServer
    host: HostView
    launch: Launch
    runtime: Runtime
    catalogue: Catalogue
    known: Known
    tuning: tuple[Tuned, ...] = ()
    """What tuning rules did to `wanted`."""
    placed: Placed | None = None
    """What was decided about GPUs and memory; None for a server that is not to run."""


def drift_of(subject: Subject) -> Drift:
    """Everything that differs; without a process only the files can."""
    process = subject.observed.process
    files = _files(subject)
    shadows = tuple(Field(path="hf_token.shadow", before=str(place), after=None) for place in other_tokens(subject))
    if process is None:
        return Drift(files=files, shadows=shadows)
    environment, token = _environment(subject, process.env)
    return Drift(
        settings=_settings(subject, process),
        program=_program(subject, process),
        gpus=_gpus(subject, process),
        environment=tuple(field for field in environment if not _is_placing(subject, field)),
        token=token,
        version=_version(subject),
        files=files,
        shadows=shadows,
    )


def other_tokens(subject: Subject) -> tuple[TokenPlace, ...]:
    """Where the unit or a drop-in names another token than the one that this server is to have."""
    unit, env_file = subject.observed.unit, subject.observed.env_file
    source = subject.wanted.token
    wanted = subject.known.tokens.get(source) if source is not None else None
    if source is not None and wanted is None:  # not on this controller: what the host's env file has counts
        kept = env_file.env.get(TOKEN_VARIABLE) if env_file else None
        wanted = kept.fingerprint if kept else None
        if wanted is None:
            return ()
    return tuple(place for place in (unit.token_places if unit else ()) if place.fingerprint != wanted)


def is_env_file_right(subject: Subject) -> bool:
    """Whether the env file holds just what the server is to have."""
    env_file = subject.observed.env_file
    if env_file is None or env_file.problem:
        return False
    environment, token = _environment(subject, env_file.env)
    return not environment and not token


def _settings(subject: Subject, process: Process) -> tuple[Field, ...]:
    wanted, argv = subject.wanted, subject.launch.argv
    seen = process.argv[-len(argv) :]
    if seen == argv or (len(seen) == len(argv) and all(map(is_alike, seen, argv))):
        return ()  # word for word what would be started
    command = _command(process.argv, subject.catalogue)
    if command is None:
        return (Field(path="argv", before=" ".join(process.argv)[:200], after="a vLLM command line"),)
    fields = []
    if command.model != wanted.model:
        fields.append(_field(wanted, "model", command.model, wanted.model))
    for name, before, after in differences(launch_settings(wanted), command.settings, subject.catalogue):
        path = name if name in OWNED_PATHS else f"args.{name}"
        if name in SECRET_ARGUMENTS:
            before, after = before and HIDDEN, after and HIDDEN  # noqa: PLW2901 - a secret is replaced at once
        fields.append(_field(wanted, path, before, after))
    fields += [Field(path=f"args.{problem}", before="given", after=None) for problem in command.problems]
    return tuple(fields)


_command = functools.lru_cache(maxsize=4096)(from_argv)
"""A fleet runs the same few command lines many times."""


def is_alike(seen: str, word: str) -> bool:
    """Whether an argument as the agent shows it, what looks like a secret replaced by stars, can be `word`."""
    return seen == word or (
        STARS in seen and re.fullmatch(".*".join(map(re.escape, seen.split(STARS))), word, re.DOTALL) is not None
    )


def _program(subject: Subject, process: Process) -> tuple[Field, ...]:
    fields = []
    path = subject.host.installed(subject.wanted.executable).path or subject.wanted.executable
    if path and path not in process.argv[:2]:
        before = process.argv[1] if len(process.argv) > 1 else ""
        fields.append(_field(subject.wanted, "executable", before, path))
    observed = subject.observed.runtime
    if observed and observed != subject.runtime.name:
        fields.append(_field(subject.wanted, "runtime", observed, subject.runtime.name))
    return tuple(fields)


def _is_placing(subject: Subject, field: Field) -> bool:
    """Whether a field is a variable that says GPUs which we chose; `_gpus` looks at what it means."""
    name = field.path.removeprefix("env.")
    return name in PLACING and name not in subject.wanted.env


def _gpus(subject: Subject, process: Process) -> tuple[Field, ...]:
    """The GPUs, whichever way they are named: a server that already is on the right ones is left there."""
    visible, host = subject.wanted.visible, subject.host
    words = words_in(process.env)
    if words == visible or VISIBLE in subject.wanted.env or not (visible or _ours(subject, VISIBLE)):
        return ()
    if not host.gpus and host.gpu_problem is None:
        return ()  # nobody asked for the GPUs this time
    before, held = {named(word, host.gpus) or word for word in words}, _held(process, host)
    if not held <= before:  # an index means another GPU since one fell out, or where CUDA counts in its own order
        before = held
    after = {named(word, host.gpus) or word for word in visible}
    if before == after or (not words and before <= after):
        return ()
    shown = [_labels(devices, host) for devices in (before, after)]
    return (_field(subject.wanted, "gpus", *shown),)


def _held(process: Process, host: HostView) -> set[str]:
    """The GPUs on which a process and its workers hold memory."""
    return {gpu.uuid for gpu in host.gpus if not gpu.split and gpu.held_by(process.pids)}


def _labels(devices: set[str], host: HostView) -> str | None:
    """GPUs for a person: their numbers, or what stands for them where they are not there."""
    labels = {gpu.uuid: gpu.label.removeprefix("GPU ") for gpu in host.gpus}
    return ", ".join(sorted(labels.get(device, device) for device in devices)) or None


def _ours(subject: Subject, name: str) -> bool:
    """Whether a variable was written by us for this server, now or earlier."""
    return name in _env_names_on_host(subject.observed)


def _version(subject: Subject) -> tuple[Field, ...]:
    installed = subject.host.installed(subject.wanted.executable).version
    endpoint = subject.observed.endpoint
    running = endpoint.version if endpoint else None
    if not installed or not running or release(installed) == release(running):
        return ()
    return (Field(path="vllm_version", before=running, after=installed),)


def release(version: str) -> str:
    """A version without its local part: '0.32.0+cpu' and '0.32.0' are one release."""
    return version.partition("+")[0]


def _environment(subject: Subject, seen: Mapping[str, EnvValue]) -> tuple[tuple[Field, ...], tuple[Field, ...]]:
    """Fields of plain variables, and of the token, of a process or of an env file."""
    wanted, known = subject.wanted, subject.known
    plain = public_env(wanted)
    fields = []
    for name, value in sorted(plain.items()):
        before = seen.get(name)
        if before is None or before.fingerprint != fingerprint(known.salt, name, value):
            fields.append(_field(wanted, f"env.{name}", _before(name, before), shown(name, value)))
    ours = _env_names_on_host(subject.observed)
    fields += [
        Field(path=f"env.{name}", before=_before(name, seen[name]), after=None)
        for name in sorted(ours - plain.keys() - {TOKEN_VARIABLE, *wanted.keeps})
        if name in seen and name != MARKER
    ]
    return tuple(fields), _token(subject, seen, ours)


def _token(subject: Subject, seen: Mapping[str, EnvValue], ours: set[str]) -> tuple[Field, ...]:
    source, before = subject.wanted.token, seen.get(TOKEN_VARIABLE)
    if TOKEN_VARIABLE in subject.wanted.keeps:
        return ()
    if source is None:
        named = any(place.wins for place in other_tokens(subject))
        unwanted = before is not None and (TOKEN_VARIABLE in ours or named)
        return (_field(subject.wanted, "hf_token", HIDDEN, None),) if unwanted else ()
    after = subject.known.tokens.get(source)
    if after is None or (before is not None and before.fingerprint == after):
        return ()
    return (_field(subject.wanted, "hf_token", "another token" if before else None, f"the token of {source!r}"),)


def _files(subject: Subject) -> tuple[Field, ...]:
    fields = list(subject.runtime.drift(subject.launch, subject.observed))
    if subject.observed.record is None:
        fields.append(Field(path="record", before=None, after=subject.wanted.id.slug))
    env_file = subject.observed.env_file
    if env_file is None:
        fields.append(Field(path="env_file", before=None, after=subject.launch.env_path))
        return tuple(fields)
    if env_file.problem and not env_file.mode & OTHERS:
        return (*fields, Field(path="env_file", before=env_file.problem, after="readable"))
    fields += _env_file_shape(subject, env_file)
    environment, token = _environment(subject, env_file.env)
    fields += [
        Field(path=f"env_file.{field.path.removeprefix('env.')}", before=field.before, after=field.after)
        for field in (*environment, *token)
    ]
    return tuple(fields)


def _env_file_shape(subject: Subject, env_file: EnvFile) -> list[Field]:
    fields = []
    if env_file.mode != 0o600:
        fields.append(Field(path="env_file.mode", before=f"{env_file.mode:04o}", after="0600"))
    if env_file.uid != subject.host.uid:
        fields.append(Field(path="env_file.owner", before=env_file.uid, after=subject.host.uid))
    return fields


def _env_names_on_host(observed: ObservedServer) -> set[str]:
    """Names that we wrote for this server, now or earlier: only those may be missed or be too many."""
    names = set(observed.record.env_names) if observed.record else set()
    return names | (set(observed.env_file.env) if observed.env_file else set())


def _before(name: str, value: EnvValue | None) -> str | None:
    if value is None:
        return None
    return HIDDEN if value.value is None else shown(name, value.value)


def _field(wanted: DesiredServer, path: str, before: object, after: object) -> Field:
    """A field with the origin of its wanted value; JSON values only."""
    kind, _, name = path.partition(".")
    match kind:
        case "args":
            setting = wanted.settings.get(name)
            origin = setting.origin if setting else None
        case "env":
            setting = wanted.env.get(name)
            origin = setting.origin if setting else None
        case _:
            origin = wanted.origins.get(kind)
    return Field(path=path, before=before, after=after, origin=str(origin) if origin else "")  # type: ignore[arg-type]  # JSON by construction

"""What a server was launched with, from a launch or from what is seen of a process; what differs between two. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vmreconcile.core.diff import Subject, is_alike
from vmreconcile.core.fingerprints import digest, shown
from vmreconcile.core.gpus.visible import ORDER, VISIBLE
from vmreconcile.core.launching import TOKEN_VARIABLE
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.launch import MARKER
from vmreconcile.model.observed import ObservedServer
from vmreconcile.model.plan import Field
from vmreconcile.model.revision import Kept, Revision, to_json
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.showing import masked, printable
from vmreconcile.model.steps import KEEP, Keep
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.command import SECRET_ARGUMENTS, Command, differences, from_argv

PLAIN = frozenset({"port", "revision"})
"""Settings whose path has no `args.` before it, as they stand beside `args` in a model file."""


def kept_of(subject: Subject) -> Kept:
    """What `subject` is launched with. Secrets are left to the host."""
    launch, host = subject.launch, subject.host
    placed = subject.placed
    decided = launch.record.get("decided")
    return Kept(
        argv=launch.argv,
        entries=tuple((name, value if isinstance(value, str) else KEEP) for name, value in launch.entries),
        runtime=subject.runtime.name,
        credential=bool(launch.token_path),
        vllm_version=host.installed(subject.wanted.executable).version or "",
        decided=decided if isinstance(decided, dict) else {},
        placed=replace(placed, least=None, reasons=()) if placed is not None and placed.devices else None,
    )


def seen_kept(observed: ObservedServer) -> Kept | None:
    """What a server that runs was launched with, as far as that can be seen; None where too little can."""
    process, env_file, record = observed.process, observed.env_file, observed.record
    if process is None:
        return None
    command = from_argv(process.argv, catalogue_for(observed.endpoint.version if observed.endpoint else None))
    if command is None or command.problems or command.prefix[-1:] != ("serve",):
        return None
    names = {*(env_file.env if env_file else ()), *(record.env_names if record else ()), MARKER} & process.env.keys()
    unit = observed.unit.text if observed.unit else None
    return Kept(
        argv=process.argv[len(command.prefix) - 2 :],
        entries=tuple((name, _seen(process.env[name].value)) for name in sorted(names)),
        runtime=observed.runtime or "process",
        credential="LoadCredential=hf_token:" in (unit or ""),
        vllm_version=(observed.endpoint.version if observed.endpoint else None) or "",
        decided=record.decided if record else {},
    )


def _seen(value: str | None) -> str | Keep:
    return KEEP if value is None else value


def why_not_kept(kept: Kept) -> str:
    """Why a launch must not be kept; '' where it may: what looks like a secret has no place in a revision."""
    for word in (*kept.argv, *kept.public.values(), *(name for name, _ in kept.entries)):
        if masked(word) != word or "***" in word:
            return "one of its arguments looks like a secret"
    for name, value in kept.public.items():
        if shown(name, value) == HIDDEN:
            return f"its variable {name} is a secret"
    command = from_argv(kept.argv, catalogue_for(kept.vllm_version))
    if command is not None and SECRET_ARGUMENTS & command.settings.keys():
        return "one of its arguments is a secret"
    return ""


def tried_digest(kept: Kept) -> str:
    """A digest of a launch, secrets aside, by which one that failed is known again."""
    launch = to_json(Revision(kept=replace(kept, placed=None, decided={}, vllm_version="")))["launch"]
    return digest(json.dumps(launch, sort_keys=True))


def newest_good(revisions: Iterable[Revision]) -> Revision | None:
    """The last one that was proven ready; `revisions` are oldest first."""
    return next((each for each in reversed([*revisions]) if each.good), None)


def running(revisions: Sequence[Revision], observed: ObservedServer) -> Revision | None:
    """The newest revision that is what runs."""
    return next((each for each in reversed(revisions) if each.good and is_running(each.kept, observed)), None)


def is_running(kept: Kept, observed: ObservedServer) -> bool:
    """Whether a server runs as it was launched then, secrets aside."""
    process = observed.process
    if process is None or (observed.runtime and observed.runtime != kept.runtime):
        return False
    seen = process.argv[-len(kept.argv) :]
    if len(seen) != len(kept.argv) or not all(map(is_alike, seen, kept.argv)):
        return False
    found = {name: value.value for name, value in process.env.items()}
    return all(found.get(name) == value for name, value in kept.public.items() if found.get(name, "") is not None)


def changed_fields(before: Kept, after: Kept, wanted: DesiredServer | None = None) -> tuple[Field, ...]:
    """What differs between two launches, vLLM's version aside; with `wanted`, where each value of `after` was said."""
    one, other = (from_argv(each.argv, catalogue_for(after.vllm_version)) for each in (before, after))
    if one is None or other is None:
        fields = [] if before.argv == after.argv else [Field(path="argv", before=_line(before), after=_line(after))]
    else:
        fields = _command_fields(one, other, after)
    if before.argv[0] != after.argv[0]:
        fields.append(Field(path="executable", before=before.argv[0], after=after.argv[0]))
    if before.runtime != after.runtime:
        fields.append(Field(path="runtime", before=before.runtime, after=after.runtime))
    if before.credential != after.credential:
        words = {True: "credential", False: "environment"}
        path = "vllm_token_delivery"
        fields.append(Field(path=path, before=words[before.credential], after=words[after.credential]))
    fields += _env_fields(dict(before.entries), dict(after.entries))
    return tuple(replace(each, origin=_origin(each.path, wanted)) for each in fields)


def fields_text(fields: Iterable[Field]) -> str:
    """`args.max_model_len 4096 → 8192 (models.d/m.yaml:9)` for each, for a person."""
    return ", ".join(
        f"{field.path} {_brief(field.before)} → {_brief(field.after)}" + (f" ({field.origin})" if field.origin else "")
        for field in fields
    )


def _brief(value: JsonValue) -> str:
    return "(none)" if value is None else printable(str(value))


def _line(kept: Kept) -> str:
    return masked(" ".join(kept.argv))[:200]


def _command_fields(before: Command, after: Command, launched: Kept) -> list[Field]:
    fields = []
    if before.model != after.model:
        fields.append(Field(path="model", before=before.model, after=after.model))
    catalogue = catalogue_for(launched.vllm_version)
    for name, old, new in differences(after.settings, before.settings, catalogue):
        path = name if name in PLAIN else f"args.{name}"
        fields.append(Field(path=path, before=old, after=new))
    return fields


def _env_fields(before: dict[str, object], after: dict[str, object]) -> list[Field]:
    fields = []
    for name in sorted({*before, *after} - {MARKER, ORDER}):
        old, new = before.get(name), after.get(name)
        if old != new:
            path = {TOKEN_VARIABLE: "hf_token", VISIBLE: "gpus"}.get(name, f"env.{name}")
            fields.append(Field(path=path, before=_shown(old), after=_shown(new)))
    return fields


def _shown(value: object) -> str | None:
    """A variable for a person: hidden where only the host has it."""
    return value if isinstance(value, str) or value is None else HIDDEN


def _origin(path: str, wanted: DesiredServer | None) -> str:
    """Where today's value of a field was said; '' where nobody did."""
    if wanted is None:
        return ""
    kind, _, name = path.partition(".")
    if kind in {"args", "env"}:
        setting = (wanted.settings if kind == "args" else wanted.env).get(name)
        return str(setting.origin) if setting else ""
    origin = wanted.origins.get({"hf_token": "token"}.get(path, path))
    return str(origin) if origin else ""

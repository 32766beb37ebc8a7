"""Why a server that needs an action must not get it now. Pure; each block names its evidence and the way out."""

from __future__ import annotations

from collections.abc import Mapping

from vmreconcile.core.diff import Subject, release
from vmreconcile.model.desired import CORDONED, DesiredServer
from vmreconcile.model.observed import PortHolder
from vmreconcile.model.plan import Block, Reason

CREDENTIALS_SINCE = 250


def block_of(subject: Subject, leaving: Mapping[int, str]) -> Block | None:
    """The first obstacle to a start of this server, or None.

    `leaving` maps ports to the slugs of our own servers that give them up in this same plan.
    """
    return (
        _folder(subject)
        or _runtime(subject)
        or _credential(subject)
        or _executable(subject)
        or _argument(subject)
        or _port(subject, leaving)
    )


def cordoned(server: DesiredServer) -> Block | None:
    """Nothing is started of a model, or on a host, that somebody has cordoned; what runs goes on."""
    for what, reason in ((f"host {server.id.host}", server.host_cordon), (server.id.model, server.cordon)):
        if reason:
            told = "" if reason == CORDONED else f": {reason}"
            remedy = "take the cordon back when it may start again (vllm_cordon of the host, cordon of the model)"
            return Block(reason=Reason.CORDONED, note=f"{what} is cordoned{told}", remedy=remedy)
    return None


def _folder(subject: Subject) -> Block | None:
    problem = subject.host.folder_problem
    if not problem:
        return None
    folders = f"{subject.host.state_dir} and {subject.host.config_dir}"
    remedy = f"let {subject.host.user}, and nobody else, write in {folders}"
    return Block(reason=Reason.FOLDER_UNUSABLE, note=problem, remedy=f"{remedy}, or set vllm_state_dir")


def _runtime(subject: Subject) -> Block | None:
    problem = subject.runtime.problem(subject.host) or subject.runtime.refusal(subject.launch)
    if not problem:
        return None
    remedy = "set vllm_runtime: process for this host"
    return Block(reason=Reason.NO_RUNTIME, note=f"runtime {subject.runtime.name}: {problem}", remedy=remedy)


def _credential(subject: Subject) -> Block | None:
    """%d, which names the folder of credentials in a unit, came with systemd 250."""
    if not subject.launch.token_path:
        return None
    version = subject.host.systemd.version
    if subject.runtime.name == "systemd" and version is not None and version >= CREDENTIALS_SINCE:
        return None
    there = f"systemd {version}" if version is not None and subject.runtime.name == "systemd" else "no systemd unit"
    note = f"vllm_token_delivery: credential needs systemd {CREDENTIALS_SINCE} or newer, here is {there}"
    return Block(reason=Reason.NO_RUNTIME, note=note, remedy="set vllm_token_delivery: environment for this host")


def _executable(subject: Subject) -> Block | None:
    installed = subject.host.installed(subject.wanted.executable)
    if installed.path is not None and not (installed.problem and installed.version is None):
        return None
    asked = subject.wanted.executable or "vllm on PATH"
    note = f"{asked}: {installed.problem or 'not found'}"
    return Block(
        reason=Reason.NO_EXECUTABLE, note=note, remedy="install vLLM there, or set vllm_executable to its path"
    )


def _argument(subject: Subject) -> Block | None:
    version = subject.host.installed(subject.wanted.executable).version
    if version is None or release(version) != subject.catalogue.version:
        return None  # no catalogue for just this version: vLLM itself decides
    unknown = sorted(name for name in subject.wanted.settings if subject.catalogue.canonical(name) is None)
    if not unknown:
        return None
    place = subject.wanted.settings[unknown[0]].origin
    note = f"vLLM {version} on this host has no argument {', '.join(unknown)}"
    return Block(reason=Reason.ARGUMENT_UNKNOWN, note=note, remedy=f"remove it ({place}), or upgrade vLLM on the host")


def _port(subject: Subject, leaving: Mapping[int, str]) -> Block | None:
    holder = _holder(subject)
    if holder is None or (holder.slug is not None and leaving.get(holder.port) == holder.slug):
        return None
    who = f"pid {holder.pid}" if holder.pid else "a process that this user cannot see"
    whose = f"our server {holder.slug}" if holder.slug else _not_ours(subject, holder)
    what = f": {holder.what}" if holder.what else ""
    note = f"port {holder.port} is held by {who} ({whose}{what})"
    return Block(reason=Reason.PORT_HELD, note=note, remedy="stop it there, or give this server another port")


def _not_ours(subject: Subject, holder: PortHolder) -> str:
    """Why a holder is not ours, where it looks as if it were: one that was started from another state folder, say."""
    for stranger in subject.host.strangers:
        if stranger.pid == holder.pid and "marker for" in stranger.why:
            return f"not ours: {stranger.why}; was it started with another vllm_state_dir?"
    return "not ours"


def _holder(subject: Subject) -> PortHolder | None:
    for holder in subject.host.ports:
        if holder.port == subject.wanted.port and holder.slug != subject.wanted.id.slug:
            return holder
    return None

"""From a wanted server and a host's facts to a `Launch`. Pure; holds no secret, only names of secrets."""

from __future__ import annotations

from collections.abc import Mapping

from vmreconcile.core.fingerprints import shown
from vmreconcile.core.gpus.visible import device_variables
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.launch import MARKER, Launch, token_beside
from vmreconcile.model.observed import HostView
from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.steps import KEEP, EnvEntry, SecretRef
from vmreconcile.model.values import JsonValue, OriginKind
from vmreconcile.vllm.catalogue import Catalogue
from vmreconcile.vllm.command import to_argv
from vmreconcile.vllm.draining import SHUTDOWN_TIMEOUT, whole_seconds

TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - a variable's name
"""What huggingface_hub reads first; constants are read at import, so a new token needs a restart (vLLM 0.32.0)."""

CREDENTIAL = "credential"
"""`vllm_token_delivery`: systemd hands the token over as a file that only the server can read."""

CHOSEN = ("gpu_memory_utilization", "max_model_len")
"""Settings that may be left to the tool."""

ENV_SECRET = "env."  # noqa: S105 - a prefix
"""Names a secret that stands in a model's own `env`."""


def make_launch(server: DesiredServer, host: HostView, catalogue: Catalogue, *, token_known: bool) -> Launch:
    """What starting `server` on `host` takes. `token_known`: its token source gave a token in this run."""
    scope, settings = host.systemd.scope, server.settings
    env_path = f"{host.config_dir}/env/{server.id.slug}.env"
    return Launch(
        id=server.id,
        argv=launch_argv(server, host.installed(server.executable).path or server.executable or "vllm", catalogue),
        entries=tuple(sorted(_entries(server, token_known=token_known), key=lambda entry: entry[0])),
        env_path=env_path,
        token_path=token_beside(env_path) if _as_credential(server) else "",
        log_path=f"{host.state_dir}/log/{server.id.slug}.log",
        cwd=host.state_dir,
        scope=scope,
        unit_dir="/etc/systemd/system" if scope == "system" else f"{host.home}/.config/systemd/user",
        linger=scope == "user" and host.systemd.lingering is False,
        drains=whole_seconds(settings[SHUTDOWN_TIMEOUT].value) if SHUTDOWN_TIMEOUT in settings else 0,
        record={
            "server": server.id.local,
            "port": server.port,
            "env_names": [*sorted(env_names(server))],
            **({"decided": decided} if (decided := _decided(server)) else {}),
        },
    )


def _decided(server: DesiredServer) -> dict[str, JsonValue]:
    """The numbers that the tool chose: next time they stay, unless something asks for others."""
    chosen = {name: server.settings[name] for name in CHOSEN if name in server.settings}
    return {name: each.value for name, each in chosen.items() if each.origin.kind is OriginKind.TOOL}


def _as_credential(server: DesiredServer) -> bool:
    return server.delivery == CREDENTIAL and server.token is not None


def launch_argv(server: DesiredServer, executable: str, catalogue: Catalogue) -> tuple[str, ...]:
    """The whole command line, verbatim."""
    return to_argv(executable, server.model, launch_settings(server), catalogue)


def launch_settings(server: DesiredServer) -> dict[str, JsonValue]:
    """Settings as vLLM gets them: the user's, and those the tool owns."""
    settings = {name: setting.value for name, setting in server.settings.items()}
    settings["port"] = server.port
    if server.revision is not None:
        settings["revision"] = server.revision
    return settings


def public_env(server: DesiredServer) -> Mapping[str, str]:
    """The environment without the token: the user's entries, the GPUs that were decided on, our marker."""
    env = {name: str(setting.value) for name, setting in server.env.items()} | device_variables(server.visible)
    env[MARKER] = server.id.slug
    return env


def env_names(server: DesiredServer) -> set[str]:
    """Names in the env file, the token's among them where one is wanted."""
    return {*public_env(server), *server.keeps} | ({TOKEN_VARIABLE} if server.token is not None else set())


def _entries(server: DesiredServer, *, token_known: bool) -> list[EnvEntry]:
    entries: list[EnvEntry] = [(name, _entry(name, value)) for name, value in public_env(server).items()]
    entries += [(name, KEEP) for name in server.keeps]
    if server.token is not None and TOKEN_VARIABLE not in server.keeps:
        # Not found on this controller: what the host has stays, for a colleague may have put it there.
        entries.append((TOKEN_VARIABLE, SecretRef(name=server.token) if token_known else KEEP))
    return entries


def _entry(name: str, value: str) -> str | SecretRef:
    """A value as a step may hold it: one that looks like a secret goes by name, for plans are written to files."""
    return SecretRef(name=f"{ENV_SECRET}{name}") if shown(name, value) == HIDDEN else value

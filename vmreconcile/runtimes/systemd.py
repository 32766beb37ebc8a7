"""Runtime `systemd`: a unit a server, system or user scope. Renders units and quotes for them; runs nothing.

Sources: systemd.service(5), systemd.unit(5) (quoting, specifiers), systemd.exec(5), systemd.kill(5).
"""

from __future__ import annotations

import re
from dataclasses import replace

from vmreconcile.model.launch import MARKER, TOKEN_VARIABLES, Launch, token_beside
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.plan import Field
from vmreconcile.model.steps import (
    EnableLinger,
    RemoveFile,
    RemoveServer,
    Step,
    StopUnit,
    Systemctl,
    WriteEnv,
    WriteFile,
    WriteRecord,
)
from vmreconcile.runtimes.process import end_orphans, grace_of
from vmreconcile.runtimes.unit_files import unit_differences

MINIMUM_VERSION = 240
"""Type=exec, which reports a failing exec, came with 240."""

STOP_TIMEOUT_S = 60
"""A SIGTERM is not bounded by vLLM itself: requests in flight hold the exit. After this systemd kills the group.

What `shutdown_timeout` gives them comes on top.
"""

OPEN_FILES = 1 << 20
"""More than any vLLM needs, and the kernel's own default for how many there may be (fs.nr_open)."""

LONGEST_LINE = 1 << 20
"""Bytes of a line in a unit (LONG_LINE_MAX)."""

WIDEST = 7
"""Bytes that one letter takes at most, quotes and blank around a word of one letter included."""

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
UNSAFE_PATH = re.compile(r"[\x00-\x1f\x7f\"'\\]")
NONCHARACTER = re.compile(
    "[\ufdd0-\ufdef" + "".join(chr(plane << 16 | 0xFFFE) + chr(plane << 16 | 0xFFFF) for plane in range(17)) + "]"
)
"""Code points that systemd takes for broken UTF-8: it refuses the whole file, and then cannot show any unit."""


class SystemdRuntime:
    """Servers as systemd units."""

    name = "systemd"
    open_files: int | None = OPEN_FILES

    def problem(self, host: HostView) -> str:
        """Say why systemd cannot be used here, '' where it can."""
        systemd = host.systemd
        if systemd.problem:
            return systemd.problem
        if systemd.version is None:
            return "systemd is not running"
        if systemd.version < MINIMUM_VERSION:
            return f"systemd {systemd.version} is older than {MINIMUM_VERSION}"
        return ""

    def refusal(self, launch: Launch) -> str:
        """What systemd would read wrongly or not at all (systemd 252: src/basic/utf8.c, string-util.c, fileio.h)."""
        path = launch.argv[0]
        if UNSAFE_PATH.search(path):
            return f"no quotes, backslashes or control characters in the path of a program: {path!r}"
        for folder in (launch.env_path, launch.cwd, launch.log_path):
            if CONTROL.search(folder):
                return f"no control characters in a path: {folder!r}"
        if problem := _noncharacter(launch):
            return problem
        if WIDEST * sum(map(len, launch.argv)) > LONGEST_LINE < len(command_line(launch.argv).encode()):
            return "the command line is longer than a line of a unit may be (1 MiB)"
        return ""

    def crashed(self, server: ObservedServer) -> bool:
        """The unit failed, is waiting to be restarted, or was meant to run and ended."""
        unit = server.unit
        if unit is None:
            return False
        return unit.active == "failed" or unit.sub == "auto-restart" or unit.result not in {"", "success"}

    def drift(self, launch: Launch, server: ObservedServer) -> tuple[Field, ...]:
        """The unit's text, whether systemd has read it, and whether it starts at boot."""
        unit = server.unit
        if unit is None or unit.text is None:
            return (Field(path="unit", before=None, after=launch.id.unit),)
        fields = [
            Field(path=f"unit.{name}", before=before, after=after)
            for name, before, after in unit_differences(unit.text, unit_text(launch))
        ]
        if unit.enabled != "enabled":
            fields.append(Field(path="unit.enabled", before=unit.enabled, after="enabled"))
        if unit.needs_reload:
            fields.append(Field(path="unit.needs_reload", before=True, after=False))
        return tuple(fields)

    def start(self, launch: Launch) -> tuple[Step, ...]:
        """Write, reload, enable for the next boot, forget earlier failures (the start limit), start."""
        return (*self.refresh(launch), *self.begin(launch))

    def begin(self, launch: Launch) -> tuple[Step, ...]:
        """Forget earlier failures, start."""
        unit, scope = launch.id.unit, launch.scope
        return (
            Systemctl(verb="reset-failed", unit=unit, scope=scope),
            Systemctl(verb="start", unit=unit, scope=scope),
        )

    def refresh(self, launch: Launch) -> tuple[Step, ...]:
        """Write env file, record and unit, reload and enable; the process goes on.

        Where the token moves between env file and credential, what the old unit needs goes last: a host that is lost
        in between can still restart the server.
        """
        record = {**launch.record, "runtime": self.name, "state": "running"}
        linger: tuple[Step, ...] = (EnableLinger(),) if launch.linger else ()
        env = WriteEnv(path=launch.env_path, entries=launch.entries)
        return (
            WriteRecord(slug=launch.id.slug, record=record),
            replace(env, credential="added" if launch.token_path else ""),
            *linger,
            WriteFile(path=launch.unit_path, content=unit_text(launch)),
            Systemctl(verb="daemon-reload", scope=launch.scope),
            Systemctl(verb="enable", unit=launch.id.unit, scope=launch.scope),
            replace(env, credential="only") if launch.token_path else RemoveFile(path=token_beside(launch.env_path)),
        )

    def stop(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Disable first, so that a reboot in between does not bring it back; then stop; then what is left over."""
        if server.unit is None:
            return self.halt(host, server)
        return (
            Systemctl(verb="disable", unit=server.unit.name, scope=host.systemd.scope),
            *self.halt(host, server),
        )

    def halt(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """Stop, then end what is left over."""
        orphans: tuple[Step, ...] = (end_orphans(server),) if server.orphans else ()
        if server.unit is None:
            return orphans
        scope, unit = host.systemd.scope, server.unit.name
        return (
            StopUnit(unit=unit, scope=scope, grace_s=grace_of(server)),
            *orphans,
            Systemctl(verb="reset-failed", unit=unit, scope=scope),
        )

    def remove(self, host: HostView, server: ObservedServer) -> tuple[Step, ...]:
        """The unit, then record, env file and folders."""
        if server.unit is None:
            return (RemoveServer(slug=server.slug),)
        return (
            RemoveFile(path=server.unit.path),
            Systemctl(verb="daemon-reload", scope=host.systemd.scope),
            RemoveServer(slug=server.slug),
        )


def _noncharacter(launch: Launch) -> str:
    """Where a launch holds what systemd takes for broken text."""
    variables = [(f"the variable {name}", value) for name, value in launch.entries if isinstance(value, str)]
    for where, text in [("an argument", "".join(launch.argv)), ("a path", launch.cwd), *variables]:
        if found := NONCHARACTER.search(text):
            return f"{where} holds U+{ord(found[0]):04X}, which is no character"
    return ""


def unit_text(launch: Launch) -> str:
    """The whole unit file of a launch; holds no secret.

    Where vLLM is to finish its requests, TERM goes to the root alone (systemd.kill(5)): workers of several GPUs would
    exit at it at once, requests with them (vLLM 0.32.0, v1/executor/multiproc_executor.py).

    A core limit of 1 also keeps the kernel from running a collector, which 0 does not (core(5)): systemd-coredump
    writes the whole environment of what crashed, token included, into the journal.
    """
    target = "multi-user.target" if launch.scope == "system" else "default.target"
    network = "Wants=network-online.target\nAfter=network-online.target\n" if launch.scope == "system" else ""
    output = "" if launch.scope == "system" else _own_log(launch)
    kill_mode = "mixed" if launch.drains else "control-group"
    return f"""# Written by vmreconcile for {launch.id.local}. Edits are drift: apply writes this file anew.
[Unit]
Description=vLLM {specifier_safe(launch.id.local)} (vmreconcile)
{network}StartLimitIntervalSec=1800
StartLimitBurst=5

[Service]
Type=exec
Environment={MARKER}={launch.id.slug}
EnvironmentFile={glob_safe(specifier_safe(launch.env_path))}
{_without_tokens(launch)}WorkingDirectory={specifier_safe(launch.cwd)}
{output}ExecStart={command_line(launch.argv)}
Restart=always
RestartSec=5
RestartPreventExitStatus=2
KillMode={kill_mode}
TimeoutStopSec={STOP_TIMEOUT_S + launch.drains}
LimitNOFILE={OPEN_FILES}
LimitCORE=1

[Install]
WantedBy={target}
"""


def _without_tokens(launch: Launch) -> str:
    """Take away the Hub tokens that the env file does not give: the manager's own environment may hold one."""
    given = {name for name, _ in launch.entries if name != TOKEN_VARIABLES[0] or not launch.token_path}
    names = [name for name in TOKEN_VARIABLES if name not in given]
    unset = f"UnsetEnvironment={' '.join(names)}\n" if names else ""
    if not launch.token_path:
        return unset
    loaded = f"LoadCredential=hf_token:{specifier_safe(launch.token_path)}\nEnvironment=HF_TOKEN_PATH=%d/hf_token\n"
    return unset + loaded


def _own_log(launch: Launch) -> str:
    """A log file for a user's unit: its journal can only be read where journald keeps one on disk (journald.conf(5)).

    The first line marks a start, for a restart by systemd too; a host without /bin/echo goes without.
    """
    return (
        f"StandardOutput=append:{specifier_safe(launch.log_path)}\n"
        f'ExecStartPre=-/bin/echo "vmreconcile: starting {launch.id.slug} (unit)"\n'
    )


def command_line(argv: tuple[str, ...]) -> str:
    """ExecStart= that starts exactly `argv`: quoted, escaped, without variables or specifiers being expanded.

    systemd replaces variables in every word but the path of the program, so a '$' there stands for itself.
    """
    path, *rest = argv
    return " ".join([f'"{path.translate(PATH_ESCAPES)}"', *map(quote, rest)])


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(1, 0x20), 0x7F)}
PATH_ESCAPES = {**CONTROLS, ord("\n"): "\\n", ord("\t"): "\\t", ord("\\"): "\\\\", ord('"'): '\\"', ord("%"): "%%"}
ESCAPES = {**PATH_ESCAPES, ord("$"): "$$"}


def quote(argument: str) -> str:
    r"""One argument in systemd's double quotes: `\\`, `\"`, C escapes for control characters, `%%`, `$$`."""
    return f'"{argument.translate(ESCAPES)}"'


def specifier_safe(text: str) -> str:
    """Text for a directive that expands specifiers."""
    return text.replace("%", "%%")


def glob_safe(path: str) -> str:
    """A path for a directive that expands patterns."""
    return re.sub(r"([\\*?\[\]])", r"\\\1", path)

"""What `~/.ssh/config` says of a host, read once a run. Reads files and runs `Match exec`; connects to nothing.

Written out here because paramiko's reader knows no `Include`, expands `%p` to the file's port although the inventory
has another, and asks the resolver for our own name at each lookup. Follows ssh_config(5) of OpenSSH 9; `ssh -G` is the
oracle of its tests. Left out: canonicalisation of host names (`CanonicalizeHostname`).
"""

from __future__ import annotations

import fnmatch
import getpass
import glob
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

SYSTEM_CONFIG = "/etc/ssh/ssh_config"
DEEPEST_INCLUDE = 16
EXEC_TIMEOUT = 10.0
LISTS = frozenset({"identityfile", "certificatefile"})
RAW = frozenset({"proxycommand"})

_LINE = re.compile(r"([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*)")
_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """What holds for one host, tokens expanded. `identity_files` is empty where none was named."""

    name: str
    hostname: str
    port: int
    user: str
    identity_files: tuple[str, ...] = ()
    identities_only: bool = False
    agent_socket: str = ""
    proxy_jump: str = ""
    proxy_command: str = ""
    user_known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    host_key_alias: str = ""
    hash_known_hosts: bool = False
    address_family: str = "any"

    @property
    def known_as(self) -> str:
        """The name under which the host's key is kept in known_hosts."""
        if self.host_key_alias:
            return self.host_key_alias.lower()
        name = self.hostname.lower()
        return name if self.port == 22 else f"[{name}]:{self.port}"

    def through(self, *, proxy_jump: str = "", proxy_command: str = "") -> HostSettings:
        """The same host by another way."""
        return replace(self, proxy_jump=proxy_jump, proxy_command=proxy_command)


@dataclass(frozen=True, slots=True)
class _Condition:
    """One `Host` line (`words` are patterns) or `Match` line (`words` are its criteria)."""

    kind: str
    words: tuple[str, ...]


@dataclass(slots=True)
class _Block:
    conditions: tuple[_Condition, ...]
    settings: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class SshConfig:
    """The parsed files of one person, looked up per host. Safe for threads: nothing changes once it is read."""

    home: Path
    environ: Mapping[str, str]
    blocks: list[_Block] = field(default_factory=list)
    login: str = field(default_factory=getpass.getuser)
    _executed: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def read(cls, home: Path, environ: Mapping[str, str], system: str = SYSTEM_CONFIG) -> SshConfig:
        """Read the person's file, then the system's: the first value found wins.

        Raises:
            ValueError: naming the file and line that cannot be read.
        """
        config = cls(home=home, environ=environ)
        config._parse(home / ".ssh/config", home / ".ssh", (), 0)
        config._parse(Path(system), Path(system).parent, (), 0)
        return config

    def lookup(self, name: str, *, user: str = "", port: int | None = None) -> HostSettings:
        """What holds for `name`; `user` and `port`, where given, go before the files."""
        found: dict[str, list[str]] = {}
        if user:
            found["user"] = [user]
        if port is not None:
            found["port"] = [str(port)]
        self._collect(name, found, final=False)
        if any("final" in condition.words for block in self.blocks for condition in block.conditions):
            self._collect(self._hostname(name, found), found, final=True)
        return self._settings(name, found)

    def _parse(self, path: Path, relative_to: Path, outer: tuple[_Condition, ...], depth: int) -> None:
        try:
            lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        block = self._begin(outer)
        for number, text in enumerate(lines, 1):
            line = text.strip()
            if not line or line.startswith("#"):
                continue
            try:
                key, value, words = _split(line)
            except ValueError:
                raise ValueError(f"{path}:{number}: this line cannot be read") from None
            if key in {"host", "match"}:
                block = self._begin((*outer, _Condition(key, words)))
            elif key == "include":
                if depth >= DEEPEST_INCLUDE:
                    raise ValueError(f"{path}:{number}: files include one another too deeply")
                for word in words:
                    self._include(word, relative_to, block.conditions, depth)
                block = self._begin(block.conditions)
            else:
                block.settings += [(key, entry) for entry in ((value,) if key in RAW else _entries(key, words))]

    def _begin(self, conditions: tuple[_Condition, ...]) -> _Block:
        block = _Block(conditions)
        self.blocks.append(block)
        return block

    def _include(self, word: str, relative_to: Path, conditions: tuple[_Condition, ...], depth: int) -> None:
        pattern = self._expand(word, {})
        for path in sorted(glob.glob(os.path.join(relative_to, pattern))):  # noqa: PTH207,PTH118 - may be absolute
            self._parse(Path(path), relative_to, conditions, depth + 1)

    def _collect(self, name: str, found: dict[str, list[str]], *, final: bool) -> None:
        for block in self.blocks:
            if not all(self._holds(condition, name, found, final=final) for condition in block.conditions):
                continue
            for key, value in block.settings:
                if key not in found:
                    found[key] = [value]
                elif key in LISTS and value not in found[key]:
                    found[key].append(value)

    def _holds(self, condition: _Condition, name: str, found: dict[str, list[str]], *, final: bool) -> bool:
        if condition.kind == "host":
            return _matches(condition.words, name)
        words = list(condition.words)
        while words:
            word = words.pop(0).lower()
            negated, word = word.startswith("!"), word.removeprefix("!")
            argument = "" if word in {"all", "final", "canonical"} or not words else words.pop(0)
            if self._criterion(word, argument, name, found, final=final) is negated:
                return False
        return True

    def _criterion(self, word: str, argument: str, name: str, found: dict[str, list[str]], *, final: bool) -> bool:
        patterns = argument.split(",")
        match word:
            case "all":
                return True
            case "final":
                return final
            case "host":
                return _matches(argument.lower().split(","), self._hostname(name, found))
            case "originalhost":
                return _matches(argument.lower().split(","), name)
            case "user":
                return _matches(patterns, found.get("user", [self.login])[0])
            case "localuser":
                return _matches(patterns, self.login)
            case "exec":
                return self._exec(self._expand(argument, self._tokens(name, found)))
            case _:
                return False

    def _exec(self, command: str) -> bool:
        """Whether a command of `Match exec` succeeds: run once a run for each text, not once a host."""
        if command not in self._executed:
            try:
                done = subprocess.run(  # noqa: S602 - the person's own configuration asks for a shell
                    command,
                    shell=True,
                    check=False,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=dict(self.environ),
                    timeout=EXEC_TIMEOUT,
                )
                self._executed[command] = done.returncode == 0
            except (OSError, subprocess.TimeoutExpired):
                self._executed[command] = False
        return self._executed[command]

    def _hostname(self, name: str, found: dict[str, list[str]]) -> str:
        template = found.get("hostname", ["%h"])[0]
        return template.replace("%%", "\0").replace("%h", name).replace("\0", "%")

    def _tokens(self, name: str, found: dict[str, list[str]]) -> dict[str, str]:
        hostname = self._hostname(name, found)
        return {
            "%%": "%",
            "%d": str(self.home),
            "%h": hostname,
            "%k": found.get("hostkeyalias", [name])[0],
            "%L": socket.gethostname().partition(".")[0],
            "%l": socket.gethostname(),
            "%n": name,
            "%p": found.get("port", ["22"])[0],
            "%r": found.get("user", [self.login])[0],
            "%u": self.login,
        }

    def _expand(self, text: str, tokens: Mapping[str, str], *, home: bool = True) -> str:
        text = re.sub(r"%.", lambda at: tokens.get(at[0], at[0]), text)
        text = _ENVIRONMENT.sub(lambda at: self.environ.get(at[1], at[0]), text)
        return str(self.home) + text[1:] if home and (text == "~" or text.startswith("~/")) else text

    def _settings(self, name: str, found: dict[str, list[str]]) -> HostSettings:
        tokens = self._tokens(name, found)

        def one(key: str, default: str = "") -> str:
            return self._expand(found.get(key, [default])[0], tokens)

        def several(key: str, default: str) -> tuple[str, ...]:
            words = found.get(key, [default])[0].split("\0")
            return tuple(self._expand(word, tokens) for word in words if word.lower() != "none")

        # The one that was said first puts the other out of force, even by saying 'none'.
        proxy = next((key for key in found if key in {"proxyjump", "proxycommand"}), "")
        through = (
            "" if not proxy or found[proxy][0].lower() == "none" else self._expand(found[proxy][0], tokens, home=False)
        )
        port = tokens["%p"]
        if not port.isdigit():
            raise ValueError(f"Port {port!r} of {name} is no number")
        identities = [word for word in found.get("identityfile", []) if word.lower() != "none"]
        return HostSettings(
            name=name,
            hostname=tokens["%h"],
            port=int(port),
            user=tokens["%r"],
            identity_files=tuple(self._expand(word, tokens) for word in identities),
            identities_only=one("identitiesonly").lower() == "yes",
            agent_socket=self._agent(one("identityagent", "SSH_AUTH_SOCK")),
            proxy_jump=through if proxy == "proxyjump" else "",
            proxy_command=through if proxy == "proxycommand" else "",
            user_known_hosts=several("userknownhostsfile", "~/.ssh/known_hosts\0~/.ssh/known_hosts2"),
            global_known_hosts=several("globalknownhostsfile", "/etc/ssh/ssh_known_hosts\0/etc/ssh/ssh_known_hosts2"),
            host_key_alias=one("hostkeyalias"),
            hash_known_hosts=one("hashknownhosts").lower() == "yes",
            address_family=one("addressfamily", "any").lower(),
        )

    def _agent(self, value: str) -> str:
        if value.lower() == "none":
            return ""
        if value == "SSH_AUTH_SOCK":
            return self.environ.get("SSH_AUTH_SOCK", "")
        return self.environ.get(value[1:], "") if value.startswith("$") else value

    def proxy_line(self, template: str, settings: HostSettings) -> str:
        """The shell line of a ProxyCommand that the inventory names for a host of these settings."""
        found = {"hostname": [settings.hostname], "port": [str(settings.port)], "user": [settings.user]}
        return self._expand(template, {**self._tokens(settings.name, found), "%h": settings.hostname}, home=False)


def _split(line: str) -> tuple[str, str, tuple[str, ...]]:
    """Keyword, the value as it stands, and the value's words (a word that starts with '#' ends them)."""
    parts = _LINE.fullmatch(line)
    if parts is None:
        raise ValueError(line)
    key, value = parts[1].lower(), parts[2]
    if key in RAW:
        return key, value, ()
    words = shlex.split(value)
    comment = next((index for index, word in enumerate(words) if word.startswith("#")), len(words))
    return key, value, tuple(words[:comment])


def _entries(key: str, words: tuple[str, ...]) -> tuple[str, ...]:
    """A setting's values: files that may be several stay together, of everything else the first word counts."""
    if not words:
        return ()
    return ("\0".join(words),) if key.endswith("knownhostsfile") else (words[0],)


def _matches(patterns: tuple[str, ...] | list[str], name: str) -> bool:
    """OpenSSH's pattern list: a negated match decides, else any match does."""
    hit = False
    for pattern in patterns:
        if fnmatch.fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            hit = True
    return hit

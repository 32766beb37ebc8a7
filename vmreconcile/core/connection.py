"""A host's variables as a typed `Connection`. Pure; owns which variables these are and what they may hold.

A variable that is used must be plain: a template (`{{ … }}`) or `!vault` text in it is an error that names its place.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import TypeVar

from vmreconcile.errors import Diagnostic, InputError, Place
from vmreconcile.model.connection import Connection, ConnectionKind
from vmreconcile.model.inventory import Host, UnsafeText, VaultedText
from vmreconcile.model.secret import Secret
from vmreconcile.model.values import JsonValue, Setting

T = TypeVar("T")

_KINDS = {
    "ssh": ConnectionKind.SSH,
    "smart": ConnectionKind.SSH,
    "ansible.builtin.ssh": ConnectionKind.SSH,
    "local": ConnectionKind.LOCAL,
    "ansible.builtin.local": ConnectionKind.LOCAL,
}
_SUDO = ("sudo", "ansible.builtin.sudo")
TRUE = ("1", "on", "t", "true", "y", "yes")  # what Ansible takes for true and false
FALSE = ("0", "f", "false", "n", "no", "off")
_FOUND_ON_HOST = ("auto", "auto_silent", "auto_legacy", "auto_legacy_silent")


def connection_of(host: Host) -> Connection:
    """Read how a host is reached.

    Where a variable has several names, the last of them wins, as in Ansible; an empty value is none.

    Raises:
        InputError: with every variable that is used and cannot be.
    """
    reader = _Reader(host)
    jump, command = reader.read(_proxy, "ansible_ssh_common_args") or ("", "")
    reader.read(_method, "ansible_become_method")
    connection = Connection(
        host=host.name,
        address=reader.text("ansible_ssh_host", "ansible_host"),
        port=reader.read(_port, "ansible_ssh_port", "ansible_port"),
        user=reader.text("ansible_ssh_user", "ansible_user"),
        kind=reader.read(_kind, "ansible_connection") or ConnectionKind.SSH,
        private_key_file=reader.text("ansible_private_key_file", "ansible_ssh_private_key_file"),
        proxy_jump=jump,
        proxy_command=command,
        become=bool(reader.read(_truth, "ansible_become")),
        become_user=reader.text("ansible_become_user") or "root",
        become_password=reader.secret("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass"),
        password=reader.secret("ansible_password", "ansible_ssh_pass", "ansible_ssh_password"),
        python_interpreter=reader.read(_interpreter, "ansible_python_interpreter") or "",
        vllm_executable=reader.text("vllm_executable"),
        vllm_state_dir=reader.text("vllm_state_dir"),
    )
    reader.refuse()
    return connection


def unusable(name: str, setting: Setting) -> Diagnostic | None:
    """Say why the value of a variable cannot be used as it stands: a template or vaulted text anywhere in it."""
    match _marked(setting.value):
        case "template":
            return _problem(
                name,
                setting,
                "variable-template",
                "holds a template ({{ … }})",
                why="Templates are Ansible's to fill in; vmreconcile uses this variable as it stands.",
                remedy="Write the value itself, or mark it !unsafe if the braces belong to it.",
            )
        case "vault":
            return _problem(
                name,
                setting,
                "variable-vault",
                "is encrypted with Ansible Vault",
                why="vmreconcile uses this variable and has no vault password.",
                remedy="Write the value itself, or let an agent or a key file do without it.",
            )
        case _:
            return None


def _marked(value: JsonValue) -> str:
    """Find what makes a value unusable: 'template', 'vault' or ""."""
    match value:
        case VaultedText():
            return "vault"
        case UnsafeText():
            return ""
        case str():
            return "template" if "{{" in value or "{%" in value else ""
        case list():
            return next(filter(None, map(_marked, value)), "")
        case dict():
            return next(filter(None, map(_marked, value.values())), "")
        case _:
            return ""


def _problem(name: str, setting: Setting, code: str, summary: str, *, why: str = "", remedy: str = "") -> Diagnostic:
    """Describe what is wrong with a variable, never its value: that may be a secret."""
    place = setting.origin.place or Place(file=str(setting.origin))
    owner = f" ({setting.origin.note})" if setting.origin.note else ""
    return Diagnostic(place=place, code=code, summary=f"{name} {summary}{owner}", why=why, remedy=remedy)


class _Reader:
    """Reads variables of one host and collects what is wrong with them."""

    def __init__(self, host: Host) -> None:
        self._variables: Mapping[str, Setting] = host.variables
        self._problems: list[Diagnostic] = []

    def read(self, convert: Callable[[JsonValue], T], *names: str) -> T | None:
        """Convert the last of these variables that is set; None where none is, or (with a problem) it is unfit."""
        found = [name for name in names if name in self._variables and self._variables[name].value not in (None, "")]
        if not found:
            return None
        name, setting = found[-1], self._variables[found[-1]]
        if problem := unusable(name, setting):
            self._problems.append(problem)
            return None
        try:
            return convert(setting.value)
        except _UnfitError as unfit:
            self._problems.append(_problem(name, setting, "variable-value", str(unfit), remedy=unfit.remedy))
            return None

    def text(self, *names: str) -> str:
        return self.read(_text, *names) or ""

    def secret(self, *names: str) -> Secret | None:
        return self.read(_secret, *names)

    def refuse(self) -> None:
        if self._problems:
            raise InputError(tuple(self._problems))


class _UnfitError(Exception):
    """A value that its variable cannot have; `str()` reads after the variable's name."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def _text(value: JsonValue) -> str:
    """Take text, or a whole number (a user or a host may be called 42)."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        text = str(value)
        if text.isprintable():
            return text
        raise _UnfitError("holds a control character", "Write it in one line of plain text.")
    raise _UnfitError("is no text", "Quote it.")


def _secret(value: JsonValue) -> Secret:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return Secret(str(value))
    raise _UnfitError("is no text", "Quote it.")


def _port(value: JsonValue) -> int:
    text = _text(value).strip()
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise _UnfitError(f"is {text!r}, no port", "Write a number from 1 to 65535.")


def _truth(value: JsonValue) -> bool:
    text = str(value).strip().lower() if isinstance(value, bool | int | float | str) else ""
    if text in TRUE or text == "1.0":
        return True
    if text in FALSE or text == "0.0":
        return False
    raise _UnfitError("is neither true nor false", "Write true or false.")


def _kind(value: JsonValue) -> ConnectionKind:
    text = _text(value)
    if text in _KINDS:
        return _KINDS[text]
    raise _UnfitError(f"is {text!r}, which vmreconcile cannot do", "Write ssh or local.")


def _method(value: JsonValue) -> None:
    text = _text(value)
    if text not in _SUDO:
        raise _UnfitError(f"is {text!r}; only sudo is known", "Write sudo, or log in as the user that is wanted.")


def _interpreter(value: JsonValue) -> str:
    text = _text(value)
    return "" if text in _FOUND_ON_HOST else text


def _proxy(value: JsonValue) -> tuple[str, str]:
    """Read (ProxyJump, ProxyCommand) from ssh's arguments, of which nothing else is known."""
    try:
        words = shlex.split(_text(value))
    except ValueError as error:
        raise _UnfitError(f"cannot be split into words: {error}", "Close the quote.") from None
    jump = command = ""
    while words:
        word = words.pop(0)
        option = word[2:] or (words.pop(0) if words else "")
        key, found = ("proxyjump", option) if word.startswith("-J") else _option(word, option)
        if key == "proxyjump" and found:
            jump = jump or found  # in ssh, the first of several wins
        elif key == "proxycommand" and found:
            command = command or found
        else:
            raise _UnfitError(
                f"holds {key or word[:2]!r}: only ProxyJump and ProxyCommand are known",
                "Put other options into ~/.ssh/config, which is honoured.",
            )
    if jump and command:
        raise _UnfitError("holds both ProxyJump and ProxyCommand", "Keep one of them.")
    return ("" if jump == "none" else jump), ("" if command == "none" else command)


def _option(word: str, option: str) -> tuple[str, str]:
    """Split `-o KEY=VALUE` or `-o 'KEY VALUE'`."""
    if not word.startswith("-o"):
        return "", ""
    text = option.strip()
    key = next((text[:at] for at, character in enumerate(text) if character in "= \t"), text)
    return key.lower(), text[len(key) :].lstrip(" \t").removeprefix("=").strip()

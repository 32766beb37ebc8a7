"""Logging in to an SSH server: which keys are offered in which order, and what is said when none is taken.

Never asks a person anything: an encrypted key is used through the agent or not at all. A key that was named is offered
before an agent's other keys, since a server hangs up after a few wrong ones (`MaxAuthTries`).
"""

from __future__ import annotations

import base64
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.agent import AgentSSH
from paramiko.pkey import UnknownKeyType

from vmreconcile.effects.known_hosts import fingerprint
from vmreconcile.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmreconcile.effects.ssh_config import HostSettings
    from vmreconcile.model.secret import Secret

DEFAULT_KEYS = ("id_rsa", "id_ecdsa", "id_ed25519")
AGENT_TIMEOUT = 5.0

_OPENSSH = b"openssh-key-v1\0"
_loaded: dict[tuple[str, int], paramiko.PKey] = {}
_loading = threading.Lock()


class SocketAgent(AgentSSH):
    """The agent behind a socket that is named, not looked up in the environment of this process."""

    def __init__(self, path: str) -> None:
        """Connect and list the keys.

        Raises:
            OSError, paramiko.SSHException: where nothing answers there.
        """
        super().__init__()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(AGENT_TIMEOUT)
        try:
            connection.connect(path)
            self._connect(connection)  # type: ignore[attr-defined]  # what paramiko.Agent itself calls
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._close()  # type: ignore[attr-defined]  # as above


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFile:
    """A private key's file: whether it is there, can be read without a passphrase, and its public half where known."""

    path: str
    exists: bool = False
    encrypted: bool = False
    public: bytes = b""

    @classmethod
    def look(cls, path: str) -> KeyFile:
        """Look at the file without decrypting anything."""
        try:
            content = Path(path).read_bytes()
        except OSError:
            return cls(path=path)
        encrypted = b"ENCRYPTED" in content
        public = b""
        with contextlib.suppress(ValueError, struct.error):
            body = base64.b64decode(b"".join(content.split(b"-----")[2].split()), validate=True) if content else b""
            if body.startswith(_OPENSSH):
                cipher, rest = _string(body[len(_OPENSSH) :])
                _, rest = _string(_string(rest)[1])
                public = _string(rest[4:])[0]
                encrypted = cipher != b"none"
        with contextlib.suppress(OSError, IndexError, ValueError):
            public = public or base64.b64decode(Path(path + ".pub").read_bytes().split()[1], validate=True)
        return cls(path=path, exists=True, encrypted=encrypted, public=public)

    def load(self) -> paramiko.PKey:
        """The key (with the certificate beside it, if any), read once for all hosts.

        Raises:
            ValueError: where it cannot be used, saying why.
        """
        try:
            stamp = (self.path, Path(self.path).stat().st_mtime_ns)
            with _loading:
                if stamp not in _loaded:
                    _loaded[stamp] = paramiko.PKey.from_path(self.path)
                return _loaded[stamp]
        except (paramiko.SSHException, UnknownKeyType, UnsupportedAlgorithm, ValueError, TypeError) as error:
            raise ValueError(f"{type(error).__name__}") from None
        except OSError as error:
            raise ValueError(error.strerror or "unreadable") from None


@dataclass(slots=True, kw_only=True)
class Login:
    """One login, as the `auth_strategy` of `paramiko.SSHClient.connect`."""

    settings: HostSettings
    home: Path
    named_key: str = ""
    password: Secret | None = None
    tried: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    _agent: SocketAgent | None = None

    def authenticate(self, transport: paramiko.Transport) -> list[str]:
        """Offer keys, then the password, until the server is content.

        Raises:
            UnreachableError: naming what was offered.
        """
        try:
            if self._offer_keys(transport) or self._offer_password(transport):
                return self.tried
            raise self._refused()
        finally:
            if self._agent is not None:
                self._agent.close()

    def _offer_keys(self, transport: paramiko.Transport) -> bool:
        for label, key in self._keys():
            self.tried.append(label)
            try:
                further = transport.auth_publickey(self.settings.user, key)
            except paramiko.BadAuthenticationType as error:
                self.tried.pop()
                self.hints.append(f"the server takes no keys, only {', '.join(sorted(error.allowed_types))}")
                return False
            except (paramiko.SSHException, EOFError, OSError):
                if not transport.is_active():
                    self.hints.append("the server hung up")
                    return False
                continue
            if further:
                self.hints.append(f"the key was taken, but the server wants {', '.join(further)} as well")
            return not further
        return False

    def _offer_password(self, transport: paramiko.Transport) -> bool:
        if not self.password or not transport.is_active():
            return False
        self.tried.append("password")
        try:
            return not transport.auth_password(self.settings.user, self.password.reveal())
        except (paramiko.SSHException, EOFError, OSError):
            return False

    def _keys(self) -> Iterator[tuple[str, paramiko.PKey]]:
        """Keys in the order of offering: the named one, those an agent holds of the listed files, the rest."""
        listed = tuple(dict.fromkeys(filter(None, (self.named_key, *self.settings.identity_files))))
        explicit = bool(listed)
        paths = listed or tuple(str(self.home / ".ssh" / name) for name in DEFAULT_KEYS)
        files = [KeyFile.look(path) for path in paths]
        if self.named_key and not files[0].encrypted:
            yield from self._from_file(files.pop(0), explicit=True)
        held = self._held()
        both = [file for file in files if file.public in held]
        yield from (_labelled(held.pop(public)) for public in dict.fromkeys(file.public for file in both))
        rest = [file for file in files if file not in both]
        if explicit:
            yield from (pair for file in rest for pair in self._from_file(file, explicit=True))
        if not self.settings.identities_only:
            yield from (_labelled(key) for key in held.values())
        if not explicit:
            yield from (pair for file in rest for pair in self._from_file(file, explicit=False))

    def _from_file(self, file: KeyFile, *, explicit: bool) -> Iterator[tuple[str, paramiko.PKey]]:
        if not file.exists:
            if explicit:
                self.hints.append(f"{file.path} cannot be read")
            return
        if file.encrypted:
            self.hints.append(f"{file.path} is encrypted and no agent holds it")
            return
        try:
            yield f"key {file.path}", file.load()
        except ValueError as error:
            self.hints.append(f"{file.path} cannot be used ({error})")

    def _held(self) -> dict[bytes, paramiko.PKey]:
        """The agent's keys by their public half."""
        if not self.settings.agent_socket:
            return {}
        try:
            self._agent = SocketAgent(self.settings.agent_socket)
        except (OSError, paramiko.SSHException):
            self.hints.append("the agent does not answer")
            return {}
        return {key.asbytes(): key for key in self._agent.get_keys()}

    def _refused(self) -> UnreachableError:
        tried = ", ".join(self.tried) or "nothing to offer"
        hints = "".join(f"; {hint}" for hint in dict.fromkeys(self.hints))
        if any("encrypted" in hint for hint in self.hints):
            remedy = "load the key into an agent: ssh-add, with SSH_AUTH_SOCK set"
        else:
            remedy = "check ansible_user and ansible_ssh_private_key_file, and the host's authorized_keys"
        return UnreachableError(f"login as {self.settings.user} was refused (tried: {tried}{hints})", remedy=remedy)


def _string(data: bytes) -> tuple[bytes, bytes]:
    """A string of SSH's wire format (RFC 4251, section 5), and what follows it."""
    (length,) = struct.unpack_from(">I", data)
    return data[4 : 4 + length], data[4 + length :]


def _labelled(key: paramiko.PKey) -> tuple[str, paramiko.PKey]:
    """A key of the agent and how it is called in an error: by its fingerprint, which is public."""
    return f"agent key {fingerprint(key.asbytes())}", key

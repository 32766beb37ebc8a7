"""Whether the key that an SSH server shows is one to trust. Reads and writes known_hosts through `known_hosts` only.

Stricter than ssh on purpose: `StrictHostKeyChecking` in `~/.ssh/config` opens nothing here, only the option of the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paramiko

from vmreconcile.effects.known_hosts import AUTHORITY, REVOKED, KnownHosts, KnownKey, fingerprint
from vmreconcile.errors import UnreachableError

if TYPE_CHECKING:
    from vmreconcile.effects.ssh_config import HostSettings

# The signature with SHA-1 is never asked for: sshd has not offered it since 8.8, and RSA keys have two better ones.
WEAK = ("ssh-rsa",)
SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


class Trust(paramiko.MissingHostKeyPolicy):
    """Judges the host key of one connection. paramiko's own store stays empty, so that it asks us about every key."""

    def __init__(self, settings: HostSettings, hosts: KnownHosts, *, accept_new: bool) -> None:
        """`accept_new` records the key of a host that has none so far."""
        self._settings = settings
        self._hosts = hosts
        self._accept_new = accept_new
        self._known: list[KnownKey] = []

    def look(self) -> None:
        """Look up by which keys the host is known.

        Raises:
            UnreachableError: where a known_hosts file cannot be read.
        """
        files = self._settings.user_known_hosts + self._settings.global_known_hosts
        try:
            self._known = self._hosts.keys(self._settings.known_as, files)
        except OSError as error:
            raise UnreachableError(
                f"known_hosts cannot be read ({error.strerror}: {error.filename})", remedy="mend its owner or mode"
            ) from None

    def transport(self, stream: Any, **options: Any) -> paramiko.Transport:  # noqa: ANN401 - paramiko's own types
        """A transport that asks first for the types of key by which the host is known."""
        transport = paramiko.Transport(stream, **options)
        wanted = [kind for key in self._known for kind in SIGNATURES.get(key.kind, (key.kind,)) if not key.marker]
        security = transport.get_security_options()
        possible = security.key_types
        security.key_types = tuple(dict.fromkeys([kind for kind in wanted if kind in possible] + list(possible)))
        return transport

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002 - paramiko's own
        """Accept a key that is known, or a new one where that was asked for.

        Raises:
            UnreachableError: for any other key.
        """
        blob, kind = key.asbytes(), key.get_name()
        if any(known.marker == REVOKED and known.blob == blob for known in self._known):
            raise UnreachableError(
                f"the host key {fingerprint(blob)} is revoked in known_hosts",
                remedy="give the host a new key, and add that one to known_hosts",
            )
        plain = [known for known in self._known if not known.marker]
        if any(known.blob == blob for known in plain):
            return
        if plain:
            raise self._changed(key)
        if any(known.marker == AUTHORITY for known in self._known):
            raise UnreachableError(
                "known_hosts vouches for the host by a certificate authority only, which cannot be checked here",
                remedy=f"add the host's own key: {self._keyscan()}",
            )
        if not self._accept_new:
            raise UnreachableError(
                f"unknown host key {fingerprint(blob)} ({kind}, {self._settings.known_as})",
                remedy=f"accept it with --accept-new-host-keys, or add it: {self._keyscan()}",
            )
        self._record(key, blob, kind)

    def _record(self, key: paramiko.PKey, blob: bytes, kind: str) -> None:
        settings = self._settings
        path = next(iter(settings.user_known_hosts), "")
        if not path or path == "/dev/null":
            return
        try:
            self._known = self._hosts.record(settings.known_as, kind, blob, path, hashed=settings.hash_known_hosts)
        except OSError as error:
            raise UnreachableError(
                f"the new host key cannot be recorded in {path} ({error.strerror})", remedy="mend its owner or mode"
            ) from None
        if all(known.blob != blob for known in self._known):
            raise self._changed(key)

    def _changed(self, key: paramiko.PKey) -> UnreachableError:
        name, kind = self._settings.known_as, key.get_name()
        known = next((known for known in self._known if known.kind == kind), next(iter(self._known), None))
        place = known.place if known else "known_hosts"
        return UnreachableError(
            f"the host key has CHANGED: {name} shows {fingerprint(key.asbytes())} ({kind}), not the one of {place}",
            remedy="someone may be listening in. Only if the host was set up anew: "
            f"ssh-keygen -f {place.rpartition(':')[0]} -R '{name}', then {self._keyscan()}",
        )

    def _keyscan(self) -> str:
        port = "" if self._settings.port == 22 else f"-p {self._settings.port} "
        return f"ssh-keyscan {port}{self._settings.hostname} >> ~/.ssh/known_hosts (and compare its fingerprint)"

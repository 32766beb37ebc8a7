"""known_hosts files: which keys a host is known by, and recording a new one. Connects to nothing, decides nothing.

The format is that of sshd(8), section SSH_KNOWN_HOSTS FILE FORMAT: plain and hashed names, `[host]:port`, wildcards,
negation, `@revoked`, `@cert-authority`. A file is parsed once for all connections and again when it has changed.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import secrets
import threading
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

REVOKED = "@revoked"
AUTHORITY = "@cert-authority"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownKey:
    """One line: where it stands, its marker ("" or `@…`), the key's type and its bytes."""

    place: str
    marker: str
    kind: str
    blob: bytes


@dataclass(frozen=True, slots=True)
class _Hashed:
    salt: bytes
    digest: bytes
    key: KnownKey


@dataclass(frozen=True, slots=True)
class _File:
    stamp: tuple[int, int, int]
    plain: dict[str, list[KnownKey]]
    hashed: list[_Hashed]
    patterns: list[tuple[tuple[str, ...], KnownKey]]

    def keys(self, name: str) -> list[KnownKey]:
        found = list(self.plain.get(name, ()))
        found += [entry.key for entry in self.hashed if _digest(entry.salt, name) == entry.digest]
        found += [key for patterns, key in self.patterns if _listed(patterns, name)]
        return found


class KnownHosts:
    """All known_hosts files of a run, shared by its threads."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()

    def keys(self, name: str, paths: tuple[str, ...]) -> list[KnownKey]:
        """The keys that `name` (`host` or `[host]:port`, lower case) is known by, in the files' order.

        Raises:
            OSError: where a file is there but cannot be read.
        """
        return [key for path in paths for key in self._file(path).keys(name)]

    def record(self, name: str, kind: str, blob: bytes, path: str, *, hashed: bool = False) -> list[KnownKey]:
        """Append a key unless `name` got one meanwhile; the keys it is known by afterwards in that file.

        Other processes append as well, so the file is locked, looked at again, and written in one piece.

        Raises:
            OSError: where the file cannot be written.
        """
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shown = _hash(name) if hashed else name
        line = f"{shown} {kind} {base64.b64encode(blob).decode()}\n".encode()
        with self._lock:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123 - a descriptor
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                content = file.read() or b""
                known = _parse(path, content, (0, 0, 0)).keys(name)
                if known:
                    return known
                file.write(line if not content or content.endswith(b"\n") else b"\n" + line)
                os.fsync(descriptor)
        return self.keys(name, (path,))

    def _file(self, path: str) -> _File:
        try:
            status = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return _File((0, 0, 0), {}, [], [])
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        held = self._files.get(path)
        if held is None or held.stamp != stamp:
            with self._lock:
                held = self._files.get(path)
                if held is None or held.stamp != stamp:
                    held = self._files[path] = _parse(path, Path(path).read_bytes(), stamp)
        return held


def fingerprint(blob: bytes) -> str:
    """A key's fingerprint as OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _parse(path: str, content: bytes, stamp: tuple[int, int, int]) -> _File:
    file = _File(stamp, {}, [], [])
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        try:
            blob = base64.b64decode(fields[2], validate=True)
        except (binascii.Error, ValueError):
            continue
        key = KnownKey(place=f"{path}:{number}", marker=marker, kind=fields[1], blob=blob)
        _enter(file, fields[0], key)
    return file


def _enter(file: _File, names: str, key: KnownKey) -> None:
    if names.startswith("|1|"):
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in names[3:].split("|"))
        except (binascii.Error, ValueError):
            return
        file.hashed.append(_Hashed(salt, digest, key))
        return
    patterns = tuple(names.lower().split(","))
    if any(sign in names for sign in "*?!"):
        file.patterns.append((patterns, key))
        return
    for name in patterns:
        file.plain.setdefault(name, []).append(key)


def _listed(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a name is in a list of patterns; '[' stands for itself there."""
    hit = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!").replace("[", "[[]")):
            if pattern.startswith("!"):
                return False
            hit = True
    return hit


def _digest(salt: bytes, name: str) -> bytes:
    return hmac.digest(salt, name.encode(), "sha1")


def _hash(name: str) -> str:
    salt = secrets.token_bytes(20)
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(_digest(salt, name)).decode()}"

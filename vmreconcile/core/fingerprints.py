"""Comparing environment values without moving them: salted fingerprints, and what may be shown. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from vmreconcile.model.secret import HIDDEN
from vmreconcile.model.showing import SECRET_NAME, masked


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the diff may know of secrets: this run's salt, and the fingerprint of each token source's token."""

    salt: str
    tokens: Mapping[str, str] = field(default_factory=dict)


def fingerprint(salt: str, name: str, value: str) -> str:
    """First 16 hex digits of HMAC-SHA256 over `NAME=value`; `salt` is hex and new in each run."""
    return hmac.digest(bytes.fromhex(salt), f"{name}={value}".encode(errors="replace"), "sha256").hex()[:16]


def digest(text: str) -> str:
    """First 16 hex digits of SHA-256: enough to see that something moved. Not for secrets, it has no salt."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def shown(name: str, value: str | None) -> str | None:
    """The value as a plan may show it."""
    if value is None:
        return None
    return HIDDEN if SECRET_NAME.search(name) or masked(value) != value else value

"""What the Hub allowed within the last hour, on the controller's disk: by keyed fingerprints, never a token.

Only permissions are kept: who was just granted access must not wait. A file that cannot be used counts as empty.
"""

from __future__ import annotations

import hmac
import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vmreconcile.effects.files import read_regular, replacing
from vmreconcile.model.access import Access, Question, Verdict
from vmreconcile.model.secret import Secret

KEPT_S = 3600.0
FILE = "access.json"
LARGEST = 16 << 20


class AccessCache:
    """The file, read once; `keep` adds to it, `save` writes it."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`/access.json; its key is made where there is none."""
        self._path = folder / FILE
        self._key, self._kept = _read(self._path)

    def allowed(self, question: Question, token: Secret | None) -> Verdict | None:
        """What the Hub allowed within the last hour; None where that was not just this."""
        until, architectures = self._kept.get(self._fingerprint(question, token), (0.0, ()))
        if not 0 < until - time.time() <= KEPT_S:
            return None
        return Verdict(access=Access.OK, detail="asked within the last hour", architectures=architectures)

    def keep(self, question: Question, token: Secret | None, verdict: Verdict) -> None:
        """Remember what is allowed."""
        self._kept[self._fingerprint(question, token)] = (time.time() + KEPT_S, verdict.architectures)

    def save(self) -> None:
        """Write what still counts; where that cannot be done, the Hub is asked again next time."""
        now = time.time()
        kept = {name: entry for name, entry in sorted(self._kept.items()) if now < entry[0] <= now + KEPT_S}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(self._path) as file:
                file.write(json.dumps({"key": self._key, "kept": kept}).encode())

    def _fingerprint(self, question: Question, token: Secret | None) -> str:
        parts = (question.endpoint, question.model, question.revision, token.reveal() if token else "")
        return hmac.digest(bytes.fromhex(self._key), "\0".join(parts).encode(errors="replace"), "sha256").hex()[:32]


def cache_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Where this program keeps what it can do without (XDG Base Directory Specification)."""
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else home / ".cache") / "vmreconcile"


Kept = tuple[float, tuple[str, ...]]
"""Until when (seconds since the epoch) a permission counts, and the architectures that the model's config names."""


def _read(path: Path) -> tuple[str, dict[str, Kept]]:
    try:
        seen = json.loads(read_regular(path, LARGEST).decode("utf-8"))
        key, kept = seen["key"], seen["kept"]
        bytes.fromhex(key)
        if len(key) == 64:
            return key, {str(name): (float(until), tuple(map(str, names))) for name, (until, names) in kept.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return secrets.token_hex(32), {}

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

from vmreconcile.effects.files import replacing
from vmreconcile.model.access import Question
from vmreconcile.model.secret import Secret

KEPT_S = 3600.0
FILE = "access.json"


class AccessCache:
    """The file, read once; `keep` adds to it, `save` writes it."""

    def __init__(self, folder: Path) -> None:
        """Read `folder`/access.json; its key is made where there is none."""
        self._path = folder / FILE
        self._key, self._until = _read(self._path)

    def allows(self, question: Question, token: Secret | None) -> bool:
        """Whether the Hub allowed just this within the last hour."""
        left = self._until.get(self._fingerprint(question, token), 0.0) - time.time()
        return 0 < left <= KEPT_S

    def keep(self, question: Question, token: Secret | None) -> None:
        """Remember that it is allowed."""
        self._until[self._fingerprint(question, token)] = time.time() + KEPT_S

    def save(self) -> None:
        """Write what still counts; where that cannot be done, the Hub is asked again next time."""
        now = time.time()
        until = {name: moment for name, moment in sorted(self._until.items()) if now < moment <= now + KEPT_S}
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with replacing(self._path) as file:
                file.write(json.dumps({"key": self._key, "until": until}).encode())

    def _fingerprint(self, question: Question, token: Secret | None) -> str:
        parts = (question.endpoint, question.model, question.revision, token.reveal() if token else "")
        return hmac.digest(bytes.fromhex(self._key), "\0".join(parts).encode(errors="replace"), "sha256").hex()[:32]


def cache_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Where this program keeps what it can do without (XDG Base Directory Specification)."""
    base = environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else home / ".cache") / "vmreconcile"


def _read(path: Path) -> tuple[str, dict[str, float]]:
    try:
        seen = json.loads(path.read_text(encoding="utf-8"))
        key, until = seen["key"], seen["until"]
        bytes.fromhex(key)
        if len(key) == 64:
            return key, {str(name): float(moment) for name, moment in until.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return secrets.token_hex(32), {}

"""What to look for on a host: which programs and ports, whose models, and where our folders are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedFor:
    """A server's model, whose files the host may have: at a path, or in the cache that `env` leads to."""

    slug: str
    model: str
    revision: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """As `observe` and `checkpoint` have it in `models`."""
        return {"slug": self.slug, "model": self.model, "revision": self.revision, "env": dict(self.env)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What to look for on one host: executables ('' is vllm on PATH), wanted ports, our folders (None: defaults)."""

    executables: tuple[str, ...] = ("",)
    ports: tuple[int, ...] = ()
    models: tuple[LookedFor, ...] = ()
    """Models whose architecture some tuning rule asks for."""
    folders: Mapping[str, str] | None = None

"""How servers are called: `NAME@HOST`, `NAME/N@HOST` for replica N >= 1, and the slug used in file names."""

from __future__ import annotations

import re
from dataclasses import dataclass

MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ServerId:
    """One vLLM on one host. `replica` counts from 0; replica 0 is written without a number."""

    host: str
    model: str
    replica: int = 0

    def __str__(self) -> str:
        """Render `NAME@HOST` or `NAME/N@HOST`."""
        return f"{self.local}@{self.host}"

    @property
    def local(self) -> str:
        """The name on its host: `NAME` or `NAME/N`."""
        return f"{self.model}/{self.replica}" if self.replica else self.model

    @property
    def slug(self) -> str:
        """The name in file and unit names: `NAME` or `NAME_N` ('_' is not in a model's name, so it is unambiguous)."""
        return f"{self.model}_{self.replica}" if self.replica else self.model

    @property
    def unit(self) -> str:
        """The systemd unit of this server."""
        return f"vmreconcile-{self.slug}.service"

    @classmethod
    def parse(cls, text: str) -> ServerId:
        """Read `NAME@HOST` or `NAME/N@HOST`.

        Raises:
            ValueError: where the text has another form.
        """
        local, at, host = text.partition("@")
        name, slash, number = local.partition("/")
        if not at or not host or not MODEL_NAME.fullmatch(name) or (slash and not re.fullmatch(r"[0-9]{1,4}", number)):
            raise ValueError(f"{text!r} is not NAME@HOST or NAME/N@HOST")
        return cls(host=host, model=name, replica=int(number or 0))

    @classmethod
    def from_slug(cls, slug: str, host: str) -> ServerId:
        """Turn a slug back into a name on `host`; the inverse of `slug`."""
        name, _, number = slug.partition("_")
        return cls(host=host, model=name, replica=int(number or 0))

"""Token sources: where a Hugging Face token comes from, never the token itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmreconcile.errors import Place

DEFAULT_SOURCE = "default"
"""The source that every server has unless somebody says otherwise: the Hub's cache file, then the environment."""

COMMAND_TIMEOUT_S = 30.0


class SourceKind(enum.StrEnum):
    """What a source reads. The values are the keys in `vllm_token_sources`."""

    HUB = "hub"
    """The Hub's cache file, then `HF_TOKEN`, then `HUGGING_FACE_HUB_TOKEN`; only `default` is one, never written."""
    FILE = "file"
    ENV = "env"
    COMMAND = "command"
    PROMPT = "prompt"
    STORED = "stored"


class Need(enum.Enum):
    """What a run wants of tokens."""

    ALL = "all"
    """They may be sent to hosts: a source that fails refuses the run before any host is looked at."""
    COMPARED = "compared"
    """Only compared with what hosts have: nobody is asked, and a source that fails is told and does without."""
    NONE = "none"
    """No source is read: stopping and reading logs must not wait for a vault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSource:
    """One source: `words` are the path, the variable, the prompt, the stored name, or a command's argv.

    `timeout` bounds a command, in seconds; `place` is where the source was defined.
    """

    name: str = DEFAULT_SOURCE
    kind: SourceKind = SourceKind.HUB
    words: tuple[str, ...] = ()
    timeout: float = COMMAND_TIMEOUT_S
    place: Place | None = None

    def __str__(self) -> str:
        """Render for a person; a command by its program alone, for its arguments may tell too much."""
        match self.kind:
            case SourceKind.HUB:
                return "the Hub's cache file or the environment"
            case SourceKind.COMMAND:
                return f"command {self.words[0]}"
            case SourceKind.PROMPT:
                return "a prompt"
            case SourceKind.STORED:
                return f"hf auth login's token {self.words[0]!r}"
            case _:
                return f"{self.kind.value} {self.words[0]}"

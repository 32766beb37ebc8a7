"""Whether a token may read a model: the question, the Hub's verdict, and who a token belongs to. Never a token."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmreconcile.model.showing import masked

HUB = "https://huggingface.co"
"""The Hub where nobody names another in `HF_ENDPOINT` (huggingface_hub.constants)."""


class Access(enum.StrEnum):
    """What the Hub says."""

    OK = "ok"
    NO_TOKEN = "no_token"  # noqa: S105 - a verdict's name
    """Gated, and asked without a token."""
    TOKEN_INVALID = "token_invalid"  # noqa: S105 - a verdict's name
    GATED = "gated"
    """Gated, and this token was not granted access."""
    NO_SUCH_MODEL = "no_such_model"
    """Or a private one, which the Hub does not tell apart."""
    NO_SUCH_REVISION = "no_such_revision"
    HUB_UNREACHABLE = "hub_unreachable"
    OFFLINE = "offline"
    """Nobody asked, because HF_HUB_OFFLINE is set."""

    @property
    def refuses(self) -> bool:
        """Whether a server with this verdict could not load its model."""
        return self not in {Access.OK, Access.HUB_UNREACHABLE, Access.OFFLINE}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Question:
    """One thing to ask: may the token of `source` ("" for none) read this model at this endpoint?"""

    model: str
    revision: str = ""
    endpoint: str = HUB
    source: str = ""

    @property
    def address(self) -> str:
        """The endpoint as it is shown: without a password that is in it."""
        return masked(self.endpoint)

    @property
    def page(self) -> str:
        """Where a person sees the model and asks for access."""
        return f"{self.address}/{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer; `detail` is what the Hub or the network said, on one line, without any secret.

    `architectures` are those that the model's config.json names, where it may be read.
    """

    access: Access
    detail: str = ""
    architectures: tuple[str, ...] = ()
    chosen: bool = False
    """Offline because the servers' own environment says so: nobody was to be asked, and that is no failure."""

    @property
    def failed(self) -> bool:
        """Whether the model may not be read, or should have been asked about and could not be."""
        return self.access is not Access.OK and not self.chosen


CHOSEN = Verdict(access=Access.OFFLINE, detail="HF_HUB_OFFLINE is set in the server's own environment", chosen=True)
"""What is told of servers that never ask the Hub themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Whose a token is: `role` and `expires` are "" where the Hub does not say. `problem`: why nothing is known."""

    user: str = ""
    token_name: str = ""
    role: str = ""
    expires: str = ""
    problem: str = ""
    invalid: bool = False
    """The Hub does not know the token."""

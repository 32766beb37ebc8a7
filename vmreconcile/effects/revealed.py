"""What was revealed to a host, and is looked for in all that comes back: whatever a host says, no secret is in it."""

from __future__ import annotations

from typing import cast

from vmreconcile.model.secret import HIDDEN, Secret
from vmreconcile.model.values import JsonValue

SHORTEST_SECRET = 4
"""Letters from which a value that was sent is looked for in what comes back: `1` is in every text."""


class Revealed:
    """The secrets of one conversation."""

    def __init__(self) -> None:
        """None so far."""
        self._secrets: list[Secret] = []

    def add(self, secret: Secret) -> None:
        """Remember one that is sent; the longest stand first."""
        if secret not in self._secrets:
            self._secrets.append(secret)
            self._secrets.sort(key=lambda each: len(each.reveal()), reverse=True)

    def reveal(self, value: object) -> str:
        """The text of a secret, for the JSON that is sent; remembers it.

        Raises:
            TypeError: the value is neither JSON nor a secret.
        """
        if not isinstance(value, Secret):
            raise TypeError(f"{type(value).__name__} is not a JSON value")
        self.add(value)
        return value.reveal()

    def scrub(self, text: str) -> str:
        """A text without them; of two that overlap, the longer one goes first."""
        for secret in self._secrets:
            if len(secret.reveal()) >= SHORTEST_SECRET:
                text = text.replace(secret.reveal(), HIDDEN)
        return text

    def scrubbed(self, answer: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """An answer without them, as it is where none was sent."""
        return cast("dict[str, JsonValue]", self._clean(answer)) if self._secrets else answer

    def _clean(self, value: JsonValue) -> JsonValue:
        match value:
            case str():
                return self.scrub(value)
            case list():
                return [self._clean(item) for item in value]
            case dict():
                return {self.scrub(key): self._clean(item) for key, item in value.items()}
            case _:
                return value

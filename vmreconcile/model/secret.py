"""`Secret`: text that can be used but not shown. Owns nothing else."""

from __future__ import annotations

import hmac
from typing import NoReturn

HIDDEN = "(hidden)"


class Secret:
    """Text that shows as '(hidden)' wherever it is printed, formatted or logged.

    `reveal` is the only way to the text, to be called at the moment of use. Neither pickle nor json takes a secret, so
    that it cannot end in a file by accident; comparison takes the same time wherever two texts differ.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Keep the text."""
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __bool__(self) -> bool:
        """Whether there is any text."""
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        """Compare with another secret; any other type is never equal."""
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(
            self._text.encode("utf-8", "surrogatepass"), other._text.encode("utf-8", "surrogatepass")
        )

    def __hash__(self) -> int:
        """Hash by the text (str hashes are salted in each process, so it tells nothing)."""
        return hash((Secret, self._text))

    def __repr__(self) -> str:
        """Hide the text."""
        return HIDDEN

    def __str__(self) -> str:
        """Hide the text."""
        return HIDDEN

    def __format__(self, format_spec: str) -> str:
        """Hide the text, whatever the format asks."""
        return format(HIDDEN, format_spec)

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied into a file.

        Raises:
            TypeError: always.
        """
        raise TypeError("a secret is not written anywhere")

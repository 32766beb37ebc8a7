"""PyYAML's syntax errors in words that help: what the text was taken for, and how to write it. Pure."""

from __future__ import annotations

from typing import Any

import yaml

from vmreconcile.errors import Diagnostic, Place
from vmreconcile.model.showing import shown

_HINTS = (
    ("mapping values are not allowed", "A ': ' starts a mapping.", "Put the text in quotes, or mend the indentation."),
    ("cannot start any token", "This character means something to YAML.", "Put the text in quotes."),
    ("scanning an alias", "An unquoted '*' begins a YAML alias.", "Put the text in quotes."),
    ("scanning an anchor", "An unquoted '&' begins a YAML anchor.", "Put the text in quotes."),
    ("undefined tag handle", "An unquoted '!' begins a YAML tag.", "Put the text in quotes."),
    ("scanning a tag", "An unquoted '!' begins a YAML tag.", "Put the text in quotes."),
    ("parsing a tag", "An unquoted '!' begins a YAML tag.", "Put the text in quotes."),
    ("quoted scalar", "A quote is opened and not closed, or a '\\' begins no known escape.", "Mend the quotes."),
    ("flow mapping", "A '{' is not closed, or a ',' is missing.", "Mend the braces, or put the text in quotes."),
    ("flow sequence", "A '[' is not closed, or a ',' is missing.", "Mend the brackets, or put the text in quotes."),
    ("could not find expected ':'", "A line in a mapping needs 'key: value'.", "Add the ':' and a space."),
    ("did not find expected key", "The line is indented differently from its neighbours.", "Mend the indentation."),
    ("did not find expected '-'", "The line is indented differently from its neighbours.", "Mend the indentation."),
)


def nested_too_deeply(error: yaml.MarkedYAMLError) -> bool:
    """Whether the parser itself gave up at its limit, which PyYAML has since 6.0.4 (1,000 levels)."""
    return "maximum nesting depth" in (error.problem or "")


def syntax_objection(error: yaml.MarkedYAMLError, text: str, mark: Any) -> tuple[str, str, str, str]:  # noqa: ANN401 - PyYAML is untyped
    """(code, summary, why, remedy) for an error that PyYAML met at `mark`."""
    if nested_too_deeply(error):
        return ("yaml-depth", "The file is nested too deeply.", "Nobody could read it.", "Flatten it.")
    told = f"{error.context or ''} {error.problem or ''}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return ("yaml-tab", "The line is indented with a tab.", "YAML takes spaces only.", "Replace the tab by spaces.")
    for sign, why, remedy in _HINTS:
        if sign in told:
            return ("yaml-syntax", f"Not YAML: {shown(error.problem or told)[1:-1]}.", why, remedy)
    return ("yaml-syntax", f"Not YAML: {shown(error.problem or told)[1:-1]}.", shown(error.context or "")[1:-1], "")


def unlocated(file: str, error: Exception) -> Diagnostic:
    """An error of PyYAML without a place."""
    summary = f"Not YAML: {shown(str(error))[1:-1]}."
    return Diagnostic(place=Place(file=file), code="yaml-syntax", summary=summary)

"""The files of a VLLM Manager: its list of models, and the token in the `.env` beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vmreconcile.effects.load import load_document
from vmreconcile.effects.token import check_token, read_token_file
from vmreconcile.errors import Diagnostic, InputError, Place, Severity
from vmreconcile.model.document import Document
from vmreconcile.model.secret import Secret
from vmreconcile.model.showing import shown
from vmreconcile.model.values import JsonValue

UNREADABLE = frozenset({"file-unreadable", "not-utf-8"})
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?HF_TOKEN\s*=\s*(?P<value>.*?)\s*")


def load_old_models(path: Path) -> Document:
    """The file as a document: content as JSON has it, places from reading the same text as YAML.

    Raises:
        InputError: it cannot be read, is not JSON, or holds no mapping.
    """
    document = load_document(path)
    refused = tuple(replace(each, remedy=_REMEDY) for each in document.problems if each.code in UNREADABLE)
    if refused:
        raise InputError(refused)
    repeated: list[str] = []
    try:
        content = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=lambda pairs: _last_ones(pairs, repeated)
        )
    except json.JSONDecodeError as error:
        place = Place(file=document.file, line=error.lineno, column=error.colno)
        raise _wrong(place, f"The file is not JSON: {error.msg}.") from None
    except RecursionError:
        raise _wrong(Place(file=document.file), "The file is nested too deeply.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "a number in it has thousands of digits"
        raise _wrong(Place(file=document.file), f"The file cannot be read: {why}.") from None
    if not isinstance(content, dict):
        raise _wrong(Place(file=document.file, line=1, column=1), "The file holds no mapping.")
    return replace(document, content=content, problems=tuple(_twice(document, repeated)))


def _last_ones(pairs: list[tuple[str, JsonValue]], repeated: list[str]) -> dict[str, JsonValue]:
    """A mapping as JSON's readers make it: of a repeated key, which is noted, the last value."""
    counts = Counter(key for key, _ in pairs)
    repeated += [key for key, number in counts.items() if number > 1]
    return dict(pairs)


def _twice(document: Document, repeated: list[str]) -> Iterator[Diagnostic]:
    """A warning for each key that is given twice, where it stands if the text can be read as YAML too."""
    placed = [problem for problem in document.problems if problem.code == "duplicate-key"]
    unplaced = [
        Diagnostic(
            place=Place(file=document.file), code="duplicate-key", summary=f"The key {shown(key)} is given twice."
        )
        for key in repeated
    ]
    for problem in (placed or unplaced) if repeated else ():
        why, remedy = "The last one counts, as it did for the old manager.", "Remove one of them."
        yield replace(problem, why=why, remedy=remedy, severity=Severity.WARNING)


def _unquoted(value: str) -> str:
    """A value as python-dotenv reads it: without its quotes, or without a comment after a blank."""
    quoted = re.fullmatch(r"""(['"])(.*?)\1\s*(?:#.*)?""", value)
    return quoted[2] if quoted else re.split(r"\s+#", value, maxsplit=1)[0]


_REMEDY = "Give the manager's models_config.json, or its models.json from ~/.vllm-manager."


def _wrong(place: Place, summary: str) -> InputError:
    return InputError((Diagnostic(place=place, code="import-file", summary=summary, remedy=_REMEDY),))


def token_is_beside(models: Path) -> bool:
    """Whether the `.env` beside the list of models gives a token; of what kind it is, is not judged here."""
    path = _env_beside(models)
    try:
        return bool(_value(read_token_file(path, lambda why: _wrong(Place(file=str(path)), why))))
    except InputError:
        return False


def token_beside(models: Path) -> Secret | None:
    """The token in the `.env` beside the list of models; None where there is none.

    Raises:
        InputError: it cannot be read, or holds what is no token; the message does not show it.
    """
    path = _env_beside(models)

    def failed(why: str) -> InputError:
        problem = Diagnostic(
            place=Place(file=str(path)),
            code="token-file-unreadable",
            summary=f"The old manager's token cannot be taken over: {why}.",
            remedy="Log in instead: vmreconcile auth login.",
        )
        return InputError((problem,))

    text = _value(read_token_file(path, failed))
    if not text:
        return None
    check_token(text, failed)
    return Secret(text)


def _env_beside(models: Path) -> Path:
    return models.absolute().parent / ".env"


def _value(env: str) -> str:
    """What an env file says of `HF_TOKEN`, the last time that it does; "" where it does not."""
    lines = env.removeprefix("\ufeff").splitlines()
    found = [match["value"] for line in lines if (match := _ASSIGNMENT.fullmatch(line))]
    return _unquoted(found[-1]) if found else ""

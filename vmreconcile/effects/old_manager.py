"""The files of a VLLM Manager: its list of models, and the token in the `.env` beside it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from vmreconcile.effects.load import load_document
from vmreconcile.effects.token import check_token, read_token_file
from vmreconcile.errors import Diagnostic, InputError, Place
from vmreconcile.model.document import Document
from vmreconcile.model.secret import Secret

UNREADABLE = frozenset({"file-unreadable", "not-utf-8"})
_ASSIGNMENT = re.compile(r"\s*(?:export\s+)?HF_TOKEN\s*=\s*(?P<value>.*?)\s*")


def load_old_models(path: Path) -> Document:
    """The file as a document: content as JSON has it, places from reading the same text as YAML.

    Raises:
        InputError: it cannot be read, is not JSON, or holds no mapping.
    """
    document = load_document(path)
    refused = tuple(problem for problem in document.problems if problem.code in UNREADABLE)
    if refused:
        raise InputError(refused)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
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
    return replace(document, content=content, problems=())


def _unquoted(value: str) -> str:
    """A value as python-dotenv reads it: without its quotes, or without a comment after a blank."""
    quoted = re.fullmatch(r"""(['"])(.*?)\1\s*(?:#.*)?""", value)
    return quoted[2] if quoted else re.split(r"\s+#", value, maxsplit=1)[0]


def _wrong(place: Place, summary: str) -> InputError:
    remedy = "Give the manager's models_config.json, or its models.json from ~/.vllm-manager."
    return InputError((Diagnostic(place=place, code="import-file", summary=summary, remedy=remedy),))


def token_beside(models: Path) -> Secret | None:
    """The token in the `.env` beside the list of models; None where there is none.

    Raises:
        InputError: it cannot be read, or holds what is no token; the message does not show it.
    """
    path = models.absolute().parent / ".env"

    def failed(why: str) -> InputError:
        problem = Diagnostic(
            place=Place(file=str(path)),
            code="token-file-unreadable",
            summary=f"The old manager's token cannot be taken over: {why}.",
            remedy="Log in instead: vmreconcile auth login.",
        )
        return InputError((problem,))

    found = [
        match["value"]
        for line in read_token_file(path, failed).removeprefix("\ufeff").splitlines()
        if (match := _ASSIGNMENT.fullmatch(line))
    ]
    text = _unquoted(found[-1]) if found else ""
    if not text:
        return None
    check_token(text, failed)
    return Secret(text)

"""Reads a folder of YAML files (or one file) into documents. Judges their form as YAML only; none of them raises."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from vmreconcile.effects.yaml_text import read_yaml
from vmreconcile.errors import Diagnostic, Place, Severity
from vmreconcile.model.document import Document
from vmreconcile.model.showing import shown

SUFFIXES = (".yaml", ".yml")
LARGEST_FILE = 1 << 20
"""Bytes. A model file has some hundred; what is larger was put there by mistake."""

_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ufeff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What YAML 1.2 forbids in a file (section 5.1)."""


def load_models(path: Path) -> tuple[Document, ...]:
    """Every `*.yaml` and `*.yml` in the folder `path`, sorted by name; or the one file that `path` is.

    Names that begin with '.' are left out (editors put their locks there). Problems are in the documents, and where the
    folder itself is the problem, in a document of its own.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISDIR(mode):
            return (load_document(path),)
        names = sorted(entry.name for entry in path.iterdir() if _is_model(entry.name))
    except OSError as error:
        return (_unusable(path, "models-missing", f"{_name(path)} cannot be read: {_reason(error)}.", _START),)
    except ValueError as error:  # a NUL in the path
        return (_unusable(path, "models-missing", f"{_name(path)} cannot be read: {error}.", _START),)
    if not names:
        why = "No model is wanted, so every server that runs is unclaimed."
        document = _unusable(path, "models-empty", f"{_name(path)} holds no *.yaml file.", _START, why)
        return (document,)
    return tuple(load_document(path / name) for name in names)


SHIPPED_RULES = Path(__file__).resolve().parents[1] / "vllm/tuning.yaml"


def load_tuning(path: Path) -> Document:
    """A file of tuning rules. Never raises for what it holds."""
    document = load_document(path)
    remedy = "Begin with 'rules:' (docs/tuning.md)."
    told = {"file-empty", "not-a-mapping"}
    problems = (replace(each, remedy=remedy) if each.code in told else each for each in document.problems)
    return replace(document, problems=tuple(problems))


def _is_model(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def load_document(path: Path) -> Document:
    """One file. Never raises for what it holds."""
    file = _name(path)
    try:
        raw = _read(path)
    except OSError as error:
        return _unusable(path, "file-unreadable", f"{file} cannot be read: {_reason(error)}.", "")
    except ValueError as error:
        return _unusable(path, "file-unreadable", f"{file} cannot be read: {error}.", "")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        place = Place(file=file, line=line, column=len(before) - before.rfind(b"\n"))
        problem = Diagnostic(
            place=place, code="not-utf-8", summary="The file is not UTF-8.", remedy="Save it as UTF-8."
        )
        return Document(path=str(path), file=file, problems=(problem,))
    return document_of(path, text)


def document_of(path: Path, text: str) -> Document:
    """A text as if the file `path` held it. Never raises for what it says."""
    file = _name(path)
    forbidden = _UNPRINTABLE.search(text)
    if forbidden:
        return Document(path=str(path), file=file, problems=(_control(file, text, forbidden.start()),))
    reading = read_yaml(text, file)
    problems = list(reading.problems)
    content = reading.content
    if content is None and any(problem.code in {"yaml-syntax", "yaml-tab"} for problem in problems):
        problems += _tabs(file, text, {problem.place.line for problem in problems})
    elif content is None and not problems:
        summary, remedy = "The file is empty.", "Write a model into it (docs/models.md), or remove the file."
        problems.append(Diagnostic(place=Place(file=file), code="file-empty", summary=summary, remedy=remedy))
    elif content is not None and not isinstance(content, dict):
        mark = reading.marks[()]
        place = Place(file=file, line=mark.line, column=mark.column)
        summary, remedy = "The file holds no mapping.", "Begin with 'name:', 'model:', 'hosts:' and 'port:'."
        problems.append(Diagnostic(place=place, code="not-a-mapping", summary=summary, remedy=remedy))
    return Document(
        path=str(path),
        file=file,
        content=content if isinstance(content, dict) else None,
        marks=reading.marks,
        problems=tuple(problems),
    )


def _tabs(file: str, text: str, told: set[int]) -> list[Diagnostic]:
    """Where the text is no YAML, every other line that a tab indents."""
    return [
        Diagnostic(
            place=Place(file=file, line=number, column=line.index("\t") + 1),
            code="yaml-tab",
            summary="The line is indented with a tab.",
            why="YAML takes spaces only.",
            remedy="Replace the tab by spaces.",
        )
        for number, line in enumerate(text.splitlines(), start=1)
        if "\t" in line[: len(line) - len(line.lstrip())] and line.strip() and number not in told
    ]


def _control(file: str, text: str, start: int) -> Diagnostic:
    line = text.count("\n", 0, start) + 1
    column = start - text.rfind("\n", 0, start)
    return Diagnostic(
        place=Place(file=file, line=line, column=column),
        code="control-character",
        summary=f"The file holds the control character U+{ord(text[start]):04X}.",
        why="YAML forbids it.",
        remedy="Remove it, or write it as an escape in double quotes.",
    )


def _read(path: Path) -> bytes:
    """The bytes of a regular file: opening a pipe by mistake would wait for ever."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        raw = file.read(LARGEST_FILE + 1)
    if len(raw) > LARGEST_FILE:
        raise ValueError(f"it is larger than {LARGEST_FILE >> 20} MiB")
    return raw


_START = "Give the folder with -m, or begin one with: vmreconcile init"


def _unusable(path: Path, code: str, summary: str, remedy: str, why: str = "") -> Document:
    severity = Severity.WARNING if code == "models-empty" else Severity.ERROR
    place = Place(file=_name(path))
    problem = Diagnostic(place=place, code=code, summary=summary, why=why, remedy=remedy, severity=severity)
    return Document(path=str(path), file=_name(path), problems=(problem,))


def _name(path: Path) -> str:
    """The path as people are shown it: a name that is no text, or that would move the cursor, is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else shown(text)[1:-1]


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()

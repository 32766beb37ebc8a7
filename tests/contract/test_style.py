"""What docs/contributing.md promises readers of the code: short functions and files, docstrings, telling names."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "vmreconcile").rglob("*.py"))
LONGEST_FUNCTION = 60
"""Lines, docstring included; docs/contributing.md aims at far fewer."""

LONGEST_FILE = 350
EMPTY = frozenset(
    [
        "helper",
        "helpers",
        "util",
        "utils",
        "common",
        "misc",
        "manager",
        "handler",
        "task",
        "tasks",
        "job",
        "jobs",
        "deploy",
        "node",
        "info",
        "fix",
    ]
)
"""Words that docs/contributing.md keeps out, and a few of their kind."""

TERMS = {
    "dist_info": "the packaging standard's word for that folder (PEP 376)",
    "has_manager": "systemd's own word for a user's instance of it",
    "node": "YAML's own word for what a document is made of",
    "key_node": "as above",
    "value_node": "as above",
    "_Node": "as above",
    "_node": "as above",
}
"""Names that may hold such a word, each because a standard calls the thing so."""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """A module's path below the package, for a test's name."""
    return str(path.relative_to(ROOT / "vmreconcile"))


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Everything a module gives a name to, with its line."""
    for part in ast.walk(tree):
        match part:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield part.lineno, name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                yield part.lineno, name
            case _:
                pass


def words(name: str) -> set[str]:
    """'_FirstNode' → {'first', 'node'}."""
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_can_be_read_in_one_go(path: Path) -> None:
    """It says what it is about, is not too long, and none of its functions is."""
    tree = tree_of(path)
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= LONGEST_FILE
    long = {
        part.name: part.end_lineno - part.lineno + 1
        for part in ast.walk(tree)
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) and part.end_lineno is not None
    }
    assert not {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_say_something(path: Path) -> None:
    """No function, class, parameter or variable is named by a word that would fit anything."""
    found = {(line, name) for line, name in names(tree_of(path)) if words(name) & EMPTY}
    assert not {(line, name) for line, name in found if name not in TERMS}


def test_every_exception_is_still_needed() -> None:
    """A term that no module uses any more leaves the list."""
    used = {name for path in MODULES for _, name in names(tree_of(path))}
    assert used.issuperset(TERMS)


def test_an_empty_word_is_found_wherever_it_stands() -> None:
    """In snake case and in camel case, in functions, classes, parameters and variables."""
    tree = ast.parse("def run_task(job): pass\nclass FileManager: pass\nmisc = 1\nplanned = 2\n")
    assert [name for _, name in names(tree) if words(name) & EMPTY] == ["run_task", "FileManager", "misc", "job"]

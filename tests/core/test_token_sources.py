"""Token sources as an inventory defines them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmreconcile.core.token_sources import token_sources
from vmreconcile.core.validate import validate
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import load_models
from vmreconcile.effects.schemas import read_schemas
from vmreconcile.errors import Diagnostic
from vmreconcile.model.inventory import Inventory
from vmreconcile.model.tokens import SourceKind
from vmreconcile.vllm.catalogue import catalogue_for

MODEL = "name: a\nmodel: org/a\nhosts: all\nport: 8001\n"


def inventory(folder: Path, variables: str, more: str = "") -> Inventory:
    """Two hosts in a group with these variables."""
    path = folder / "hosts.yml"
    path.write_text(f"gpu:\n  hosts:\n    gpu1:\n    gpu2: {more or '{}'}\n  vars:\n    {variables}\n")
    return read_inventory([str(path)], environ={})


def problems(folder: Path, variables: str, *, more: str = "", model: str = "") -> list[Diagnostic]:
    """What validate says of it."""
    (folder / "models.d").mkdir()
    (folder / "models.d/a.yaml").write_text(MODEL + model)
    read = inventory(folder, variables, more)
    documents = load_models(folder / "models.d")
    return list(validate(documents, read, schemas=read_schemas(), catalogue=catalogue_for(None)))


def test_sources_by_name(tmp_path: Path) -> None:
    """Of every kind; `default` is always there."""
    read = inventory(
        tmp_path,
        "vllm_token_sources: {a: {file: ~/t}, b: {env: B}, c: {command: [pass, show, x], timeout: 2m}, "
        "d: {prompt: Which}, e: {stored: laptop}}",
    )
    found = token_sources(read)
    assert {name: (one.kind, one.words) for name, one in found.items()} == {
        "default": (SourceKind.HUB, ()),
        "a": (SourceKind.FILE, ("~/t",)),
        "b": (SourceKind.ENV, ("B",)),
        "c": (SourceKind.COMMAND, ("pass", "show", "x")),
        "d": (SourceKind.PROMPT, ("Which",)),
        "e": (SourceKind.STORED, ("laptop",)),
    }
    assert (found["c"].timeout, found["b"].timeout) == (120.0, 30.0)
    assert str(found["c"]) == "command pass"
    assert str(found["a"].place).startswith(f"{tmp_path}/hosts.yml:")


def test_default_can_be_another_source(tmp_path: Path) -> None:
    """Then the Hub's own places are not looked at."""
    read = inventory(tmp_path, "vllm_token_sources: {default: {env: LAB}}")
    assert token_sources(read)["default"].kind is SourceKind.ENV


def test_a_valid_use(tmp_path: Path) -> None:
    """In the group, the model and an override."""
    assert problems(
        tmp_path,
        "vllm_token_sources: {lab: {env: A}, shop: {env: B}}\n    vllm_hf_token: lab",
        model="hf_token: shop\noverrides: {gpu2: {hf_token: null}}\n",
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        "aB3dE5gH7jK9mN1pQ3rS5tU7vW9xY1zA2b",
        "hf-aB3dE5gH7jK9mN1pQ3rS5tU7vW9xY1zA2b",
        "aB3dE5gH7jK9mN1p+Q3rS5tU7vW9xY1z/A2b",
        "aB3dE5gH7jK9mN1p+Q3rS5tU7vW9xY1z/A2b" * 3,
        "correct horse battery staple " * 3,
    ],
)
@pytest.mark.parametrize("where", ["hf_token: {}", "overrides: {{gpu1: {{hf_token: {}}}}}", "vllm_hf_token: {}"])
def test_a_token_in_the_place_of_a_name_is_not_shown(value: str, where: str, tmp_path: Path) -> None:
    """One without the Hub's prefix too: what no name looks like is not quoted, nor what it may be meant for."""
    said = where.format(f"'{value}'")
    variables, model = (said, "") if where.startswith("vllm") else ("a: b", said + "\n")
    found = problems(tmp_path, variables, model=model)
    assert [problem.code for problem in found if "hf_token" in str(problem) or "token source" in str(problem)]
    assert all(value[:16].strip() not in f"{problem!r}" for problem in found)
    assert all(value[:16].lower() not in f"{problem!r}" for problem in found)


@pytest.mark.parametrize(
    ("variables", "model", "code", "said"),
    [
        ("vllm_hf_token: lab", "", "unknown-token-source", "'lab'"),
        ("vllm_token_sources: {lab: {env: A}}", "hf_token: lob\n", "unknown-token-source", "'lob'"),
        (
            "vllm_token_sources: {lab: {env: A}}",
            "overrides: {gpu1: {hf_token: lob}}\n",
            "unknown-token-source",
            "'lob'",
        ),
        ("vllm_token_sources: {lab: {}}", "", "token-source-unclear", "says none of them"),
        ("vllm_token_sources: {lab: {env: A, file: /b}}", "", "token-source-unclear", "says file and env"),
        ("vllm_token_sources: {lab: {env: A, timeout: 3s}}", "", "token-source-unclear", "no command"),
        ("vllm_token_sources: {lab: {command: [a], timeout: soon}}", "", "wrong-value", "'soon'"),
        ("vllm_token_sources: {lab: {command: pass show}}", "", "wrong-value", "lab.command"),
        ("vllm_token_sources: {lab: {command: []}}", "", "wrong-value", "lab.command"),
        ("vllm_token_sources: {lab: {file: relative}}", "", "wrong-value", "lab.file"),
        ("vllm_token_sources: {lab: {fil: /a}}", "", "unknown-key", "'fil'"),
        ("vllm_token_sources: {-x: {env: A}}", "", "wrong-key", "'-x'"),
        ("vllm_token_sources: [lab]", "", "wrong-value", "vllm_token_sources"),
        ("vllm_token_sources: {lab: {env: '{{ a }}'}}", "", "variable-template", "template"),
    ],
)
def test_mistakes_are_told_with_their_place(variables: str, model: str, code: str, said: str, tmp_path: Path) -> None:
    """Each by name, in the file in which it stands."""
    found = [problem for problem in problems(tmp_path, variables, model=model) if problem.code == code]
    assert found
    assert said in found[0].summary
    assert found[0].place.line > 0
    assert found[0].suggestion == ("lab" if said == "'lob'" else "" if code != "unknown-key" else "file")


def test_one_name_means_one_thing(tmp_path: Path) -> None:
    """Two hosts that define it differently are told, with both places; the same definition twice is fine."""
    more = "{vllm_token_sources: {lab: {env: OTHER}}}"
    (problem,) = problems(tmp_path, "vllm_token_sources: {lab: {env: A}}", more=more)
    assert problem.code == "token-source-twice"
    assert "hosts.yml" in problem.why
    again = tmp_path / "again"
    again.mkdir()
    assert problems(again, "vllm_token_sources: {lab: {env: A}}", more=more.replace("OTHER", "A")) == []

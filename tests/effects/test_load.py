"""`load_models`: what a folder holds, with places, and every way in which a file can be no good."""

from __future__ import annotations

import os
import re
import stat
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreconcile.effects.load import LARGEST_FILE, load_document, load_models
from vmreconcile.effects.yaml_scalars import plain
from vmreconcile.effects.yaml_text import read_yaml
from vmreconcile.errors import Place, Severity
from vmreconcile.model.document import Document
from vmreconcile.model.values import JsonValue


def _load(folder: Path, text: str | bytes) -> Document:
    path = folder / "m.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_document(path)


def _codes(document: Document) -> list[str]:
    name = document.file
    return [f"{str(problem.place).removeprefix(name)} {problem.code}".strip(": ") for problem in document.problems]


def test_a_folder_is_read_in_sorted_order(tmp_path: Path) -> None:
    """Every *.yaml and *.yml; hidden files and others are left out, a folder of that name is told."""
    for name in ("b.yml", "a.yaml", "c.txt", ".d.yaml", "e.yaml~"):
        (tmp_path / name).write_text("x: 1\n")
    (tmp_path / "f.yaml").mkdir()
    documents = load_models(tmp_path)
    assert [Path(document.file).name for document in documents] == ["a.yaml", "b.yml", "f.yaml"]
    assert [problem.code for document in documents for problem in document.problems] == ["file-unreadable"]


def test_a_single_file_is_allowed(tmp_path: Path) -> None:
    """`-m FILE`, whatever it is called."""
    (tmp_path / "model").write_text("x: 1\n")
    assert [document.content for document in load_models(tmp_path / "model")] == [{"x": 1}]


def test_a_missing_folder_says_how_to_begin(tmp_path: Path) -> None:
    """One error that names the folder and `init`."""
    (document,) = load_models(tmp_path / "none")
    (problem,) = document.problems
    assert (problem.code, problem.severity, problem.place) == (
        "models-missing",
        Severity.ERROR,
        Place(file=f"{tmp_path}/none"),
    )
    assert "vmreconcile init" in problem.remedy
    assert load_models(Path("a\0b"))[0].problems[0].code == "models-missing"


def test_an_empty_folder_is_a_warning(tmp_path: Path) -> None:
    """Nothing is wanted; that may be meant."""
    (document,) = load_models(tmp_path)
    assert [(problem.code, problem.severity) for problem in document.problems] == [("models-empty", Severity.WARNING)]


def test_places_of_keys_and_values(tmp_path: Path) -> None:
    """For every path: the value's place, the key's place, and the nearest one where there is none."""
    document = _load(tmp_path, "a: 1\nb:\n  c: [x, {d: 2}]\n  e:\n    f\n")
    file = document.file
    assert document.place("a") == Place(file=file, line=1, column=4)
    assert document.key_place("a") == Place(file=file, line=1, column=1)
    assert document.place("b", "c", 1, "d") == Place(file=file, line=3, column=14)
    assert document.key_place("b", "c", 1, "d") == Place(file=file, line=3, column=11)
    assert document.place("b", "c", 0) == Place(file=file, line=3, column=7)
    assert document.place("b", "e") == Place(file=file, line=5, column=5)
    assert document.key_place("b", "zz", "y") == Place(file=file, line=2, column=1)
    assert document.place("zz") == Place(file=file, line=1, column=1)
    assert (document.get("b", "c", 1, "d"), document.get("b", "c", 9), document.get("a", "x")) == (2, None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [" file-empty"]),
        ("# only a comment\n", [" file-empty"]),
        ("---\n", [" file-empty"]),
        ("- a\n", [":1:1 not-a-mapping"]),
        ("text\n", [":1:1 not-a-mapping"]),
        ("a: 1\nb: 2\na: 3\na: 4\n", [":3:1 duplicate-key", ":4:1 duplicate-key"]),
        ("x: {a: 1, a: 2}\n", [":1:11 duplicate-key"]),
        ("a:\n\tb: 1\n\tc: 2\n", [":2:1 yaml-tab", ":3:1 yaml-tab"]),
        ("a: 1\n---\nb: 2\n", [":2:1 several-documents"]),
        ("1: a\ntrue: b\nnull: c\n~: d\n", [f":{line}:1 key-not-text" for line in (1, 2, 3, 4)]),
        ("? [a]\n: b\n", [":1:3 key-not-text"]),
        ("a: yes\nb: Off\n", [":1:4 yaml-boolean", ":2:4 yaml-boolean"]),
        ("yes: 1\n", [":1:1 key-not-text"]),
        ("'<<': 1\n", []),
        ("a: 2024-01-02\nb: 2024-01-02 03:04:05\n", [":1:4 yaml-date", ":2:4 yaml-date"]),
        ("a: .nan\nb: -.inf\nc: 1e999\n", [f":{line}:4 yaml-value" for line in (1, 2, 3)]),
        ("a: 012\nb: 1:30\nc: 1_000\nd: 0b1\n", [f":{line}:4 yaml-number" for line in (1, 2, 3, 4)]),
        ("a: !!binary aGk=\n", [":1:4 yaml-tag"]),
        ("a: !!python/object/apply:os.system [x]\n", [":1:4 yaml-tag"]),
        ("a: !vault x\n", [":1:4 yaml-tag"]),
        ("a: !!set {b}\n", [":1:4 yaml-tag"]),
        ("a: !!int x\n", [":1:4 yaml-value"]),
        ("a: *b\n", [":1:4 yaml-alias"]),
        ("a: &x [*x]\n", [":1:8 yaml-alias"]),
        ("<<: 5\na: 1\n", [":1:1 yaml-merge"]),
        ("a: [\n", [":2:1 yaml-syntax"]),
        ("a: b: c\n", [":1:5 yaml-syntax"]),
        ("a: 'b\n", [":2:1 yaml-syntax"]),
        ("a: @b\n", [":1:4 yaml-syntax"]),
        ("a: *\n", [":1:5 yaml-syntax"]),
        ("a: 1\n  b: 2\n", [":2:4 yaml-syntax"]),
        ("%YAML 3.0\n---\na: 1\n", [":1:1 yaml-syntax"]),
        (b"a: 1\nb: \xff\n", [":2:4 not-utf-8"]),
        (b"\xff\xfea\0:\0", [":1:1 not-utf-8"]),
        ("a: \x00\n", [":1:4 control-character"]),
        ("a: 1\nb: \x1b[2J\n", [":2:4 control-character"]),
        ("[" * 65, [":1:65 yaml-depth"]),
        ("- " * 65, [":1:129 yaml-depth"]),
        ("{a: " * 65, [":1:257 yaml-depth"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(
    tmp_path: Path, text: str | bytes, expected: list[str]
) -> None:
    """Never an exception, whatever is in the file."""
    document = _load(tmp_path, text)
    found = [f"{str(problem.place).removeprefix(document.file)} {problem.code}" for problem in document.problems]
    assert found == expected
    assert all(problem.summary.endswith(".") for problem in document.problems)


@pytest.mark.parametrize("bracket", ["[", "- ", "{a: "])
def test_nesting_without_end_is_told(tmp_path: Path, bracket: str) -> None:
    """Where the parser has a limit of its own (PyYAML since 6.0.4), it may be the one that is met."""
    (problem,) = _load(tmp_path, bracket * 100_000).problems
    assert (problem.code, problem.place.line) == ("yaml-depth", 1)


def test_a_duplicate_names_the_first_place(tmp_path: Path) -> None:
    """So that both can be compared."""
    document = _load(tmp_path, "a: 1\nb: 2\na: 3\n")
    assert f"{document.file}:1:1" in document.problems[0].why


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1), ("-5", -5), ("+5", 5), ("0", 0), ("1.5", 1.5), ("1e-3", 0.001), (".5", 0.5), ("0x1F", 31),
        ("0o17", 15),
        ("true", True), ("False", False), ("", None), ("~", None), ("null", None), ("nULL", "nULL"), ("8k", "8k"),
        ("1.2.3", "1.2.3"), ("y", "y"), ("none", "none"), ("-", "-"), ("Off-line", "Off-line"), ("1,000", "1,000"),
        ("9" * 5000, "9" * 5000), ("127.0.0.1", "127.0.0.1"), ("٣", "٣"),
    ],
)  # fmt: skip
def test_plain_scalars(text: str, expected: JsonValue) -> None:
    """As YAML 1.2 has them."""
    found = plain(text)
    assert (found.value, type(found.value), found.problem) == (expected, type(expected), None)


def test_anchors_aliases_and_merges(tmp_path: Path) -> None:
    """They work; a key of one's own goes before a merged one, an earlier merge before a later one."""
    text = (
        "base: &base {x: 1, y: 1}\nmore: &more {y: 2, z: 2}\n"
        "a: {<<: *base, x: 9}\nb: {<<: [*more, *base]}\nc: *base\n? &k key\n: 1\nd: *k\n"
    )
    document = _load(tmp_path, text)
    assert document.problems == ()
    content = document.get()
    assert isinstance(content, dict)
    assert (content["a"], content["b"]) == ({"x": 9, "y": 1}, {"y": 2, "z": 2, "x": 1})
    assert (content["c"], content["d"]) == ({"x": 1, "y": 1}, "key")
    assert document.key_place("a", "y") == Place(file=document.file, line=3, column=5)


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    """Ten levels of ten aliases would be ten thousand million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    started = time.process_time()
    document = _load(tmp_path, "\n".join(lines))
    assert [problem.code for problem in document.problems] == ["yaml-size"]
    assert time.process_time() - started < 20
    merges = ["m0: &m0 {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}"]
    merges += [f"m{n}: {{<<: [{', '.join(['*m0'] * 20)}]}}" for n in range(1, 300)]
    started = time.process_time()
    assert _codes(_load(tmp_path, "\n".join(merges)))[0].endswith("yaml-size")
    assert time.process_time() - started < 20


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe, a link to nowhere, a file too large, a file that may not be read."""
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").symlink_to("nowhere")
    (tmp_path / "c.yaml").write_bytes(b"#" * (LARGEST_FILE + 1))
    (tmp_path / "d.yaml").symlink_to("/dev/zero")
    found = [problem.summary for document in load_models(tmp_path) for problem in document.problems]
    assert [text.rpartition(": ")[2] for text in found] == [
        "it is not a regular file.",
        "no such file or directory.",
        "it is larger than 1 MiB.",
        "it is not a regular file.",
    ]


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Said as an error of that file; the others are read."""
    secret = tmp_path / "a.yaml"
    secret.write_text("a: 1\n")
    secret.chmod(0)
    (tmp_path / "b.yaml").write_text("b: 1\n")
    first, second = load_models(tmp_path)
    if os.geteuid():  # root may read everything
        assert first.problems[0].code == "file-unreadable"
    assert second.content == {"b": 1}
    assert stat.S_IMODE(secret.stat().st_mode) == 0


def test_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    """CRLF and a BOM are no obstacle, and places stay right."""
    document = _load(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: \xc3\xa9 # x\r\nc: 3\r\n")
    assert (document.content, document.problems) == ({"a": 1, "b": "é", "c": 3}, ())
    assert document.place("c") == Place(file=document.file, line=3, column=4)


def test_names_of_files_are_shown_printable(tmp_path: Path) -> None:
    """A name that would move the cursor, or is no text, is escaped; the file is read all the same."""
    raw = os.fsencode(tmp_path) + b"/\x1b[2J\xff.yaml"
    Path(os.fsdecode(raw)).write_text("a: 1\n")
    (document,) = load_models(tmp_path)
    assert document.content == {"a": 1}
    assert document.file.isprintable()
    assert Path(document.path).exists()


# Line breaks that only YAML 1.1 knows do not survive PyYAML's own writing.
PLAIN = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x85\u2028\u2029"), max_size=8)
# Neither do numbers of YAML 1.2 that are text in YAML 1.1 (1e5, 08): PyYAML leaves them unquoted.
PLAIN = PLAIN.filter(lambda text: not re.match(r"[-+.]?\d", text))
DATA = st.dictionaries(
    PLAIN,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
        max_leaves=8,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(DATA, st.booleans())
def test_what_yaml_writes_is_read_back(data: dict[str, JsonValue], flow: bool) -> None:  # noqa: FBT001 - drawn
    """PyYAML's own output has the meaning that it was given, and no problem, in block and in flow style."""
    reading = read_yaml(yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True), "m.yaml")
    assert reading.problems == []
    assert reading.content == data


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80) | st.text("ab:-?&*!|>'\"%@`#{}[], \n\t<~0._x", max_size=80).map(str.encode))
def test_no_bytes_make_it_raise(raw: bytes) -> None:
    """Whatever a file holds: content, or at least one problem with a place in the file."""
    with tempfile.TemporaryDirectory() as folder:
        document = _load(Path(folder), raw)
    assert document.content is not None or document.problems
    assert all(problem.place.file == document.file for problem in document.problems)

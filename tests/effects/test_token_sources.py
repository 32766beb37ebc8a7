"""Named token sources: what each reads, how each fails, and that no failure shows a token."""

from __future__ import annotations

import io
import os
import sys
import time
import traceback
from pathlib import Path

import pytest
from huggingface_hub.utils import _auth

from vmreconcile.effects.token_sources import Surroundings, read_source, stored_tokens, stored_tokens_path
from vmreconcile.errors import InputError, Place
from vmreconcile.model.tokens import SourceKind, TokenSource

TOKEN = "hf_SENTINELsentinelSENTINELsentinel00"


def source(kind: SourceKind, *words: str, timeout: float = 5.0) -> TokenSource:
    """A source named lab, defined in a file of the inventory."""
    place = Place(file="inventory/hosts.yml", line=3)
    return TokenSource(name="lab", kind=kind, words=words, timeout=timeout, place=place)


def around(home: Path, **environ: str) -> Surroundings:
    """A home, and PATH beside the variables given."""
    return Surroundings(environ={"PATH": os.environ["PATH"], **environ}, home=home)


def read(one: TokenSource, surroundings: Surroundings) -> str:
    """The token that a source gives."""
    found = read_source(one, surroundings)
    assert found is not None
    return found.secret.reveal()


def python(text: str) -> tuple[str, ...]:
    """A program."""
    return (sys.executable, "-c", text)


def test_each_kind_gives_its_token(tmp_path: Path) -> None:
    """A file (absolute, or below the home), a variable, a program, a prompt, a stored token; blanks around it go."""
    (tmp_path / "secret").write_text(f"  {TOKEN}\n")
    here = around(tmp_path, LAB=f"{TOKEN}\n")
    assert read(source(SourceKind.FILE, str(tmp_path / "secret")), here) == TOKEN
    assert read(source(SourceKind.FILE, "~/secret"), here) == TOKEN
    assert read(source(SourceKind.ENV, "LAB"), here) == TOKEN
    assert read(source(SourceKind.COMMAND, *python(f"print('{TOKEN}')")), here) == TOKEN
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return f"{TOKEN} "

    there = Surroundings(environ={}, home=tmp_path, ask=ask)
    assert read(source(SourceKind.PROMPT, "Token of the lab"), there) == TOKEN
    assert asked == ["Token of the lab: "]


def test_a_program_gets_the_environment_and_no_standard_input(tmp_path: Path) -> None:
    """It runs without a shell: its words arrive as they are."""
    program = python("import os, sys; print(os.environ['LAB'] + sys.argv[1] if not sys.stdin.read() else 'x')")
    assert read(source(SourceKind.COMMAND, *program, "$LAB;'"), around(tmp_path, LAB="hf_a")) == "hf_a$LAB;'"


def test_a_stored_token_is_the_one_that_the_client_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub's own writer, our reader."""
    environ = {"HF_HOME": str(tmp_path / "hub")}
    path = stored_tokens_path(environ, tmp_path)
    monkeypatch.setattr(_auth.constants, "HF_STORED_TOKENS_PATH", str(path))
    _auth._save_token(token=TOKEN, token_name="lab top")
    assert stored_tokens(path) == {"lab top": TOKEN}
    assert read(source(SourceKind.STORED, "lab top"), around(tmp_path, **environ)) == TOKEN
    with pytest.raises(InputError, match="stored there: lab top"):
        read_source(source(SourceKind.STORED, "other"), around(tmp_path, **environ))


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (source(SourceKind.FILE, "/nowhere/token"), "/nowhere/token is missing or empty"),
        (source(SourceKind.FILE, "/etc"), "cannot be read"),
        (source(SourceKind.ENV, "NOT_THERE"), "NOT_THERE is not set"),
        (source(SourceKind.ENV, "TWO"), "a space, a line break"),
        (source(SourceKind.PROMPT, "Token"), "nobody can be asked here"),
        (source(SourceKind.STORED, "x"), "holds none"),
        (source(SourceKind.COMMAND, "/no/such/program"), "no such file"),
        (source(SourceKind.COMMAND, *python("pass")), "it printed nothing"),
        (source(SourceKind.COMMAND, *python("import sys; sys.exit('locked: gpg')")), r"exit status 1: locked: gpg"),
        (
            source(SourceKind.COMMAND, *python(f"import sys; print('{TOKEN}'); sys.exit('{TOKEN} \x07\x1b[31m')")),
            r"exit status 1: \*\*\* \?$",
        ),
        (source(SourceKind.COMMAND, *python("print('secret-text'); 1/0")), "exit status 1"),
    ],
)
def test_a_source_that_fails_names_itself_and_shows_no_token(one: TokenSource, said: str, tmp_path: Path) -> None:
    """The place, the source, what happened; neither the text nor the traceback holds what it printed."""
    with pytest.raises(InputError, match=said) as caught:
        read_source(one, around(tmp_path, TWO=f"{TOKEN} {TOKEN}"))
    (problem,) = caught.value.diagnostics
    assert str(problem.place) == "inventory/hosts.yml:3"
    assert problem.summary.startswith("token source 'lab' (")
    assert problem.remedy
    text = io.StringIO()
    traceback.print_exception(caught.value, file=text)
    for secret in (TOKEN, "secret-text"):
        assert secret not in text.getvalue() + str(problem.summary)


@pytest.mark.parametrize(
    "said", ["\\033[31m%s\\033[0m", "\\033[1mhf_\\033[0;32m%s", "bad\\\\n%s", "token%%3D%s", "x_%s"]
)
def test_a_coloured_token_of_a_failing_program_is_hidden(said: str, tmp_path: Path) -> None:
    """Whatever stands before a token that is printed on standard error, and colours in the midst of it."""
    token = TOKEN.removeprefix("hf_") if "hf_" in said else TOKEN
    one = source(SourceKind.COMMAND, "sh", "-c", f"printf '{said}' {token} >&2; exit 1")
    with pytest.raises(InputError) as caught:
        read_source(one, around(tmp_path))
    assert TOKEN.removeprefix("hf_") not in str(caught.value)
    assert "[31m" not in str(caught.value)


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    """Also where it left another behind that holds its output open."""
    program = python("import subprocess, sys, time; subprocess.Popen(['sleep', '5']); time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"no end within 0\.5 s"):
        read_source(source(SourceKind.COMMAND, *program, timeout=0.5), around(tmp_path))
    assert time.monotonic() - begun < 4


def test_what_a_program_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    """Its output is whole when it exits, whoever else holds the pipe."""
    begun = time.monotonic()
    one = source(SourceKind.COMMAND, "sh", "-c", f"sleep 3 & echo {TOKEN}")
    assert read(one, around(tmp_path)) == TOKEN
    assert time.monotonic() - begun < 2


def test_a_program_that_is_ended_takes_its_children_along(tmp_path: Path) -> None:
    """And one that prints without an end is ended early."""
    one = source(SourceKind.COMMAND, "sh", "-c", f"sleep 777 & echo $! > {tmp_path}/pid; wait", timeout=0.5)
    with pytest.raises(InputError, match=r"no end within 0\.5 s"):
        read_source(one, around(tmp_path))
    child = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.02)
    with pytest.raises(InputError, match="it prints more than 65536 bytes"):
        read_source(source(SourceKind.COMMAND, "yes", "abcdefgh"), around(tmp_path))
    with pytest.raises(InputError, match="ended by signal 9"):
        read_source(source(SourceKind.COMMAND, "sh", "-c", "kill -9 $$"), around(tmp_path))


def test_nobody_waits_for_a_file_that_is_none(tmp_path: Path) -> None:
    """A FIFO as a file of a token, as the Hub's own, and as what is stored; one that is far too long."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(InputError, match="no regular file"):
        read_source(source(SourceKind.FILE, str(fifo)), around(tmp_path))
    with pytest.raises(InputError, match="no regular file"):
        read_source(TokenSource(), around(tmp_path, HF_TOKEN_PATH=str(fifo)))
    (tmp_path / "long").write_text(TOKEN + "x" * 70_000)
    with pytest.raises(InputError, match="larger than 65536 bytes"):
        read_source(source(SourceKind.FILE, str(tmp_path / "long")), around(tmp_path))
    (tmp_path / "marked").write_text("\ufeff" + TOKEN)
    assert read(source(SourceKind.FILE, str(tmp_path / "marked")), around(tmp_path)) == TOKEN

"""The Hub token: which source wins, what is refused, and that nothing shows it."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from vmreconcile.effects.token import find_token, token_path
from vmreconcile.effects.token_sources import stored_tokens_path
from vmreconcile.errors import InputError

TOKEN = "hf_SENTINELsentinelSENTINELsentinel00"
OTHER = "hf_OTHERotherOTHERotherOTHERother00000"


def keep(home: Path, text: str) -> Path:
    """Write the cache file."""
    path = home / ".cache/huggingface/token"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_no_token(tmp_path: Path) -> None:
    """No file and no variable: none."""
    assert find_token({}, tmp_path) is None


def test_file_wins_over_the_environment(tmp_path: Path) -> None:
    """The cache file wins, and a differing variable is named."""
    path = keep(tmp_path, f"{TOKEN}\n")
    found = find_token({"HF_TOKEN": OTHER, "HUGGING_FACE_HUB_TOKEN": TOKEN}, tmp_path)
    assert found is not None
    assert found.secret.reveal() == TOKEN
    assert found.source == str(path)
    assert found.warnings == (f"HF_TOKEN ignored: the cache file wins ({path}); unset HF_TOKEN",)


def test_environment_in_its_order(tmp_path: Path) -> None:
    """Without a file `HF_TOKEN` goes before the older name; blanks around it are dropped; an empty file is none."""
    keep(tmp_path, " \n")
    found = find_token({"HF_TOKEN": f" {TOKEN}\n", "HUGGING_FACE_HUB_TOKEN": OTHER}, tmp_path)
    assert found is not None
    assert (found.secret.reveal(), found.source) == (TOKEN, "HF_TOKEN")
    assert found.warnings == ("HUGGING_FACE_HUB_TOKEN ignored: HF_TOKEN wins (HF_TOKEN); unset HUGGING_FACE_HUB_TOKEN",)
    older = find_token({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": OTHER}, tmp_path)
    assert older is not None
    assert (older.secret.reveal(), older.source, older.warnings) == (OTHER, "HUGGING_FACE_HUB_TOKEN", ())


@pytest.mark.parametrize("text", [f"{TOKEN}\n{OTHER}", f"{TOKEN} x", f"{TOKEN}\x00", f"{TOKEN}é", "\x1b[31m"])
def test_malformed_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    """What is no token is an error naming the file; neither it nor its traceback shows the text."""
    path = keep(tmp_path, text)
    with pytest.raises(InputError) as caught:
        find_token({}, tmp_path)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.diagnostics) + caught.value.remedy
    assert TOKEN not in shown
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 5


def test_malformed_in_the_environment(tmp_path: Path) -> None:
    """A variable is named as the place to mend."""
    with pytest.raises(InputError, match=r"HF_TOKEN: the Hub token is none: it holds a space") as caught:
        find_token({"HF_TOKEN": f"{TOKEN}\n{TOKEN}"}, tmp_path)
    assert caught.value.remedy == "set HF_TOKEN to the token alone"


def test_unreadable_file(tmp_path: Path) -> None:
    """A file that is there but cannot be read is an error, not 'no token'."""
    (tmp_path / ".cache/huggingface/token").mkdir(parents=True)
    with pytest.raises(InputError, match=r"token: the Hub token's file cannot be read \(is a directory\)"):
        find_token({"HF_TOKEN": TOKEN}, tmp_path)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"XDG_CACHE_HOME": "/var/cache/x"},
        {"HF_HOME": "~/hub"},
        {"HF_HOME": "$SOMEWHERE/${DEEP}/$ABSENT", "SOMEWHERE": "/srv", "DEEP": "d"},
        {"HF_HOME": "/a", "HF_TOKEN_PATH": "~/t"},
        {"HF_TOKEN_PATH": "$HOME/secrets/hf", "XDG_CACHE_HOME": "/c"},
        {"HF_HOME": ""},
        {"XDG_CACHE_HOME": "~/c"},
    ],
)
def test_path_is_the_hub_clients(tmp_path: Path, environ: dict[str, str]) -> None:
    """The real huggingface_hub computes the same paths in the same environment."""
    environ = {"HOME": str(tmp_path), **environ}
    code = "from huggingface_hub import constants as c; print(c.HF_TOKEN_PATH, c.HF_STORED_TOKENS_PATH, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": os.environ["PATH"], **environ}, capture_output=True, check=True
    )
    expected = [Path(line) for line in done.stdout.decode().splitlines()]
    assert [token_path(environ, tmp_path), stored_tokens_path(environ, tmp_path)] == expected

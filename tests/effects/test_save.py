"""`save_state`: the file says what was asked for, and every other byte is as it was."""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vmreconcile.core.resolve import resolve
from vmreconcile.effects.inventory import read_inventory
from vmreconcile.effects.load import load_models
from vmreconcile.effects.save import SaveError, save_state
from vmreconcile.effects.yaml_edit import EditError, set_text
from vmreconcile.effects.yaml_text import read_yaml
from vmreconcile.errors import UsageError
from vmreconcile.model.desired import DesiredFleet, DesiredState
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import catalogue_for

INVENTORY = "all: {children: {gpu: {hosts: {gpu1: , gpu2: , '10.0.0.3': }}}}\n"
MODEL = """\
# yaml-language-server: $schema=x

name: a   # its name
model: "org/m"
hosts:   'gpu'
port: 8001            # the port

# what it is given
args: {max_model_len: 8192,   tp: 2}  # é
overrides:
    gpu2:   # slower
        args:
            max_model_len: 4096

# the end
"""


def _save(folder: Path, text: str, names: list[str], state: DesiredState) -> tuple[str, DesiredFleet, tuple[str, ...]]:
    """Save into a file, and resolve what is then in it."""
    models = folder / "models.d"
    models.mkdir(exist_ok=True)
    (folder / "hosts.yml").write_text(INVENTORY)
    (models / "a.yaml").write_bytes(text.encode())
    inventory = read_inventory([str(folder / "hosts.yml")], environ={})
    documents = load_models(models)
    written = save_state(documents, names, resolve(documents, inventory, catalogue=catalogue_for(None)), state)
    after = resolve(load_models(models), inventory, catalogue=catalogue_for(None))
    return (models / "a.yaml").read_bytes().decode(), after, written


def _added(before: str, after: str) -> list[str]:
    """Lines that were added; none may be gone."""
    changes = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert all(line.startswith("+") for line in changes)
    return [line[2:] for line in changes]


def _states(fleet: DesiredFleet) -> dict[str, str]:
    return {str(server.id): server.state.value for server in fleet.servers}


def test_a_model_is_stopped_and_started_again(tmp_path: Path) -> None:
    """`state:` is put behind the port; starting changes that word alone."""
    stopped, fleet, written = _save(tmp_path, MODEL, ["a"], DesiredState.STOPPED)
    assert _added(MODEL, stopped) == ["state: stopped"]
    assert written == (str(tmp_path / "models.d" / "a.yaml"),)
    assert set(_states(fleet).values()) == {"stopped"}
    running, fleet, _ = _save(tmp_path, stopped, ["a"], DesiredState.RUNNING)
    assert running == stopped.replace("state: stopped", "state: running")
    assert set(_states(fleet).values()) == {"running"}


def test_one_host_goes_under_overrides(tmp_path: Path) -> None:
    """Into the host's own override, or a new one at the end."""
    text, fleet, _ = _save(tmp_path, MODEL, ["a@gpu2"], DesiredState.STOPPED)
    assert _added(MODEL, text) == ["        state: stopped"]
    assert _states(fleet) == {"a@10.0.0.3": "running", "a@gpu1": "running", "a@gpu2": "stopped"}
    text, fleet, _ = _save(tmp_path, MODEL, ["a@10.0.0.3", "a@gpu1"], DesiredState.STOPPED)
    assert _added(MODEL, text) == ['    "10.0.0.3":', "      state: stopped", "    gpu1:", "      state: stopped"]
    assert _states(fleet) == {"a@10.0.0.3": "stopped", "a@gpu1": "stopped", "a@gpu2": "running"}


def test_a_whole_model_takes_its_overrides_along(tmp_path: Path) -> None:
    """`start a` after `stop a@gpu2` starts gpu2 as well."""
    text, _, _ = _save(tmp_path, MODEL, ["a@gpu2"], DesiredState.STOPPED)
    text, fleet, _ = _save(tmp_path, text, ["a"], DesiredState.RUNNING)
    assert set(_states(fleet).values()) == {"running"}
    assert _added(MODEL, text) == ["state: running", "        state: running"]


def test_what_is_so_already_is_not_written(tmp_path: Path) -> None:
    """The file keeps its bytes and its time."""
    text, _, written = _save(tmp_path, MODEL, ["a", "a@gpu1"], DesiredState.RUNNING)
    assert (text, written) == (MODEL, ())


def test_one_of_several_replicas_cannot_be_saved(tmp_path: Path) -> None:
    """A model file has one state for all replicas on a host; naming them all is fine."""
    text = MODEL.replace("port: 8001", "replicas: 2\nport: 8001")
    with pytest.raises(UsageError, match="a/1@gpu1 was not named"):
        _save(tmp_path, text, ["a@gpu1"], DesiredState.STOPPED)
    assert (tmp_path / "models.d" / "a.yaml").read_text() == text
    _, fleet, _ = _save(tmp_path, text, ["a@gpu1", "a/1@gpu1"], DesiredState.STOPPED)
    assert [name for name, state in _states(fleet).items() if state == "stopped"] == ["a@gpu1", "a/1@gpu1"]


def test_a_later_override_would_win(tmp_path: Path) -> None:
    """Then nothing is written, and the way out is told."""
    text = MODEL + "    gpu: {state: running}\n"
    with pytest.raises(SaveError, match="comes after that for 'gpu2'"):
        _save(tmp_path, text, ["a@gpu2"], DesiredState.STOPPED)
    _, fleet, _ = _save(tmp_path, text, ["a@gpu1"], DesiredState.STOPPED)
    assert _states(fleet)["a@gpu1"] == "stopped"


def test_mode_links_and_leftovers(tmp_path: Path) -> None:
    """The mode stays, a link stays a link, no other file is left in the folder."""
    (tmp_path / "models.d").mkdir()
    real = tmp_path / "real.yaml"
    real.write_text(MODEL)
    real.chmod(0o640)
    (tmp_path / "models.d" / "a.yaml").symlink_to(real)
    _save(tmp_path, MODEL, ["a"], DesiredState.STOPPED)
    assert "state: stopped" in real.read_text()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert (tmp_path / "models.d" / "a.yaml").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hosts.yml", "models.d", "real.yaml"]


def test_a_file_that_went_away(tmp_path: Path) -> None:
    """One line that names the file and the way out, no traceback of ours."""
    (tmp_path / "models.d").mkdir()
    (tmp_path / "hosts.yml").write_text(INVENTORY)
    path = tmp_path / "models.d" / "a.yaml"
    path.write_text(MODEL)
    inventory = read_inventory([str(tmp_path / "hosts.yml")], environ={})
    documents = load_models(tmp_path / "models.d")
    fleet = resolve(documents, inventory, catalogue=catalogue_for(None))
    path.unlink()
    with pytest.raises(SaveError, match=r"a\.yaml cannot be read: No such file") as caught:
        save_state(documents, ["a"], fleet, DesiredState.STOPPED)
    assert "--no-save" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("state: running   # why\n", "state", "state: x   # why\n"),
        ('state: "running"\n', "state", "state: x\n"),
        ("state:\n  running\n", "state", "state:\n  x\n"),
        ("state:\na: 1\n", "state", "state: x\na: 1\n"),
        ("{a: 1}", "state", "{a: 1, state: x}"),
        ("{a: 1, o: {}, }\n", "o/h/state", "{a: 1, o: {h: {state: x}}, }\n"),
        ("a: 1", "state", "a: 1\nstate: x\n"),
        ("a: 1\r\nport: 2\r\nb: 3\r\n", "state", "a: 1\r\nport: 2\r\nstate: x\r\nb: 3\r\n"),
        ("a: 1\n...\n", "state", "a: 1\nstate: x\n...\n"),
        ("  a: 1\n  port: 2\n", "o/h/state", "  a: 1\n  port: 2\n  o:\n    h:\n      state: x\n"),
        ("o: null # c\n", "o/h/state", "o: # c\n  h:\n    state: x\n"),
        ("o:\nb: 1\n", "o/h/state", "o:\n  h:\n    state: x\nb: 1\n"),
        ("o: {g: {a: 1}}\n", "o/h/state", "o: {g: {a: 1}, h: {state: x}}\n"),
        ("o: {h: {a: 1}}\n", "o/h/state", "o: {h: {a: 1, state: x}}\n"),
        ("o: {h: }\n", "o/h/state", "o: {h: {state: x}}\n"),
        ("o:\n  g:\n    l:\n    - 1\n    # end\nb: 1\n", "o/h/state",
         "o:\n  g:\n    l:\n    - 1\n  h:\n    state: x\n    # end\nb: 1\n"),
        ("o:\n  g:\n    t: |\n      x\n\n# end\n", "o/yes/state", None),
        ("\ufeffport: 1 # é\n", "state", "\ufeffport: 1 # é\nstate: x\n"),
    ],
)  # fmt: skip
def test_every_layout(text: str, path: str, expected: str | None) -> None:
    """Block and flow style, comments, line ends, no line end, null, lists and block scalars."""
    found = set_text(text, path.split("/"), "x", after="port")
    assert expected is None or found == expected
    level: JsonValue = read_yaml(found, "").content
    for key in path.split("/"):
        assert isinstance(level, dict)
        level = level[key]
    assert level == "x"


@pytest.mark.parametrize(
    "text",
    ["a: &s running\nstate: *s\n", "state: &s running\na: *s\n", "- a\n", "a: [", ""],
)
def test_what_cannot_be_edited_safely_is_refused(text: str) -> None:
    """An edit of an anchor would change more than was asked for."""
    with pytest.raises(EditError):
        set_text(text, ["state"], "x")


WORDS = st.sampled_from(["a", "b", "port", "state", "o", "yes", "1", "é", "x y", "- z", "#", ""])
TREES = st.dictionaries(
    WORDS,
    st.recursive(
        WORDS | st.none() | st.integers(0, 9) | st.just("two\nlines\n"),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(TREES, st.sampled_from([True, False, None]), st.lists(WORDS, min_size=1, max_size=3))
def test_only_what_was_asked_for_changes(tree: dict[str, object], flow: bool | None, path: list[str]) -> None:  # noqa: FBT001
    """Any file that YAML writes: the wanted content comes out (or a refusal), and other lines stay."""
    text = "# begin\n" + yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True)
    try:
        found = set_text(text, path, "stopped", after="port")
    except EditError:
        return
    wanted = read_yaml(text, "").content
    level = wanted
    for key in path[:-1]:
        assert isinstance(level, dict)
        level[key] = level.get(key) or {}
        level = level[key]
    assert isinstance(level, dict)
    level[path[-1]] = "stopped"
    assert read_yaml(found, "").content == wanted
    assert found.startswith("# begin\n")


def test_the_folder_may_not_be_written(tmp_path: Path) -> None:
    """Said in one line; the file is untouched."""
    (tmp_path / "models.d").mkdir()
    _save(tmp_path, MODEL, ["a"], DesiredState.RUNNING)
    (tmp_path / "models.d").chmod(0o500)
    try:
        if os.geteuid():  # root may write everywhere
            with pytest.raises(SaveError, match="cannot be written"):
                _save(tmp_path, MODEL, ["a"], DesiredState.STOPPED)
        assert (tmp_path / "models.d" / "a.yaml").read_text() == MODEL
    finally:
        (tmp_path / "models.d").chmod(0o700)

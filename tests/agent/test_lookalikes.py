"""What only looks like ours, and what must not leave the host in pieces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmreconcile.agent import logs, proc, removal, steps, units
from vmreconcile.agent.folders import Folders
from vmreconcile.agent.logs import LINE_LIMIT, Lines
from vmreconcile.agent.problems import Problem

SECRET = "first-half-SECOND-HALF-of-it"
UNIT = "vmreconcile-x.service"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Folders of a user of this test."""
    home = tmp_path.resolve()
    (home / ".config/systemd/user").mkdir(parents=True)
    (home / "state/servers").mkdir(parents=True, mode=0o700)
    (home / "state").chmod(0o700)
    return Folders(f"{home}/config", f"{home}/state", os.getuid(), str(home), "someone")


@pytest.fixture(autouse=True)
def _room_for_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders has slots; root's unit folder is the machine's, which no test may touch."""
    monkeypatch.setattr(Folders, "unit_folder", lambda self: self.home + "/.config/systemd/user")


def unit(folders: Folders, text: str) -> None:
    """Put a unit there."""
    Path(folders.unit_folder(), UNIT).write_text(text)


OTHERS = (
    "[Service]\nExecStart=/usr/bin/vmreconcile apply --prune\n",
    "[Service]\nEnvironment=VMRECONCILE_SERVER=x\nEnvironmentFile=/another/config/env/x.env\nExecStart=vllm\n",
    "",
)


@pytest.mark.parametrize("text", OTHERS)
@pytest.mark.parametrize(
    "step",
    [
        {"step": "write-file", "path": "{}/" + UNIT, "content": "", "mode": 0o644},
        {"step": "remove-file", "path": "{}/" + UNIT},
        {"step": "systemctl", "verb": "restart", "unit": UNIT},
        {"step": "stop-unit", "unit": UNIT, "grace_s": 1},
    ],
)
def test_a_unit_that_only_bears_such_a_name(folders: Folders, text: str, step: dict[str, object]) -> None:
    """A person's own unit, another state folder's, a masked one: neither written, removed, stopped nor started."""
    unit(folders, text)
    step = {key: value.format(folders.unit_folder()) if key == "path" else value for key, value in step.items()}  # type: ignore[attr-defined]
    with pytest.raises(Problem, match="left alone"):
        steps.spare_foreign(step, folders)


def test_our_unit_and_one_that_our_record_knows(folders: Folders) -> None:
    """What we wrote is ours, and so is what was edited beyond recognition."""
    step = {"step": "systemctl", "verb": "restart", "unit": UNIT}
    steps.spare_foreign(step, folders)
    unit(folders, f"[Service]\nEnvironmentFile={folders.env_file('x')}\n")
    steps.spare_foreign(step, folders)
    unit(folders, "garbage")
    Path(folders.record("x")).write_text('{"runtime": "systemd"}')
    steps.spare_foreign(step, folders)
    assert not units.is_foreign(None, "x", folders, None)


@pytest.mark.parametrize("opened", [False, True])
def test_a_pipe_in_place_of_a_unit_or_log_is_not_waited_for(folders: Folders, opened: bool) -> None:  # noqa: FBT001
    """Whether somebody has it open or not: only regular files are read."""
    path = Path(folders.unit_folder(), UNIT)
    (Path(folders.state) / "log").mkdir(mode=0o700)
    for pipe in (path, Path(folders.log("x"))):
        os.mkfifo(pipe)
    held = os.open(folders.log("x"), os.O_RDWR) if opened else -1
    assert not logs.is_journal("x", None, folders)
    with pytest.raises(Problem, match="not a regular file"):
        logs.log({"slug": "x"}, folders, None, lambda **_: None)  # type: ignore[arg-type]
    assert proc.read(str(path)) is None
    if opened:
        os.close(held)


def test_a_log_behind_a_linked_folder_is_not_shown(folders: Folders, tmp_path: Path) -> None:
    """A link leads to what is not ours."""
    (tmp_path / "else").mkdir()
    (tmp_path / "else/x.log").write_text("secret")
    (Path(folders.state) / "log").symlink_to(tmp_path / "else")
    with pytest.raises(Problem):
        logs.log({"slug": "x"}, folders, None, lambda **_: None)  # type: ignore[arg-type]


def test_a_half_written_unit_goes_with_the_unit(folders: Folders) -> None:
    """And alone, where the unit itself is gone already."""
    path = Path(folders.unit_folder(), UNIT)
    part = path.parent / f".{path.name}.new"
    for left in ([path, part], [part]):
        for each in left:
            each.write_text("x")
        step = {"step": "remove-file", "path": str(path)}
        assert steps.remove_any_file(step, folders) == {"changed": True}
        assert not any(each.exists() for each in left)
        assert steps.remove_any_file(step, folders) == {"changed": False}


def test_a_linked_cache_is_not_emptied(folders: Folders, tmp_path: Path) -> None:
    """Removing the last server deletes what we keep, never what a link leads to, nor files of another name."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.pyz").write_text("x")
    cache = tmp_path / "state/agent"
    cache.symlink_to(elsewhere)
    removal._remove_rest(folders)
    assert (elsewhere / "precious.pyz").exists()
    cache.unlink()
    cache.mkdir(mode=0o700)
    (cache / "a.pyz").write_text("x")
    (cache / "notes.txt").write_text("x")
    removal._remove_rest(folders)
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]


def shown(pieces: list[bytes], *secrets: str) -> list[str]:
    """What leaves the host of a log that comes in these pieces."""
    out: list[str] = []

    def progress(*, lines: list[str]) -> None:
        out.extend(lines)

    lines = Lines(secrets, progress)
    for piece in pieces:
        lines.feed(piece)
    lines.feed(b"", last=True)
    return out


@pytest.mark.parametrize("before", [0, 9, LINE_LIMIT - 9, LINE_LIMIT + 5000, 3 * LINE_LIMIT])
@pytest.mark.parametrize("at", [1, 9, 20])
def test_no_part_of_a_secret_is_left(before: int, at: int) -> None:
    """However long the line is and wherever it is torn."""
    text = b"x" * before + SECRET.encode() + b"y" * 20000
    out = shown([text[: before + at], text[before + at :], b"\nnext\n"], SECRET)
    assert out[-1] == "next"
    assert not any(part in line for line in out for part in ("first", "half", "SECOND", "HALF", "of-it"))
    assert max(map(len, out)) <= LINE_LIMIT


def test_secrets_that_begin_alike_and_secrets_of_several_lines() -> None:
    """The longer one is masked whole; each line of a key is masked."""
    assert shown([b"a abcdef-123456 b\n"], "abcdef", "abcdef-123456") == ["a *** b"]
    assert shown([b"LINEONE1\nLINETWO2\n"], "LINEONE1\nLINETWO2") == ["***", "***"]

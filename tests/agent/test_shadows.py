"""Where units name tokens beside our env file, by systemd's own order of precedence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmreconcile.agent import shadows, units
from vmreconcile.core.fingerprints import fingerprint

SALT = "00112233445566778899aabbccddeeff"
UNIT = """\
[Service]
Environment=VMRECONCILE_SERVER=m
EnvironmentFile={}/m.env
UnsetEnvironment=HUGGING_FACE_HUB_TOKEN
"""


def found(folder: Path, *drop_ins: str, unit: str = UNIT) -> list[tuple[str, str, int, bool]]:
    """(variable, file name, line, wins) of each place."""
    (folder / "m.env").write_text('HF_TOKEN="ours"\n')
    texts = [("unit", unit.format(folder)), *((f"{at}.conf", text) for at, text in enumerate(drop_ins))]
    rows = shadows.places(texts, f"{folder}/m.env", bytes.fromhex(SALT))
    return [(row["variable"], Path(row["path"]).name, row["line"], row["wins"]) for row in rows]


@pytest.mark.parametrize(
    ("drop_in", "expected"),
    [
        ("[Service]\nEnvironment=HF_TOKEN=theirs\n", [("HF_TOKEN", "0.conf", 2, False)]),
        ("[Service]\nEnvironment=A=1 'HF_TOKEN=the irs' B=2\n", [("HF_TOKEN", "0.conf", 2, False)]),
        ("[Service]\nEnvironment=A=1 \\\n  HF_TOKEN=theirs\n", [("HF_TOKEN", "0.conf", 2, False)]),
        ("[Service]\nEnvironmentFile=\nEnvironment=HF_TOKEN=theirs\n", [("HF_TOKEN", "0.conf", 3, True)]),
        ("[Service]\nEnvironment=HUGGING_FACE_HUB_TOKEN=x\n", [("HUGGING_FACE_HUB_TOKEN", "0.conf", 2, False)]),
        (
            "[Service]\nUnsetEnvironment=\nEnvironment=HUGGING_FACE_HUB_TOKEN=x\n",
            [("HUGGING_FACE_HUB_TOKEN", "0.conf", 3, True)],
        ),
        ("[Service]\nEnvironment=HF_TOKEN=x\nEnvironment=\n", []),
        ("[Service]\nPassEnvironment=HF_TOKEN PATH\n", [("HF_TOKEN", "0.conf", 2, False)]),
        ("[Unit]\nEnvironment=HF_TOKEN=x\n", []),
        ("# [Service]\n#Environment=HF_TOKEN=x\n", []),
        ("[Service]\nEnvironment=HF_TOKEN='x\n", []),
        ("[Service]\nEnvironment=NOT_HF_TOKEN=x\n", []),
        ("", []),
    ],
)
def test_directives_of_a_drop_in(tmp_path: Path, drop_in: str, expected: list[tuple[str, str, int, bool]]) -> None:
    """`Environment=` loses against the env file; resets, quotes and continued lines count."""
    assert found(tmp_path, drop_in) == expected


def test_a_later_file_wins_and_an_earlier_one_does_not(tmp_path: Path) -> None:
    """The line is that of the file named; globs and a missing file behind '-' are as for systemd."""
    (tmp_path / "more.conf").write_text("# theirs\n\nHF_TOKEN=theirs\n")
    later = f"[Service]\nEnvironmentFile=-{tmp_path}/mo*.conf\nEnvironmentFile=-{tmp_path}/nothing\n"
    assert found(tmp_path, later) == [("HF_TOKEN", "more.conf", 3, True)]
    both = f"[Service]\nEnvironmentFile=\nEnvironmentFile={tmp_path}/more.conf\nEnvironmentFile={tmp_path}/m.env\n"
    assert found(tmp_path, both) == [("HF_TOKEN", "more.conf", 3, False)]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Somebody's mistake must not hold up a look."""
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path, f"[Service]\nEnvironmentFile={tmp_path}/pipe\n") == []


def test_values_leave_as_fingerprints(tmp_path: Path) -> None:
    """Of both variables with one name, so that they can be compared with the wanted token."""
    text = "[Service]\nEnvironment=HF_TOKEN=a HUGGING_FACE_HUB_TOKEN=a\nPassEnvironment=HF_TOKEN\n"
    rows = shadows.places([("u", text)], f"{tmp_path}/m.env", bytes.fromhex(SALT))
    assert [row["fingerprint"] for row in rows] == [None, *[fingerprint(SALT, "HF_TOKEN", "a")] * 2]


def test_a_unit_as_we_write_it_is_not_looked_into() -> None:
    """Two lines about the environment, and no more."""
    assert units.plain(UNIT.format("/etc"))
    assert units.plain(None)
    assert not units.plain(UNIT.format("/etc") + "Environment=A=1\n")
    assert not units.plain(UNIT.format("/etc") + "PassEnvironment=A\n")

"""Units as text: what is written, how it is quoted, what an edit shows as."""

from __future__ import annotations

import pytest

from vmreconcile.model.launch import Launch
from vmreconcile.model.names import ServerId
from vmreconcile.runtimes.systemd import quote, unit_differences, unit_text

LAUNCH = Launch(
    id=ServerId(host="gpu1", model="qwen2.5-7b", replica=1),
    argv=("/opt/vllm/bin/vllm", "serve", "a/b", "--port", "8002"),
    entries=(),
    env_path="/etc/vmreconcile/env/qwen2.5-7b_1.env",
    log_path="/var/lib/vmreconcile/log/qwen2.5-7b_1.log",
    cwd="/var/lib/vmreconcile",
)


def test_a_unit_keeps_its_server_alive_and_bounded() -> None:
    """Restarted whatever its exit code, within a start limit, its whole group killed, started at boot."""
    lines = unit_text(LAUNCH).splitlines()
    for line in ("Restart=always", "StartLimitBurst=5", "KillMode=control-group", "WantedBy=multi-user.target"):
        assert line in lines
    assert "EnvironmentFile=/etc/vmreconcile/env/qwen2.5-7b_1.env" in lines


@pytest.mark.parametrize(
    ("argument", "quoted"),
    [
        ("plain", '"plain"'),
        ("two words", '"two words"'),
        ('say "hi"', r'"say \"hi\""'),
        ("50% of $HOME", '"50%% of $$HOME"'),
        ("back\\slash", r'"back\\slash"'),
        ("a\nb\tc\x01", r'"a\nb\tc\x01"'),
        ("", '""'),
        ("käse 🧀", '"käse 🧀"'),
    ],
)
def test_quoting(argument: str, quoted: str) -> None:
    """Each character that systemd would change is written so that it does not (systemd.service(5))."""
    assert quote(argument) == quoted


def test_an_edit_shows_as_its_directive() -> None:
    """A changed, a removed and an added directive are named with both values; an edited environment is not shown."""
    text = unit_text(LAUNCH)
    edited = text.replace("Restart=always", "Restart=no").replace("LimitNOFILE=1048576\n", "Nice=5\n")
    assert unit_differences(edited, text) == (
        ("LimitNOFILE", None, "1048576"),
        ("Nice", "5", None),
        ("Restart", "no", "always"),
    )
    secret = text.replace("[Service]\n", "[Service]\nEnvironment=API_TOKEN=recognisable\n")
    assert "recognisable" not in str(unit_differences(secret, text))
    assert unit_differences(secret, text)[0][:2] == ("Environment", "(hidden)")


def test_a_comment_alone_is_an_edit_of_the_text() -> None:
    """A unit whose directives are as written but whose text is not shows as edited."""
    assert unit_differences("# mine\n" + unit_text(LAUNCH), unit_text(LAUNCH)) == (("text", "edited", "as written"),)

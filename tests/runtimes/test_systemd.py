"""Units: what is written into them, what is read out of them, and the steps around them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.fake_systemd import command, directives, specified
from vmreconcile.model.launch import Launch
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer, Systemd, Unit, Worker
from vmreconcile.model.steps import RemoveFile, RemoveServer, SecretRef, Systemctl, WriteEnv, WriteFile, WriteRecord
from vmreconcile.runtimes.base import Runtime
from vmreconcile.runtimes.registry import RUNTIMES, choose
from vmreconcile.runtimes.systemd import (
    NONCHARACTER,
    SystemdRuntime,
    command_line,
    glob_safe,
    quote,
    specifier_safe,
    unit_text,
)

LAUNCH = Launch(
    id=ServerId(host="h1", model="qwen2.5-7b", replica=1),
    argv=("/opt/vllm/bin/vllm", "serve", "Qwen/Qwen2.5-7B", "--port", "8002"),
    entries=(("A", "1"), ("HF_TOKEN", SecretRef(name="default"))),
    env_path="/etc/vmreconcile/env/qwen2.5-7b_1.env",
    log_path="/var/lib/vmreconcile/log/qwen2.5-7b_1.log",
    cwd="/var/lib/vmreconcile",
    record={"server": "qwen2.5-7b/1"},
)
USER = replace(LAUNCH, scope="user", unit_dir="/home/op/.config/systemd/user", linger=True)
UNIT = "vmreconcile-qwen2.5-7b_1.service"
SYSTEMD = SystemdRuntime()
words = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)


def host(**parts: object) -> HostView:
    """A host with just this of systemd."""
    return HostView(
        host="h1", now=0, boot_id="b", uid=0, user="root", config_dir="/c", state_dir="/s", systemd=Systemd(**parts)  # type: ignore[arg-type]
    )  # fmt: skip


def observed(unit: Unit | None = None, **parts: object) -> ObservedServer:
    """A server with just this of a unit."""
    return ObservedServer(slug=LAUNCH.id.slug, unit=unit, **parts)  # type: ignore[arg-type]


def written(**parts: object) -> Unit:
    """The unit as we write it."""
    unit = Unit(name=UNIT, path=LAUNCH.unit_path, text=unit_text(LAUNCH), enabled="enabled")
    return replace(unit, **parts)  # type: ignore[arg-type]


@given(argv=st.lists(words, max_size=6))
def test_exec_start_starts_exactly_the_arguments(argv: list[str]) -> None:
    """An independent reader of systemd's syntax gets every argument back."""
    whole = ("/opt/v/bin/vllm", *argv)
    line = command_line(whole)
    assert "\n" not in line
    assert command(line, {"HOME": "/root", "X": "wrong words"}) == whole


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("a", '"a"'),
        ("", '""'),
        (";", '";"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("$HOME ${X}", '"$$HOME $${X}"'),
        ("100%", '"100%%"'),
        ("a\nb\t\r\x7f", '"a\\nb\\t\\x0d\\x7f"'),
        ("ü漢🚀'", '"ü漢🚀\'"'),
    ],
)
def test_quotes(word: str, quoted: str) -> None:
    """One argument in systemd's double quotes."""
    assert quote(word) == quoted


@given(path=st.text("/ab%[]*?\\ '\"$", max_size=20))
def test_paths_are_neither_specifiers_nor_patterns(path: str) -> None:
    """A '%' is doubled, what glob(7) expands is escaped."""
    assert specified(specifier_safe(path)) == path
    assert re.sub(r"\\(.)", r"\1", glob_safe(path)) == path
    assert not re.search(r"(?<!\\)(\\\\)*[*?\[]", glob_safe(path))


def test_the_unit_of_a_system() -> None:
    """As a whole: what a person finds on the host."""
    assert (
        unit_text(LAUNCH)
        == """\
# Written by vmreconcile for qwen2.5-7b/1. Edits are drift: apply writes this file anew.
[Unit]
Description=vLLM qwen2.5-7b/1 (vmreconcile)
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=1800
StartLimitBurst=5

[Service]
Type=exec
Environment=VMRECONCILE_SERVER=qwen2.5-7b_1
EnvironmentFile=/etc/vmreconcile/env/qwen2.5-7b_1.env
UnsetEnvironment=HUGGING_FACE_HUB_TOKEN
WorkingDirectory=/var/lib/vmreconcile
ExecStart="/opt/vllm/bin/vllm" "serve" "Qwen/Qwen2.5-7B" "--port" "8002"
Restart=always
RestartSec=5
RestartPreventExitStatus=2
KillMode=control-group
TimeoutStopSec=60
LimitNOFILE=1048576
LimitCORE=1

[Install]
WantedBy=multi-user.target
"""
    )
    assert LAUNCH.unit_path == f"/etc/systemd/system/{UNIT}"


def test_tokens_that_the_env_file_does_not_give_are_taken_away() -> None:
    """A manager's own environment may hold some; a variable that the model's `env` sets stays."""
    found = [
        directives(unit_text(replace(LAUNCH, entries=tuple((name, "x") for name in names)))).get("UnsetEnvironment")
        for names in ((), ("HF_TOKEN",), ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    ]
    assert found == [["HF_TOKEN HUGGING_FACE_HUB_TOKEN"], ["HUGGING_FACE_HUB_TOKEN"], None]


def test_a_token_as_a_credential() -> None:
    """In no variable, but where HF_TOKEN_PATH leads: systemd's own folder for this unit."""
    launch = replace(LAUNCH, token_path="/srv/a b%/env/m.token")
    found = directives(unit_text(launch))
    assert found["LoadCredential"] == ["hf_token:/srv/a b%%/env/m.token"]
    assert found["Environment"] == ["VMRECONCILE_SERVER=qwen2.5-7b_1", "HF_TOKEN_PATH=%d/hf_token"]
    assert found["UnsetEnvironment"] == ["HF_TOKEN HUGGING_FACE_HUB_TOKEN"]


def test_a_token_that_moves_is_where_the_old_unit_wants_it_until_the_new_one_counts() -> None:
    """Wherever a host is lost in between, the server can be started again."""
    launch = replace(LAUNCH, token_path="/c/env/m.token", env_path="/c/env/m.env")
    to, back = SYSTEMD.refresh(launch), SYSTEMD.refresh(replace(launch, token_path=""))
    assert [step.credential for step in to if isinstance(step, WriteEnv)] == ["added", "only"]
    assert to[-1].name == "write-env"
    assert back[-1] == RemoveFile(path="/c/env/m.token")
    for steps in (to, back):
        names = [step.name for step in steps]
        assert names.index("write-env") < names.index("write-file") < names.index("systemctl") < len(names) - 1


def test_the_unit_of_a_user() -> None:
    """It starts with the user's manager, knows no system target, and logs to a file of ours."""
    found = directives(unit_text(USER))
    assert found["WantedBy"] == ["default.target"]
    assert "After" not in found
    assert found["StandardOutput"] == [f"append:{USER.log_path}"]
    assert USER.unit_path == f"/home/op/.config/systemd/user/{UNIT}"


def test_a_start_writes_first_and_starts_last() -> None:
    """Record, env file, unit, then systemd; earlier failures forgotten, for the start limit counts them."""
    steps = SYSTEMD.start(LAUNCH)
    assert steps == (
        WriteRecord(slug=LAUNCH.id.slug, record={"server": "qwen2.5-7b/1", "runtime": "systemd", "state": "running"}),
        WriteEnv(path=LAUNCH.env_path, entries=LAUNCH.entries),
        WriteFile(path=LAUNCH.unit_path, content=unit_text(LAUNCH)),
        Systemctl(verb="daemon-reload"),
        Systemctl(verb="enable", unit=UNIT),
        RemoveFile(path=LAUNCH.env_path.removesuffix(".env") + ".token"),
        Systemctl(verb="reset-failed", unit=UNIT),
        Systemctl(verb="start", unit=UNIT),
    )
    assert steps[: len(SYSTEMD.refresh(LAUNCH))] == SYSTEMD.refresh(LAUNCH)


def test_a_user_is_made_to_linger_before_the_unit_is_enabled() -> None:
    """And all of it in the user's scope."""
    steps = SYSTEMD.start(USER)
    assert [step.name for step in steps].index("enable-linger") < [step.name for step in steps].index("systemctl")
    assert {step.scope for step in steps if isinstance(step, Systemctl)} == {"user"}


def test_a_stop_disables_first() -> None:
    """A reboot half-way must not bring it back."""
    steps = SYSTEMD.stop(host(version=252, scope="user"), observed(written()))
    assert [step.verb if isinstance(step, Systemctl) else step.name for step in steps] == [
        *("disable", "stop-unit", "reset-failed"),
    ]
    assert {getattr(step, "scope", "user") for step in steps} == {"user"}


def test_a_stop_ends_orphans_too() -> None:
    """With and without a unit."""
    workers = (Worker(pid=9, start_ticks=2), Worker(pid=7, start_ticks=1))
    for unit in (written(), None):
        steps = SYSTEMD.stop(host(version=252), observed(unit, orphans=workers))
        (ending,) = [step for step in steps if step.name == "end-orphans"]
        assert getattr(ending, "processes", None) == ((7, 1), (9, 2))
    assert SYSTEMD.stop(host(version=252), observed()) == ()


def test_a_removal_takes_the_unit_before_the_record() -> None:
    """As long as the record is there, the rest is known to be ours."""
    steps = SYSTEMD.remove(host(version=252), observed(written()))
    assert [step.name for step in steps] == ["remove-file", "systemctl", "remove-server"]
    assert SYSTEMD.remove(host(version=252), observed()) == (RemoveServer(slug=LAUNCH.id.slug),)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"version": 252}, ""),
        ({"version": 240}, ""),
        ({"version": 239}, "systemd 239 is older than 240"),
        ({}, "systemd is not running"),
        ({"version": 252, "problem": "no systemd manager runs for op"}, "no systemd manager runs for op"),
    ],
)
def test_problems(parts: dict[str, object], problem: str) -> None:
    """Why systemd cannot be used; where none was asked for, the other runtime is taken."""
    assert SYSTEMD.problem(host(**parts)) == problem
    assert choose("", host(**parts)).name == ("process" if problem else "systemd")
    assert choose("systemd", host(**parts)).name == "systemd"
    assert choose("process", host(**parts)).name == "process"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"argv": ("/opt/it's/vllm", "serve")}, "path of a program"),
        ({"argv": ('/opt/"/vllm', "serve")}, "path of a program"),
        ({"argv": ("/opt/a\\b/vllm", "serve")}, "path of a program"),
        ({"argv": ("/opt/a\nb/vllm", "serve")}, "path of a program"),
        ({"argv": ("/v", "serve", "a\ufdd0")}, "an argument holds U+FDD0"),
        ({"argv": ("/v", "serve", "\U0010ffff")}, "an argument holds U+10FFFF"),
        ({"argv": ("/v", "serve", "x" * (1 << 20))}, "longer than a line"),
        ({"entries": (("A", "\ufffe"),)}, "the variable A holds U+FFFE"),
        ({"cwd": "/s\n[Service]"}, "control characters in a path"),
        ({"env_path": "/c\r/e"}, "control characters in a path"),
        ({"argv": ("/o p/$x/%/[1]/ü", "serve", "\ufffd", "x" * 100_000)}, ""),
    ],
)
def test_what_systemd_cannot_hold_is_refused(fields: dict[str, object], words: str) -> None:
    """Rather than written and misread."""
    refusal = SYSTEMD.refusal(replace(LAUNCH, **fields))  # type: ignore[arg-type]
    assert words in refusal
    assert bool(refusal) == bool(words)


def test_noncharacters_are_those_of_unicode() -> None:
    """Sixty-six of them (Unicode 15, section 23.7)."""
    assert sum(1 for code in range(0x110000) if NONCHARACTER.match(chr(code))) == 66


@pytest.mark.parametrize(
    ("unit", "paths"),
    [
        (None, ["unit"]),
        (written(text=None), ["unit"]),
        (written(), []),
        (written(enabled="disabled"), ["unit.enabled"]),
        (written(needs_reload=True), ["unit.needs_reload"]),
        (written(text=unit_text(LAUNCH).replace("RestartSec=5", "RestartSec=9")), ["unit.RestartSec"]),
        (written(text=unit_text(LAUNCH) + "Alias=x.service\n"), ["unit.Alias"]),
        (written(text=unit_text(LAUNCH).replace("LimitCORE=1\n", "")), ["unit.LimitCORE"]),
        (written(text="\n" + unit_text(LAUNCH)), ["unit.text"]),
    ],
)
def test_drift_of_units(unit: Unit | None, paths: list[str]) -> None:
    """Directives by name, sorted; a unit that is missing as one."""
    assert [field.path for field in SYSTEMD.drift(LAUNCH, observed(unit))] == paths


def test_an_empty_unit_differs_in_every_directive() -> None:
    """Each by its name."""
    fields = SYSTEMD.drift(LAUNCH, observed(written(text="")))
    assert {field.path for field in fields} == {f"unit.{name}" for name in directives(unit_text(LAUNCH))}
    assert {field.before for field in fields} == {None}


@pytest.mark.parametrize(
    ("unit", "crashed"),
    [
        (Unit(name="u", active="failed"), True),
        (Unit(name="u", active="activating", sub="auto-restart"), True),
        (Unit(name="u", active="inactive", result="oom-kill"), True),
        (Unit(name="u", active="inactive", result="success"), False),
        (Unit(name="u", active="active", sub="running"), False),
        (None, False),
    ],
)
def test_crashed(unit: Unit | None, *, crashed: bool) -> None:
    """Ended by itself, not stopped."""
    assert SYSTEMD.crashed(observed(unit)) is crashed


def test_every_runtime_is_one() -> None:
    """By its own name, with all of the protocol."""
    for name, runtime in RUNTIMES.items():
        one: Runtime = runtime
        assert one.name == name

"""Hooks from the command line: what a person sees of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.worlds import TOKEN

if TYPE_CHECKING:
    from tests.lab.desk import Desk

HOOKS = "hooks: {before_stop: env > before-$VMRECONCILE_HOST, after_ready: env > after-$VMRECONCILE_HOST}\n"


def hooked(desk: Desk, text: str = HOOKS) -> None:
    """Two servers that run, with hooks since."""
    assert desk("apply", "--yes").code == 0
    desk.write("models.d/qwen.yaml", desk.read() + text)


def test_hooks_run_in_the_folder_of_the_command_without_tokens(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they get is the person's environment, less all that is secret, and the facts of one server."""
    monkeypatch.setenv("LB_POOL", "vllm")
    monkeypatch.setenv("LB_PASSWORD", "x")
    desk.write("inventory/group_vars/all.yml", "vllm_token_sources: {team: {env: TEAM_VAULT}}\n")
    monkeypatch.setenv("TEAM_VAULT", TOKEN)
    hooked(desk)
    assert desk("apply", "--yes").code == 0
    for name in ("before-gpu1", "after-gpu2"):
        said = dict(line.split("=", 1) for line in desk.read(name).splitlines() if "=" in line)
        assert said["LB_POOL"] == "vllm"
        assert said["VMRECONCILE_SERVER"] == f"qwen@{name.split('-')[1]}"
        assert TOKEN not in desk.read(name)
        assert not {"HF_TOKEN", "LB_PASSWORD", "TEAM_VAULT"} & said.keys()


def test_plan_and_show_tell_where_shutdown_timeout_comes_from(desk: Desk) -> None:
    """The tool sets it, for the hook's sake."""
    hooked(desk)
    origin = "(rollout.drain is 30 s with hooks.before_stop)"
    assert origin in desk("plan", "--explain").out
    shown = desk("show", "qwen@gpu1", "--json").json["desired"]["args"]["shutdown_timeout"]
    assert shown["value"] == 30
    assert shown["origin"].startswith("models.d/qwen.yaml:")
    assert shown["origin"].endswith(origin)


def test_a_hook_that_fails_is_reported(desk: Desk) -> None:
    """Class, last line and place; a token in its output is stars."""
    prefix, rest = TOKEN.split("_")
    hooked(desk, f"hooks: {{before_stop: 'echo key {prefix}''_{rest}; exit 3', timeout: 5s}}\n".replace("''", '""'))
    said = desk("apply", "--yes", "--json")
    assert said.code == 1
    (error, *_) = [row["error"] for row in said.json["results"] if row["error"]]
    assert (error["class"], error["evidence"]) == ("hook_failed", "key ***")
    assert "models.d/qwen.yaml" in error["remedy"]
    assert TOKEN not in said.out + said.err


def test_validate_warns_of_a_program_that_is_not_here(desk: Desk) -> None:
    """A list's first word, also under overrides; a shell's text is the shell's own."""
    hooks = "hooks: {before_stop: [lb-of-nobody, out], after_ready: no-such-program in}\n"
    desk.write("models.d/qwen.yaml", desk.read() + hooks + "overrides: {gpu1: {hooks: {after_ready: [./lb, in]}}}\n")
    said = desk("validate", "--json")
    rows = [row for row in said.json["diagnostics"] if row["code"] == "hook-program-missing"]
    assert [row["summary"] for row in rows] == [
        "hooks.before_stop runs 'lb-of-nobody', which is not found here.",
        "hooks.after_ready runs './lb', which is not found here.",
    ]
    assert said.code == 0
    (desk.folder / "lb").write_text("#!/bin/sh\n", encoding="utf-8")
    (desk.folder / "lb").chmod(0o755)
    assert len([row for row in desk("validate", "--json").json["diagnostics"] if "hook" in row["code"]]) == 1

"""A token or a variable that a server gets from elsewhere than its env file: told, and never restarted for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.worlds import TOKEN, World, only, wanted, world
from vmreconcile.model.plan import Action, Change, Reason

OTHER = TOKEN.replace("0000", "9999")
PLACE = {"variable": "HF_TOKEN", "path": "/etc/x.d/mine.conf", "line": 2, "value": OTHER, "wins": True}


def settled(**place: object) -> tuple[World, FakeHost]:
    """A running server, and a drop-in that names a token."""
    host = FakeHost("h1")
    there = world(wanted(), hosts=[host]).settle()
    host.systemd.token_places["m"] = [{**PLACE, **place}]
    return there, host


def get(host: FakeHost, **variables: str) -> None:
    """Let the process have these variables, as if it had been restarted under the drop-in."""
    root = host.root("m")
    assert root is not None
    root.env = {**root.env, **variables}
    root.started_at = host.kernel.now


def blocked(there: World) -> Change:
    """The one change, which must be blocked for this reason."""
    change = only(there.plan())
    assert (change.action, change.reason) == (Action.BLOCKED, Reason.ENV_SHADOWED)
    return change


def test_a_token_that_wins_blocks_every_start() -> None:
    """The place is named with its line; what runs goes on."""
    there, host = settled()
    get(host, HF_TOKEN=OTHER)
    change = blocked(there)
    assert change.note == "HF_TOKEN in /etc/x.d/mine.conf:2 wins over the env file"
    assert "mine.conf" in change.remedy
    assert "hf_token.shadow" in {field.path for field in change.fields}
    host.kernel.end(host.root("m"), family=True)  # type: ignore[arg-type] # it runs
    blocked(there)


def test_a_token_that_loses_is_drift_with_its_place() -> None:
    """And nothing is done for it."""
    there, _ = settled(wins=False)
    change = only(there.plan())
    assert (change.action, change.reason) == (Action.NOOP, Reason.ENV_SHADOWED)
    assert [(field.path, field.before) for field in change.fields] == [
        ("hf_token.shadow", "HF_TOKEN in /etc/x.d/mine.conf:2")
    ]
    assert "which wins" in change.note


@pytest.mark.parametrize("wins", [True, False])
def test_the_same_token_elsewhere_is_none(wins: bool) -> None:  # noqa: FBT001 - pytest's way
    """It is the one that is wanted."""
    there, _ = settled(value=TOKEN, wins=wins)
    assert only(there.plan()).reason is Reason.IN_SYNC


def test_a_server_that_gets_no_token_gets_none_from_elsewhere() -> None:
    """Not under the old name either."""
    there, host = settled(variable="HUGGING_FACE_HUB_TOKEN")
    there = there.change(lambda server: replace(server, token=None)).settle()
    assert only(there.plan()).reason is Reason.ENV_SHADOWED
    host.systemd.token_places["m"] = [PLACE]
    get(host, HF_TOKEN=OTHER)
    blocked(there)


def test_the_old_name_does_not_win_over_the_right_token() -> None:
    """The Hub's client asks HF_TOKEN first."""
    there, _ = settled(variable="HUGGING_FACE_HUB_TOKEN")
    assert only(there.plan()).action is Action.NOOP


@pytest.mark.parametrize(
    ("variables", "named"), [({"HF_TOKEN": OTHER}, "HF_TOKEN"), ({"VLLM_LOGGING_LEVEL": "DEBUG"}, "VLLM_LOGGING_LEVEL")]
)
def test_what_a_restart_did_not_cure_is_not_restarted_again(variables: dict[str, str], named: str) -> None:
    """The env file is right, the process younger, and yet: something unseen sets it."""
    host = FakeHost("h1")
    there = world(wanted(env={"VLLM_LOGGING_LEVEL": "INFO"}), hosts=[host]).settle()
    get(host, **variables)
    host.root("m").started_at += 60  # type: ignore[union-attr] # it runs
    assert only(there.plan()).action is Action.RESTART, "without a drop-in, whatever it was is gone"
    host.systemd.drop_ins["m"] = ["/etc/x.d/mine.conf"]
    change = blocked(there)
    assert change.note.startswith(f"{named} does not come from its env file")
    assert "systemctl cat vmreconcile-m.service" in change.remedy
    assert only(there.plan(restart=frozenset({change.server}))).action is Action.RESTART


def test_a_process_older_than_its_env_file_is_restarted() -> None:
    """That is a rotation, or an apply that was interrupted in between."""
    host = FakeHost("h1")
    there = world(wanted(), hosts=[host]).settle()
    root = host.root("m")
    assert root is not None
    root.env = {**root.env, "HF_TOKEN": OTHER}
    change = only(there.plan())
    assert (change.action, change.reason) == (Action.RESTART, Reason.TOKEN_CHANGED)

"""Which servers a command line names, and asking for another state of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.worlds import fleet, wanted
from vmreconcile.core.selection import named_servers, with_state
from vmreconcile.errors import UsageError
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.names import ServerId

FLEET = fleet(
    wanted("qwen@h1"),
    wanted("qwen@h2"),
    wanted("qwen/1@h1", port=8002),
    replace(wanted("llama@h1", port=8003), state=DesiredState.STOPPED),
)


def named(*names: str, state: DesiredState | None = None) -> set[str]:
    """The servers named, as text."""
    return {str(server) for server in named_servers(names, FLEET, wanted=state)}


def test_a_name_is_every_server_of_a_model() -> None:
    """On every host, every replica."""
    assert named("qwen") == {"qwen@h1", "qwen@h2", "qwen/1@h1"}


def test_a_name_at_a_host_is_one_server() -> None:
    """Replica 0 has no number."""
    assert named("qwen@h1") == {"qwen@h1"}
    assert named("qwen/1@h1", "llama") == {"qwen/1@h1", "llama@h1"}


def test_naming_twice_is_once() -> None:
    """By both ways."""
    assert named("llama", "llama@h1") == {"llama@h1"}


@pytest.mark.parametrize(("name", "near"), [("qwn", "qwen"), ("qwen@h", "qwen@h2"), ("lama@h1", "llama@h1")])
def test_unknown_names_are_refused_with_the_nearest(name: str, near: str) -> None:
    """Did you mean."""
    with pytest.raises(UsageError, match=f"no server is called '{name}'; did you mean '{near}'"):
        named(name)


def test_a_name_like_no_other_suggests_nothing() -> None:
    """Better none than a wrong one."""
    with pytest.raises(UsageError, match=r"no server is called 'zzz'$"):
        named("zzz")


def test_restart_refuses_what_is_wanted_stopped() -> None:
    """With the way out."""
    with pytest.raises(UsageError, match="llama@h1 is wanted stopped") as caught:
        named("llama@h1", state=DesiredState.RUNNING)
    assert "vmreconcile start llama@h1" in caught.value.remedy
    assert named("qwen", state=DesiredState.RUNNING) == {"qwen@h1", "qwen@h2", "qwen/1@h1"}


def test_with_state_changes_the_named_ones_alone() -> None:
    """And says where that was said."""
    changed = with_state(FLEET, frozenset({ServerId.parse("qwen@h1")}), DesiredState.STOPPED)
    states = {str(server.id): server.state.value for server in changed.servers}
    assert states == {"llama@h1": "stopped", "qwen@h1": "stopped", "qwen/1@h1": "running", "qwen@h2": "running"}
    (server,) = [server for server in changed.servers if str(server.id) == "qwen@h1"]
    assert "command line" in str(server.origins["state"])
    assert [server.id for server in changed.servers] == [server.id for server in FLEET.servers]

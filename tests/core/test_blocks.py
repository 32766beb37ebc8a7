"""What keeps a server from being started, and that it says so with the evidence and the way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Refusal
from tests.lab.worlds import TOKEN, World, only, wanted, world
from vmreconcile.effects.session import AgentError
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Action, Change, Reason


def blocked(there: World) -> Change:
    """The one change, which must be blocked and do nothing."""
    change = only(there.plan())
    assert (change.action, change.stops, change.steps, change.early) == (Action.BLOCKED, (), (), False)
    assert not change.pending
    assert change.remedy
    return change


def moved(there: World, **ports: int) -> World:
    """Ask for other ports."""
    return there.change(lambda server: replace(server, port=ports.get(server.id.model, server.port)))


def actions(there: World, **options: object) -> dict[str, tuple[Action, Reason]]:
    """Action and reason by name."""
    return {change.server.local: (change.action, change.reason) for change in there.plan(**options).changes}


def test_a_stranger_on_the_port_blocks() -> None:
    """The holder is named with its pid and command line."""
    host = FakeHost("h1")
    stranger = host.stranger(8001)
    change = blocked(world(wanted(), hosts=[host]))
    assert change.reason is Reason.PORT_HELD
    assert change.note == f"port 8001 is held by pid {stranger.pid} (not ours: {' '.join(stranger.argv)})"


def test_a_stranger_elsewhere_does_not() -> None:
    """Only the wanted port counts."""
    host = FakeHost("h1")
    host.stranger(9001)
    assert only(world(wanted(), hosts=[host]).plan()).action is Action.START


@pytest.mark.parametrize(
    ("systemd", "runtime", "told"),
    [
        (252, "systemd", ""),
        (249, "systemd", "systemd 249"),
        (252, "process", "no systemd unit"),
        (None, "", "no systemd"),
    ],
)
def test_credentials_need_systemd(systemd: int | None, runtime: str, told: str) -> None:
    """Of a version that names their folder in a unit; a server that gets no token needs none."""
    host = FakeHost("h1", systemd=systemd)
    server = wanted(delivery="credential", runtime=runtime)
    change = only(world(server, hosts=[host]).plan())
    assert (change.action is Action.BLOCKED) == bool(told)
    assert told in change.note
    assert only(world(replace(server, token=None), hosts=[host]).plan()).action is Action.START


def test_credentials_settle_and_come_and_go() -> None:
    """A start with one, nothing to do then; a change of the way is a change of files, not a restart."""
    there = world(wanted(delivery="credential")).settle()
    assert only(there.plan()).reason is Reason.IN_SYNC
    there = there.change(lambda server: replace(server, delivery="environment"))
    change = only(there.plan())
    assert (change.action, change.disruptive) == (Action.RETUNE, False)
    assert only(there.settle().plan()).reason is Reason.IN_SYNC


@pytest.mark.parametrize("before", ["credential", "environment"])
def test_a_switch_that_fails_half_way_takes_no_token_away(before: str) -> None:
    """The unit that still counts finds the token where it was."""
    after = "environment" if before == "credential" else "credential"
    there = world(wanted(delivery=before)).settle().change(lambda server: replace(server, delivery=after))
    (host,) = there.hosts.values()
    paths = [path for path in host.kernel.files if path.endswith((".env", ".token"))]
    place = next(path for path in paths if TOKEN in host.kernel.files[path].content)
    host.failing["write-file"] = Refusal("disk-full", "no space left")
    with pytest.raises(AgentError, match="no space left"):
        there.settle()
    assert TOKEN in host.kernel.files[place].content
    host.failing.clear()
    assert only(there.settle().plan()).reason is Reason.IN_SYNC
    assert [path for path in host.kernel.files if TOKEN in host.kernel.files[path].content] == [
        place.replace(".env", ".token") if before == "environment" else place.replace(".token", ".env")
    ]


def test_a_server_that_serves_is_not_blocked_by_itself() -> None:
    """A retune keeps its own port."""
    there = world(wanted()).settle().change(lambda server: replace(server, model="org/other"))
    assert only(there.plan()).action is Action.RETUNE


def test_a_blocked_retune_leaves_what_runs() -> None:
    """The new port is a stranger's: the server goes on as it is, the wanted change still shows."""
    host = FakeHost("h1")
    there = world(wanted(), hosts=[host]).settle()
    host.stranger(9001)
    change = blocked(moved(there, m=9001))
    assert [field.path for field in change.fields] == ["port"]
    assert not change.disruptive


def test_our_other_server_on_the_port_blocks() -> None:
    """One that stays there is named as ours."""
    there = world(wanted("old@h1")).settle()
    there.want(wanted("new@h1"))
    changes = {change.server.local: change for change in there.plan().changes}
    assert changes["new"].reason is Reason.PORT_HELD
    assert "our server old" in changes["new"].note


def test_a_port_that_is_freed_in_the_same_plan_does_not_block() -> None:
    """By a server that is stopped, removed, pruned, or moves away."""
    first = wanted("old@h1")
    for state in (DesiredState.STOPPED, DesiredState.ABSENT):
        there = world(first).settle().want(replace(first, state=state), wanted("new@h1"))
        assert actions(there)["new"] == (Action.START, Reason.ABSENT)
    there = world(first).settle().want(wanted("new@h1"))
    assert actions(there, prune=True)["new"] == (Action.START, Reason.ABSENT)
    there = world(first).settle().want(replace(first, port=8009), wanted("new@h1"))
    assert actions(there)["new"] == (Action.START, Reason.ABSENT)


def test_a_port_swap_is_no_block() -> None:
    """Both move, both are taken down before either comes up."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002)).settle()
    plan = moved(there, a=8002, b=8001).plan()
    assert [(change.action, change.early) for change in plan.changes] == [(Action.RETUNE, True)] * 2


def test_a_server_that_cannot_leave_keeps_its_port() -> None:
    """A moves to a stranger's port and is blocked, so B cannot have A's, and C not B's."""
    host = FakeHost("h1")
    names = {"a@h1": 8001, "b@h1": 8002, "c@h1": 8003}
    there = world(*(wanted(name, port=port) for name, port in names.items()), hosts=[host]).settle()
    host.stranger(9001)
    plan = moved(there, a=9001, b=8001, c=8002).plan()
    assert [change.reason for change in plan.changes] == [Reason.PORT_HELD] * 3
    assert [change.note.split("(")[1][:12] for change in plan.changes] == [
        "not ours: /h",
        "our server a",
        "our server b",
    ]


def test_a_server_that_is_not_selected_does_not_leave() -> None:
    """`only` narrows what is done, so its port is not freed."""
    first = wanted("old@h1")
    there = world(first).settle().want(replace(first, state=DesiredState.STOPPED), wanted("new@h1"))
    one = frozenset({ServerId.parse("new@h1")})
    assert actions(there, only=one) == {"new": (Action.BLOCKED, Reason.PORT_HELD)}


def test_a_server_that_may_not_be_stopped_does_not_leave() -> None:
    """With `start`, nothing else is done."""
    first = wanted("old@h1")
    there = world(first).settle().want(replace(first, state=DesiredState.STOPPED), wanted("new@h1"))
    found = actions(there, actions=frozenset({Action.START}))
    assert found["new"] == (Action.BLOCKED, Reason.PORT_HELD)
    assert found["old"][0] is Action.NOOP


def test_start_is_not_refused_for_a_retune_that_it_would_not_do() -> None:
    """The server runs; that it differs and could not be retuned is apply's business."""
    host = FakeHost("h1")
    there = world(wanted(), hosts=[host]).settle()
    host.stranger(9001)
    change = only(moved(there, m=9001).plan(actions=frozenset({Action.START})))
    assert (change.action, change.reason, change.disruptive) == (Action.NOOP, Reason.PORT_CHANGED, False)


def test_an_argument_that_the_hosts_vllm_lacks_blocks() -> None:
    """Named with the version there and the place where it was asked for."""
    host = FakeHost("h1", installed={"": ("/usr/local/bin/vllm", "0.10.2")})
    there = world(wanted(args={"max_model_len": 5, "shutdown_timeout": 3}), hosts=[host])
    change = blocked(there)
    assert change.reason is Reason.ARGUMENT_UNKNOWN
    assert change.note == "vLLM 0.10.2 on this host has no argument shutdown_timeout"
    assert "models.d/m.yaml:9" in change.remedy


@pytest.mark.parametrize("version", ["0.10.3", "0.99.0", "1.0.0rc1", "dev", None])
def test_a_version_without_a_catalogue_decides_for_itself(version: str | None) -> None:
    """What we do not know we do not refuse."""
    host = FakeHost("h1")
    host.kernel.installed[""] = ("/usr/local/bin/vllm", version)  # type: ignore[assignment]  # an agent may not know it
    there = world(wanted(args={"made_up": 3}), hosts=[host])
    assert only(there.plan()).action is Action.START


def test_no_executable_blocks() -> None:
    """It says which one was asked for."""
    change = blocked(world(wanted(), hosts=[FakeHost("h1", installed={})]))
    assert (change.reason, change.note) == (Reason.NO_EXECUTABLE, "vllm on PATH: no such file")
    there = world(wanted(executable="/opt/v/bin/vllm"))
    assert blocked(there).note == "/opt/v/bin/vllm: no such file"


def test_folders_that_cannot_be_written_block() -> None:
    """With what the host said, before anything else is looked at."""
    host = FakeHost("h1", installed={})
    host.folder_problem = "/var/lib/vmreconcile: others may write there (mode 0777)"
    change = blocked(world(wanted(), hosts=[host]))
    assert (change.reason, change.note) == (Reason.FOLDER_UNUSABLE, host.folder_problem)
    assert "/var/lib/vmreconcile" in change.remedy


@pytest.mark.parametrize(
    ("version", "note"), [(None, "systemd does not run this host"), (239, "systemd 239 is older than 240")]
)
def test_systemd_that_is_asked_for_and_missing_blocks(version: int | None, note: str) -> None:
    """The way out is the other runtime; where none was asked for, that one is taken."""
    change = blocked(world(wanted(runtime="systemd", port=8001), systemd=version))
    assert (change.reason, change.note) == (Reason.NO_RUNTIME, f"runtime systemd: {note}")
    assert "vllm_runtime: process" in change.remedy
    assert only(world(wanted(), systemd=version).plan()).action is Action.START


def test_what_systemd_cannot_hold_blocks() -> None:
    """A noncharacter would make systemd refuse the unit, and then show none at all; a plain process takes it."""
    server = wanted(args={"served_model_name": ["a\ufdd0"]})
    change = blocked(world(server))
    assert (change.reason, change.note) == (
        Reason.NO_RUNTIME,
        "runtime systemd: an argument holds U+FDD0, which is no character",
    )
    assert only(world(replace(server, runtime="process")).plan()).action is Action.START


def test_stops_and_removals_are_never_blocked() -> None:
    """What goes away needs neither a port nor an executable."""
    there = world(wanted()).settle()
    there.hosts["h1"].kernel.installed.clear()
    for state, action in ((DesiredState.STOPPED, Action.STOP), (DesiredState.ABSENT, Action.REMOVE)):
        assert only(there.change(lambda server, to=state: replace(server, state=to)).plan()).action is action

"""From wanted servers and observed hosts to a plan: actions, reasons, steps and what is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.worlds import TOKEN, World, known, only, wanted, world
from vmreconcile.core.gates import gate_of, probe_address
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.model.desired import DesiredFleet, DesiredState, Health
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, Phase, Unreachable
from vmreconcile.model.plan import Action, Gate, Plan, Reason
from vmreconcile.model.steps import EndOrphans, RemoveServer, Spawn, Step, StopProcess, StopUnit, Systemctl, WriteEnv

BOTH = pytest.mark.parametrize("systemd", [252, None])


def names(steps: tuple[Step, ...]) -> list[str]:
    """What the steps are, systemctl by its verb."""
    return [step.verb if isinstance(step, Systemctl) else step.name for step in steps]


def to(there: World, **fields: object) -> World:
    """Every server with other fields."""
    return there.change(lambda server: replace(server, **fields))  # type: ignore[arg-type]  # fields of DesiredServer


def test_a_start_under_systemd() -> None:
    """Record, env file, unit, reload, enable, start; nothing to take down."""
    change = only(world(wanted()).plan())
    assert (change.action, change.reason, change.phase) == (Action.START, Reason.ABSENT, Phase.ABSENT)
    assert names(change.steps) == [
        *("write-record", "write-env", "write-file", "daemon-reload", "enable", "remove-file"),
        *("reset-failed", "start"),
    ]
    assert change.stops == ()


def test_a_start_as_a_process() -> None:
    """Env file, then the process, which writes its own record."""
    assert names(only(world(wanted(), systemd=None).plan()).steps) == ["write-env", "remove-file", "spawn"]


def test_a_user_without_lingering_gets_it() -> None:
    """Else the units would end with the login."""
    change = only(world(wanted(), uid=1000).plan())
    assert "enable-linger" in names(change.steps)
    assert {step.scope for step in change.steps if isinstance(step, Systemctl)} == {"user"}


@BOTH
def test_in_sync_has_no_steps(systemd: int | None) -> None:
    """Nothing pending, nothing to carry out."""
    plan = world(wanted(), systemd=systemd).settle().plan()
    assert (only(plan).action, only(plan).reason, only(plan).phase) == (Action.NOOP, Reason.IN_SYNC, Phase.READY)
    assert plan.pending == ()


@BOTH
def test_a_retune_writes_then_takes_down_then_starts(systemd: int | None) -> None:
    """What cannot be written takes nothing down; stops come apart from the steps that bring up."""
    change = only(to(world(wanted(), systemd=systemd).settle(), model="org/other").plan())
    assert (change.action, change.reason, change.disruptive, change.early) == (
        Action.RETUNE,
        Reason.MODEL_CHANGED,
        True,
        False,
    )
    files = ["write-record", "write-env", "write-file", "daemon-reload", "enable"] if systemd else ["write-env"]
    assert names(change.stops) == [
        *files,
        "remove-file",
        *(["stop-unit", "reset-failed"] if systemd else ["stop-process"]),
    ]
    assert names(change.steps) == (["reset-failed", "start"] if systemd else ["spawn"])


@BOTH
def test_a_file_mended_in_place_stops_nothing(systemd: int | None) -> None:
    """The env file is written anew, the process goes on."""
    there = world(wanted(), systemd=systemd).settle()
    there.hosts["h1"].kernel.files["/etc/vmreconcile/env/m.env"].mode = 0o640
    change = only(there.plan())
    assert (change.action, change.disruptive, change.stops) == (Action.RETUNE, False, ())
    assert not any(
        isinstance(step, Spawn) or (isinstance(step, Systemctl) and step.verb == "start") for step in change.steps
    )


def test_orphans_are_ended_before_the_start() -> None:
    """After `kill -9` of a root: exactly its own workers, by pid and start time."""
    there = world(wanted(), systemd=None).settle()
    host = there.hosts["h1"]
    host.kill_root("m")
    worker = host.orphans("m")[0]
    plan = there.plan()
    change = only(plan)
    assert (change.action, change.reason, change.phase) == (Action.START, Reason.ROOT_DIED, Phase.CRASHED)
    assert change.stops[0] == EndOrphans(slug="m", processes=((worker.pid, worker.start_ticks),), grace_s=15.0)
    assert [(orphan.pid, orphan.server) for orphan in plan.orphans] == [(worker.pid, "m")]


@pytest.mark.parametrize(("before", "after"), [("systemd", "process"), ("process", "systemd")])
def test_a_change_of_runtime_leaves_nothing_behind(before: str, after: str) -> None:
    """The former one is stopped and its unit removed; the env file stays, for it may hold a token only the host has."""
    there = to(world(wanted(runtime=before)).settle(), runtime=after)
    change = only(there.plan())
    assert (change.action, change.reason) == (Action.RESTART, Reason.RUNTIME_CHANGED)
    assert not any(isinstance(step, RemoveServer) for step in change.steps)
    there.tokens = {}
    there.settle()
    root = there.hosts["h1"].root("m")
    assert root is not None
    assert root.env["HF_TOKEN"] == TOKEN
    assert bool(root.unit) == (after == "systemd")
    assert (there.hosts["h1"].systemd.text("vmreconcile-m.service") is not None) == (after == "systemd")
    assert not there.plan().pending


@BOTH
def test_stopped_keeps_its_files_and_absent_leaves_none(systemd: int | None) -> None:
    """`stopped` can be started again as it was; `absent` removes every trace."""
    there = to(world(wanted(), systemd=systemd).settle(), state=DesiredState.STOPPED)
    change = only(there.plan())
    assert (change.action, change.reason, change.gate) == (Action.STOP, Reason.WANTED_STOPPED, None)
    there.settle()
    assert only(there.plan()).phase is Phase.STOPPED
    assert there.hosts["h1"].kernel.files
    to(there, state=DesiredState.ABSENT).settle()
    host = there.hosts["h1"]
    assert (host.kernel.files, host.kernel.processes) == ({}, {})
    assert only(there.plan()).phase is Phase.ABSENT


@BOTH
def test_unclaimed_servers_are_shown_and_removed_only_with_prune(systemd: int | None) -> None:
    """A model file that disappeared."""
    there = world(wanted(), systemd=systemd).settle().want()
    change = only(there.plan())
    assert (change.action, change.reason, change.phase) == (Action.NOOP, Reason.UNCLAIMED, Phase.READY)
    gone = only(there.plan(prune=True))
    assert (gone.action, gone.reason, gone.disruptive) == (Action.REMOVE, Reason.UNCLAIMED, True)


def test_a_replica_less_leaves_an_unclaimed_one() -> None:
    """The second replica goes by its own name."""
    there = world(wanted("m@h1"), wanted("m/1@h1", port=8002)).settle().want(wanted("m@h1"))
    changes = {str(change.server): change.reason for change in there.plan().changes}
    assert changes == {"m@h1": Reason.IN_SYNC, "m/1@h1": Reason.UNCLAIMED}


def test_one_machine_under_two_names_is_never_pruned() -> None:
    """Each name would call the other's servers unclaimed."""
    there = world(wanted("m@h1")).settle()
    there.hosts["h2"] = there.hosts["h1"]
    there.hosts["h1"].hostname = "the-same"
    there.want(wanted("m@h1"))
    plan = there.plan(prune=True)
    assert {change.action for change in plan.changes} == {Action.NOOP}
    assert "one-machine-two-names" in {diagnostic.code for diagnostic in plan.diagnostics}


def test_only_narrows_what_is_done_and_shown() -> None:
    """Wanted, unclaimed and unreachable servers alike."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002), wanted("a@h2")).settle()
    there.want(wanted("b@h1", port=8002, model="org/other"), wanted("a@h2"))
    there.hosts["h2"].unreachable = "no route"
    plan = there.plan(prune=True, only=frozenset({ServerId.parse("b@h1")}))
    assert [str(change.server) for change in plan.changes] == ["b@h1"]
    assert plan.unreachable_servers == ()


@BOTH
def test_restart_is_done_even_in_sync(systemd: int | None) -> None:
    """And where something differs, for that reason."""
    there = world(wanted(), systemd=systemd).settle()
    server = frozenset({ServerId.parse("m@h1")})
    change = only(there.plan(restart=server))
    assert (change.action, change.reason, change.disruptive) == (Action.RESTART, Reason.REQUESTED, True)
    assert change.stops
    differing = only(to(there, model="org/other").plan(restart=server))
    assert differing.reason is Reason.MODEL_CHANGED


def test_a_restart_of_what_does_not_run_is_a_start() -> None:
    """It needs no other reason."""
    assert only(world(wanted()).plan(restart=frozenset({ServerId.parse("m@h1")}))).reason is Reason.ABSENT


def test_actions_that_were_not_asked_for_are_shown_only() -> None:
    """`start` leaves a running server that differs to apply."""
    there = to(world(wanted()).settle(), model="org/other")
    change = only(there.plan(actions=frozenset({Action.START})))
    assert (change.action, change.reason, change.stops, change.steps) == (Action.NOOP, Reason.MODEL_CHANGED, (), ())
    assert change.note == "differs: vmreconcile plan"


def test_unreachable_hosts_are_data() -> None:
    """Their servers are named, nothing about them is assumed."""
    there = world(wanted("m@h1"), wanted("m@h2")).settle()
    there.hosts["h2"].unreachable = "connection refused (10.0.0.2:22)"
    plan = there.plan()
    assert [str(server) for server in plan.unreachable_servers] == ["m@h2"]
    assert plan.unreachable == (Unreachable(host="h2", reason="connection refused (10.0.0.2:22)"),)
    assert [str(change.server) for change in plan.changes] == ["m@h1"]


def test_strangers_are_shown_and_no_change() -> None:
    """By pid and port."""
    there = world(wanted())
    stranger = there.hosts["h1"].stranger(9000)
    plan = there.plan()
    assert [(each.host, each.pid, each.port) for each in plan.strangers] == [("h1", stranger.pid, 9000)]
    assert [str(change.server) for change in plan.changes] == ["m@h1"]


def test_a_plan_is_sorted_and_by_host() -> None:
    """Whatever order the files had."""
    there = world(wanted("b@h2"), wanted("a@h2", port=8002), wanted("z@h1"))
    plan = there.plan()
    assert [str(change.server) for change in plan.changes] == ["z@h1", "a@h2", "b@h2"]
    assert [str(change.server) for change in plan.on("h2")] == ["a@h2", "b@h2"]


def test_steps_hold_no_token() -> None:
    """Only the name under which it joins the request."""
    there = world(wanted(env={"VLLM_API_KEY": "a-secret-word"}))
    change = only(there.plan())
    assert TOKEN not in repr(change)
    assert "a-secret-word" not in repr(change)
    (env,) = [step for step in change.steps if isinstance(step, WriteEnv)]
    assert [name for name, _ in env.entries] == ["HF_TOKEN", "VLLM_API_KEY", "VMRECONCILE_SERVER"]


@BOTH
def test_digest_follows_what_is_there(systemd: int | None) -> None:
    """Equal for an equal world; the fields that moved are named by their difference."""
    there = world(wanted(), systemd=systemd).settle()
    one, other = only(there.plan()).digest, only(there.plan()).digest
    assert one == other
    there.hosts["h1"].kernel.files["/etc/vmreconcile/env/m.env"].mtime += 1
    assert {name for name, value in only(there.plan()).digest.items() if value != one[name]} == {"env_file.mtime"}
    there.hosts["h1"].reboot()
    moved = {name for name, value in only(there.plan()).digest.items() if value != one[name]}
    assert {"boot_id", "process.pid"} <= moved


def test_an_argv_that_is_no_text_has_a_digest() -> None:
    """A host may show lone surrogates."""
    there = world(wanted()).settle()
    root = there.hosts["h1"].root("m")
    assert root is not None
    root.argv = (*root.argv, "\udcff\ud800")
    assert only(there.plan()).digest["process.argv"]


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::", "localhost"])
def test_every_address_is_asked_over_loopback(host: str | None) -> None:
    """What listens everywhere listens there."""
    assert probe_address(host) == "127.0.0.1"
    assert probe_address("10.1.2.3") == "10.1.2.3"


def test_gate_is_what_the_model_says() -> None:
    """Port, address, time, whether a completion counts, the names that it must show, how long it must stay up."""
    server = wanted(port=8005, health=Health(startup_timeout=7.0, completion=False), args={"host": "10.0.0.5"})
    gate = Gate(address="10.0.0.5", port=8005, timeout=7.0, completion=False, models=("org/model",), soak=3.0)
    assert gate_of(server) == gate


def test_an_empty_world_is_an_empty_plan() -> None:
    """No servers, no hosts."""
    assert make_plan(DesiredFleet(), FleetView(), Options(known=known())) == Plan()


def test_stops_name_just_what_was_seen() -> None:
    """Pid with start time and boot for a process, the unit's name for a unit."""
    for systemd in (252, None):
        there = to(world(wanted(), systemd=systemd).settle(), state=DesiredState.ABSENT)
        host = there.hosts["h1"]
        root = host.root("m")
        assert root is not None
        stop = next(step for step in only(there.plan()).stops if isinstance(step, StopProcess | StopUnit))
        match stop:
            case StopProcess():
                assert (stop.pid, stop.start_ticks, stop.boot_id) == (root.pid, root.start_ticks, host.kernel.boot_id)
            case StopUnit():
                assert stop.unit == "vmreconcile-m.service"

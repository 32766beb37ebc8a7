"""Carrying out a plan on fake hosts: what the world is afterwards, and what is reported."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace

import pytest

from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_kernel import Behaviour, Refusal
from tests.lab.worlds import World, only, wanted, world
from vmreconcile.core.planfile import confirm, parse, render
from vmreconcile.flows.execute import execute
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.outcome import Failure, Outcome, Status
from vmreconcile.model.plan import Action, Plan, Reason
from vmreconcile.model.steps import SecretRef, WriteEnv


def failure(outcome: Outcome, server: str = "m@h1") -> Failure:
    """Why a server failed."""
    (found,) = [result.failure for result in outcome.results if str(result.server) == server]
    assert found is not None
    return found


def moved(there: World, **ports: int) -> World:
    """Ask for other ports."""
    return there.change(lambda server: replace(server, port=ports.get(server.id.model, server.port)))


def in_sync(there: World) -> bool:
    """Whether nothing is left to do."""
    return not there.plan().pending


@pytest.mark.parametrize("systemd", [252, None])
def test_apply_starts_and_the_second_time_does_nothing(systemd: int | None) -> None:
    """Two servers on each of two hosts; then no step is sent and no process touched."""
    servers = [
        wanted(f"{name}@{host}", port=port) for host in ("h1", "h2") for name, port in (("a", 8001), ("b", 8002))
    ]
    there = world(*servers, systemd=systemd)
    assert set(statuses(apply(there)).values()) == {"changed"}
    pids, done = there.pids(), there.steps_done
    assert len(pids) == 4
    assert set(statuses(apply(there)).values()) == {"ok"}
    assert (there.pids(), there.steps_done) == (pids, done)


def test_a_port_swap_converges_in_one_apply() -> None:
    """Both are taken down first, so that each finds its port free."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    apply(there)
    assert statuses(apply(moved(there, a=8002, b=8001))) == {"a@h1": "changed", "b@h1": "changed"}
    assert {root.port for slug in "ab" if (root := there.hosts["h1"].root(slug))} == {8001, 8002}
    assert in_sync(there)


def test_a_ring_of_ports_with_a_newcomer_converges_in_one_apply() -> None:
    """Ring a → b → c → a, while d takes the port of one that is removed."""
    there = world(*(wanted(f"{name}@h1", port=port) for name, port in (("a", 1), ("b", 2), ("c", 3), ("x", 4))))
    apply(there)
    there.want(*(wanted(f"{name}@h1", port=port) for name, port in (("a", 2), ("b", 3), ("c", 1), ("d", 4))))
    assert set(statuses(apply(there, prune=True)).values()) == {"changed"}
    assert in_sync(there)


def test_what_frees_a_port_goes_first() -> None:
    """Server z is stopped before a is started on its port."""
    there = world(wanted("z@h1"))
    apply(there)
    there.want(replace(wanted("z@h1"), state=DesiredState.STOPPED), wanted("a@h1"))
    assert statuses(apply(there)) == {"a@h1": "changed", "z@h1": "changed"}
    assert in_sync(there)


def test_a_failed_step_fails_its_server_alone() -> None:
    """The error names host, what failed, file and way out; the other server on that host is started."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002, runtime="process"))
    there.hosts["h1"].failing["write-file"] = Refusal("disk-full", "No space left on device", "/etc/systemd/x")
    outcome = apply(there)
    assert statuses(outcome) == {"a@h1": "failed", "b@h1": "changed"}
    found = failure(outcome, "a@h1")
    assert (found.kind, found.summary) == ("disk_full", "h1: No space left on device (/etc/systemd/x)")
    assert "run apply again" in found.remedy
    there.hosts["h1"].failing.clear()
    assert statuses(apply(there)) == {"a@h1": "changed", "b@h1": "ok"}


def test_a_failed_early_stop_fails_its_server_alone() -> None:
    """One of two that swap ports cannot be stopped: that one is failed, the others are reported as ever."""
    there = world(wanted("a@h1", port=8001, runtime="process"), wanted("b@h1", port=8002), wanted("c@h1", port=8003))
    apply(there)
    there.hosts["h1"].failing["stop-process"] = Refusal("stop-timeout", "pid 7 outlives KILL")
    found = statuses(outcome := apply(moved(there, a=8002, b=8009, c=8003)))
    assert found == {"a@h1": "failed", "b@h1": "changed", "c@h1": "ok"}
    assert failure(outcome, "a@h1").kind == "stop_timeout"


def test_a_stale_plan_touches_nothing_even_where_a_stop_would_come_early() -> None:
    """A change that was refused is not begun either."""
    there = world(wanted("a@h1", port=8001))
    apply(there)
    moved(there, a=8005)
    text = render(there.plan(), there.desired, version="0", inventory="i")
    there.hosts["h1"].systemd.call("restart", "vmreconcile-a.service")
    pids = there.pids()
    stale = confirm(parse(text, "p.json"), there.plan(), there.desired)
    assert only(stale).reason is Reason.PLAN_STALE
    outcome = apply(there, stale)
    assert statuses(outcome) == {"a@h1": "skipped"}
    assert there.pids() == pids


def test_a_plan_file_is_carried_out_to_the_letter() -> None:
    """Render, parse, confirm, execute: the same as applying at once."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    text = render(there.plan(), there.desired, version="0", inventory="i")
    plan = confirm(parse(text, "p.json"), there.plan(), there.desired)
    assert statuses(apply(there, plan)) == {"a@h1": "changed", "b@h1": "changed"}
    assert in_sync(there)


def test_a_plan_file_gets_no_secret_of_another_server() -> None:
    """Neither a token that the server is not to have, nor a variable that its files do not give it."""
    there = world(wanted("a@h1", token=None, port=8001), wanted("b@h2", env={"MY_KEY": "another-secret"}, port=8002))
    (change, _) = there.plan().pending
    for stolen in ("default", "env.MY_KEY", "env.NOBODYS"):
        entries = (("HF_TOKEN", SecretRef(name=stolen)),)
        steps = tuple(replace(step, entries=entries) if isinstance(step, WriteEnv) else step for step in change.steps)
        plan = replace(there.plan(), changes=(replace(change, steps=steps),))
        (result,) = apply(there, plan).results
        assert result.failure is not None
        assert (result.status, result.failure.kind) == (Status.FAILED, "no_token")
        assert stolen in result.failure.summary
    assert not there.pids()


def test_a_plan_file_whose_token_is_gone_fails_with_the_way_out() -> None:
    """The plan names a token that this controller cannot find any more."""
    there = world(wanted())
    text = render(there.plan(), there.desired, version="0", inventory="i")
    there.tokens = {}
    outcome = apply(there, confirm(parse(text, "p.json"), there.plan(), there.desired))
    found = failure(outcome)
    assert statuses(outcome) == {"m@h1": "failed"}
    assert found.kind == "no_token"
    assert "default" in found.summary
    assert "hf auth login" in found.remedy
    assert not there.hosts["h1"].done


def test_blocked_servers_are_skipped_with_their_reason() -> None:
    """Exit code and report tell that not all is done."""
    there = world(wanted())
    there.hosts["h1"].stranger(8001)
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "skipped"}
    assert failure(outcome).kind == "port_held"
    assert "port 8001" in failure(outcome).summary


def test_an_unreachable_host_leaves_the_others_done() -> None:
    """Its servers are reported so, with the host's reason."""
    there = world(wanted("m@h1"), wanted("m@h2"))
    there.hosts["h1"].unreachable = "connection refused (10.0.0.1:22)"
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "unreachable", "m@h2": "changed"}
    assert [(host.host, host.reason) for host in outcome.unreachable] == [("h1", "connection refused (10.0.0.1:22)")]


def test_a_host_that_is_lost_half_way_keeps_what_was_done() -> None:
    """The first server is done, the second one is unreachable; the next run goes on."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    plan = there.plan()
    there.hosts["h1"].lost_after = 5
    outcome = apply(there, plan)
    assert statuses(outcome) == {"a@h1": "changed", "b@h1": "unreachable"}
    assert [host.reason for host in outcome.unreachable] == ["the connection was lost"]
    there.hosts["h1"].lost_after = None
    assert statuses(apply(there)) == {"a@h1": "ok", "b@h1": "changed"}


@pytest.mark.parametrize("systemd", [252, None])
def test_a_server_that_is_starting_is_waited_for(systemd: int | None) -> None:
    """A noop that is not ready yet is not called ok before it is."""
    there = world(wanted(), systemd=systemd)
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=8)
    there.settle()
    assert only(there.plan()).reason is Reason.STILL_STARTING
    witness = Witness()
    outcome = execute(there.plan(), run_of(there, witness))
    assert statuses(outcome) == {"m@h1": "ok"}
    assert witness.waited[0] == ("m@h1", "not listening on port 8001")
    assert witness.begun == []


def test_reporter_hears_begin_and_end_of_what_changes() -> None:
    """In the order of a host; a server in sync only ends."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    apply(there)
    there.hosts["h1"].systemd.call("stop", "vmreconcile-b.service")
    witness = Witness()
    execute(there.plan(), run_of(there, witness))
    assert witness.begun == ["b@h1"]
    assert {str(result.server): result.status for result in witness.ended} == {
        "a@h1": Status.OK,
        "b@h1": Status.CHANGED,
    }


def test_a_server_that_will_not_go_is_failed() -> None:
    """A removal is done only when the host was read again."""
    there = world(wanted())
    apply(there)
    there.change(lambda server: replace(server, state=DesiredState.ABSENT))
    plan = there.plan()
    there.hosts["h1"].kernel.remove = lambda path: path.endswith(".service")  # type: ignore[method-assign]  # a broken disk
    outcome = apply(there, plan)
    assert failure(outcome).kind == "still_there"


@pytest.mark.parametrize("hears", ["main", "worker"])
def test_ctrl_c_ends_what_runs_and_begins_nothing_more(hears: str) -> None:
    """The first server is done, the second is skipped; running apply again goes on.

    A signal that another thread takes, or that comes just before the main one waits, does not wake the main one.
    """
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    witness = Witness()
    main = threading.main_thread().ident
    assert main is not None
    heard = threading.Event()

    def press(change: object) -> None:
        del change
        signal.pthread_kill(main if hears == "main" else threading.get_ident(), signal.SIGINT)
        assert heard.wait(5)

    witness.on_begin = press
    tell = witness.interrupted
    witness.interrupted = lambda: (tell(), heard.set())  # type: ignore[method-assign,assignment,return-value]
    outcome = execute(there.plan(), run_of(there, witness))
    assert outcome.interrupted
    assert witness.interruptions == 1
    assert statuses(outcome)["b@h1"] == "skipped"
    assert failure(outcome, "b@h1").kind == "interrupted"
    there.live(None)
    assert set(statuses(apply(there)).values()) <= {"ok", "changed"}
    assert in_sync(there)


def test_ctrl_c_ends_a_wait() -> None:
    """A server that takes long is left as it is, and shows as still starting."""
    there = world(wanted())
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=1e9)
    witness = Witness()
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    outcome = execute(there.plan(), run)
    assert (statuses(outcome), outcome.interrupted) == ({"m@h1": "skipped"}, True)
    assert only(there.plan()).reason is Reason.STILL_STARTING


def test_an_empty_plan_is_an_empty_outcome() -> None:
    """Nothing wanted, nothing there."""
    outcome = execute(Plan(), run_of(world()))
    assert outcome == Outcome()


def test_hosts_go_side_by_side_and_servers_of_a_host_do_not() -> None:
    """Four hosts are at work at once; on each, one server after the other."""
    servers = [wanted(f"{name}@h{n}", port=port) for n in range(4) for name, port in (("a", 1), ("b", 2))]
    there = world(*servers)
    barrier = threading.Barrier(4, timeout=10)
    witness = Witness()

    def meet(change: object) -> None:
        del change
        barrier.wait()

    witness.on_begin = meet
    outcome = execute(there.plan(), run_of(there, witness))
    assert set(statuses(outcome).values()) == {"changed"}
    assert [name[0] for name in witness.begun[:4]] == ["a"] * 4


def test_actions_are_the_plans() -> None:
    """Each result carries what was planned for it."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    apply(there)
    there.change(lambda server: replace(server, state=DesiredState.STOPPED) if server.id.model == "a" else server)
    outcome = apply(there)
    assert {str(result.server): result.action for result in outcome.results} == {
        "a@h1": Action.STOP,
        "b@h1": Action.NOOP,
    }

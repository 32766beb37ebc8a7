"""Where rollouts meet drains, going back, locks and Ctrl-C: who is down, who is left down, and what is said of it."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.flows.test_going_back import dies_with
from tests.flows.test_locking import held
from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour, Refusal
from tests.lab.worlds import World, wanted, world
from vmreconcile.core.planfile import confirm, parse, render
from vmreconcile.flows.execute import execute
from vmreconcile.model.desired import DesiredServer, Health, Hooks, Rollout
from vmreconcile.model.outcome import Failure, Outcome
from vmreconcile.model.plan import Change

QUICK = Health(startup_timeout=60.0, soak=0.0)


def failure(outcome: Outcome, server: str) -> Failure:
    """Why a server failed."""
    (found,) = [result.failure for result in outcome.results if str(result.server) == server]
    assert found is not None
    return found


def model(count: int, length: int = 4096, **fields: Any) -> list[DesiredServer]:  # noqa: ANN401 - a server's
    """A model on so many hosts."""
    return [wanted(f"m@h{at}", args={"max_model_len": length}, health=QUICK, **fields) for at in range(1, count + 1)]


def ready(count: int, **fields: Any) -> World:  # noqa: ANN401 - a server's
    """Its servers, all ready."""
    there = world(*model(count, **fields))
    assert set(statuses(apply(there)).values()) == {"changed"}
    return there


def serving(there: World) -> set[str]:
    """Which servers run and are healthy."""
    return {
        f"{slug}@{name}"
        for name, host in there.hosts.items()
        for slug in host.slugs()
        if (root := host.root(slug)) is not None and host.kernel.health(root) == 200
    }


def test_a_retune_is_seen_through_after_the_first_interrupt() -> None:
    """It was taken down, so it is proven, and put back into the load balancer."""
    there = ready(1)
    there.want(*model(1, 8192))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=5.0)
    witness = Witness()
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    outcome = execute(there.plan(), run)
    assert (statuses(outcome), outcome.interrupted) == ({"m@h1": "changed"}, True)


def test_a_retune_that_dies_after_the_first_interrupt_goes_back() -> None:
    """Nobody is left down by it."""
    there = ready(1)
    there.want(*model(1, 8192))
    dies_with(there.hosts["h1"], "8192", behaviour=Behaviour(ready_after=1e9))
    witness = Witness()
    run = run_of(there, witness)
    seen = []

    def wait() -> None:
        run.stopping.set()
        seen.append(1)
        if len(seen) == 3:
            root = there.hosts["h1"].root("m")
            assert root is not None
            there.hosts["h1"].systemd.ended(there.hosts["h1"].systemd.unit(root.unit), root, 1)

    witness.on_wait = wait
    outcome = execute(there.plan(), run)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert serving(there) == {"m@h1"}


def swapped() -> World:
    """Two servers that are to swap their ports, one with a hook."""
    there = world(wanted("a@h1", port=8001, health=QUICK), wanted("b@h1", port=8002, health=QUICK))
    apply(there)
    return there


def test_a_swap_that_was_begun_is_seen_through_after_the_first_interrupt() -> None:
    """One is stopped already as it comes: the other follows, and both come up on their new ports."""
    there = swapped()
    hooks = Hooks(before_stop="exit 0", after_ready="exit 0")
    there.want(wanted("a@h1", port=8002, health=QUICK), wanted("b@h1", port=8001, hooks=hooks, health=QUICK))
    witness = Witness()
    run = run_of(there, witness)
    plan = there.plan()
    witness.on_wait = run.stopping.set
    outcome = execute(plan, run)
    assert outcome.interrupted
    assert statuses(outcome) == {"a@h1": "changed", "b@h1": "changed"}
    assert serving(there) == {"a@h1", "b@h1"}


def test_a_swap_of_which_one_cannot_be_taken_down_leaves_both_serving() -> None:
    """Its hook failed: the other is back on its own port."""
    there = swapped()
    hooks = Hooks(before_stop="exit 3")
    there.want(wanted("a@h1", port=8002, health=QUICK), wanted("b@h1", port=8001, hooks=hooks, health=QUICK))
    outcome = apply(there)
    assert statuses(outcome)["b@h1"] == "failed"
    assert serving(there) == {"a@h1", "b@h1"}


@pytest.mark.parametrize("runtime", ["systemd", "process"])
def test_an_early_stop_that_fails_half_way_leaves_nobody_down(runtime: str) -> None:
    """It went down, and then its steps failed: it comes back."""
    there = world(wanted("a@h1", port=8001, health=QUICK, runtime=runtime), wanted("b@h1", port=8002, health=QUICK))
    apply(there)
    there.want(wanted("a@h1", port=8002, health=QUICK, runtime=runtime), wanted("b@h1", port=8001, health=QUICK))
    host = there.hosts["h1"]
    steps = host.steps
    failed = []

    def failing(request: Any, progress: Any) -> Any:  # noqa: ANN401 - passed on
        if request["slug"] == "a" and not failed and any("stop" in step["step"] for step in request["steps"]):
            failed.append(1)
            steps(request, progress)
            raise Refusal("stop-timeout", "pid 7 outlives KILL")
        return steps(request, progress)

    host.steps = failing
    apply(there)
    assert failed
    assert serving(there) == {"a@h1", "b@h1"}


def lost_at(host: FakeHost, do: str, at: int = 1) -> None:
    """Lose a host for good at a request."""
    answer = host.answer
    count = []

    def losing(payload: Any, *more: Any) -> Any:  # noqa: ANN401 - passed on
        if payload["do"] == do:
            count.append(1)
            if len(count) == at:
                host.unreachable = "no route to host"
        return answer(payload, *more)

    host.answer = losing


@pytest.mark.parametrize("canary", [0, 1])
def test_a_host_that_is_lost_in_a_wave_holds_nobody_up(canary: int) -> None:
    """Two of four may be down: one is lost, the others go on, one at a time; a lost canary is followed by another."""
    rollout = Rollout(max_unavailable=2, canary=canary)
    there = ready(4, rollout=rollout)
    there.want(*model(4, 8192, rollout=rollout))
    lost_at(there.hosts["h1"], "steps")
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "unreachable", "m@h2": "changed", "m@h3": "changed", "m@h4": "changed"}


def test_a_plan_file_counts_who_is_down_now() -> None:
    """One crashed since it was made: it takes up the budget, though the file knows it as ready."""
    there = ready(3)
    there.want(*model(3, 8192))
    text = render(there.plan(), there.desired, version="0", inventory="i")
    root = there.hosts["h2"].root("m")
    assert root is not None
    there.hosts["h2"].systemd.ended(there.hosts["h2"].systemd.unit(root.unit), root, 2)
    outcome = apply(there, confirm(parse(text, "p.json"), there.plan(), there.desired))
    assert statuses(outcome) == {"m@h1": "skipped", "m@h2": "skipped", "m@h3": "skipped"}
    assert serving(there) == {"m@h1", "m@h3"}
    assert failure(outcome, "m@h1").kind == "max_unavailable"


def test_a_host_lost_while_going_back_is_a_failure() -> None:
    """The settings are bad: that is told, and stops the rollout."""
    rollout = Rollout(max_unavailable=2)
    there = ready(3, rollout=rollout)
    there.want(*model(3, 8192, rollout=rollout))
    for host in there.hosts.values():
        dies_with(host, "8192")
    lost_at(there.hosts["h1"], "revisions", 2)
    outcome = apply(there)
    assert statuses(outcome)["m@h1"] == "failed"
    assert statuses(outcome)["m@h3"] == "skipped"
    assert "No available memory" in failure(outcome, "m@h1").evidence


def test_a_first_start_that_is_too_late_is_left_stopped() -> None:
    """It never was good."""
    there = world(wanted("m@h1", health=Health(startup_timeout=0.01, soak=0.0)))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=1e9)
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "failed"}
    assert there.pids() == {}


def test_a_bug_in_one_server_lets_the_others_end() -> None:
    """What is at work comes to its end before it is told."""
    there = ready(2)
    there.want(*model(1, 8192), wanted("n@h2", port=9000, health=QUICK))
    there.hosts["h2"].kernel.behaviours["n"] = Behaviour(ready_after=9.0)
    witness = Witness()
    both = threading.Barrier(2, timeout=5.0)

    def begin(change: Change) -> None:
        both.wait()
        if change.server.model == "m":
            raise ZeroDivisionError
        time.sleep(0.2)

    witness.on_begin = begin
    with pytest.raises(ZeroDivisionError):
        execute(there.plan(), run_of(there, witness))
    assert [str(each.server) for each in witness.ended if each.status == "changed"] == ["n@h2"]


def test_a_bug_in_the_course_is_no_success() -> None:
    """What cannot go on is told, instead of a report that leaves servers out."""
    there = ready(2)
    there.want(*model(2, 8192))
    witness = Witness()

    def end(result: object) -> None:
        raise ZeroDivisionError

    run = run_of(there, witness)
    witness.ends = end  # type: ignore[method-assign]
    there.want(*model(2))
    with pytest.raises(ZeroDivisionError):
        execute(there.plan(), run)


def test_a_restart_counts_siblings_that_are_down() -> None:
    """One named server; the other replica on its host has crashed."""
    servers = [wanted("m@h1", port=8001, health=QUICK), wanted("m/1@h1", port=8002, health=QUICK)]
    there = world(*servers)
    apply(there)
    root = there.hosts["h1"].root(servers[1].id.slug)
    assert root is not None
    there.hosts["h1"].systemd.ended(there.hosts["h1"].systemd.unit(root.unit), root, 2)
    only = frozenset({servers[0].id})
    outcome = apply(there, only=only, restart=only)
    assert statuses(outcome) == {"m@h1": "skipped"}


def test_a_server_that_still_starts_is_not_called_ok_by_an_interrupt() -> None:
    """Nobody waited for it."""
    there = world(wanted("m@h1"))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=1e9)
    there.settle()
    run = run_of(there)
    run.stopping.set()
    outcome = execute(there.plan(), run)
    assert statuses(outcome) == {"m@h1": "skipped"}


def handed_on(hooks: Hooks | None = None) -> World:
    """A server that leaves a GPU on which another one is to start."""
    there = world(wanted("a@h1", port=8001, gpus=(0,), health=QUICK), hosts=[FakeHost("h1", gpus=2)])
    assert statuses(apply(there)) == {"a@h1": "changed"}
    return there.want(
        wanted("a@h1", port=8001, gpus=(1,), hooks=hooks or Hooks(), health=QUICK),
        wanted("b@h1", port=8002, gpus=(0,), health=QUICK),
    )


def test_a_gpu_that_is_handed_on_is_left_before_another_starts_there() -> None:
    """The newcomer waits for the one that moves, however long its requests take to end."""
    there = handed_on(Hooks(before_stop="sleep 0.3"))
    order: list[str] = []
    witness = Witness()
    witness.on_begin = lambda change: order.append(f"begins {change.server.model}")
    witness.ends = lambda result: order.append(f"ends {result.server.model}")  # type: ignore[method-assign]
    plan = there.plan()
    outcome = execute(plan, run_of(there, witness))
    assert statuses(outcome) == {"a@h1": "changed", "b@h1": "changed"}
    assert order == ["begins a", "ends a", "begins b", "ends b"]


def test_nothing_starts_on_a_gpu_that_was_not_left() -> None:
    """The one that was to move could not be taken down, and keeps its GPU."""
    there = handed_on(Hooks(before_stop="exit 3"))
    outcome = apply(there)
    assert statuses(outcome) == {"a@h1": "failed", "b@h1": "skipped"}
    assert "a@h1 has the port or GPU that it takes, and did not give it up" in failure(outcome, "b@h1").summary
    assert serving(there) == {"a@h1"}


def test_servers_of_a_host_that_another_run_holds_may_be_down() -> None:
    """It may be restarting the very same model: the others are left alone, and told why."""
    there = ready(3)
    there.want(*model(3, 8192))
    there.hosts["h1"].gone(there.hosts["h1"])
    held(there)
    outcome = apply(there)
    assert statuses(outcome) == dict.fromkeys(("m@h1", "m@h2", "m@h3"), "skipped")
    assert failure(outcome, "m@h1").kind == "locked"
    told = failure(outcome, "m@h2")
    assert (told.kind, "1 of 3 servers of m are down already, or may be (m@h1)" in told.summary) == (
        "max_unavailable",
        True,
    )


def test_one_of_two_that_swapped_their_ports_comes_back_on_its_new_port() -> None:
    """Its old one is taken by then: the last good settings, where the files want it to listen."""
    there = swapped()
    dies_with(there.hosts["h1"], "8192")
    there.want(
        wanted("a@h1", port=8002, health=QUICK),
        wanted("b@h1", port=8001, health=QUICK, args={"max_model_len": 8192}),
    )
    outcome = apply(there)
    assert statuses(outcome) == {"a@h1": "changed", "b@h1": "rolled_back"}
    assert "it is back on revision 1, on port 8001, ready" in failure(outcome, "b@h1").summary
    assert serving(there) == {"a@h1", "b@h1"}
    there.want(wanted("a@h1", port=8002, health=QUICK), wanted("b@h1", port=8001, health=QUICK))
    assert not there.plan().pending


def test_one_of_two_that_swapped_their_gpus_comes_back_on_its_new_one() -> None:
    """Its old one is taken by then."""
    there = world(
        wanted("a@h1", port=8001, gpus=(0,), health=QUICK),
        wanted("b@h1", port=8002, gpus=(1,), health=QUICK),
        hosts=[FakeHost("h1", gpus=2)],
    )
    apply(there)
    dies_with(there.hosts["h1"], "4096")
    there.want(
        wanted("a@h1", port=8001, gpus=(1,), health=QUICK),
        wanted("b@h1", port=8002, gpus=(0,), health=QUICK, args={"max_model_len": 4096}),
    )
    outcome = apply(there)
    assert statuses(outcome) == {"a@h1": "changed", "b@h1": "rolled_back"}
    assert "it is back on revision 1, on the GPUs that it was to have, ready" in failure(outcome, "b@h1").summary
    assert serving(there) == {"a@h1", "b@h1"}

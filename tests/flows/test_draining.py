"""Draining before a stop, and hooks, on fake hosts: what happens in which order, and what is left alone."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_kernel import Behaviour, Refusal
from tests.lab.worlds import World, wanted, world
from vmreconcile.flows.draining import back_in
from vmreconcile.flows.execute import execute
from vmreconcile.model.desired import DesiredState, Hooks, Rollout
from vmreconcile.model.outcome import Failure, Outcome

Json = dict[str, Any]
NOTE = 'echo "$VMRECONCILE_HOOK $VMRECONCILE_ACTION" >> {folder}/said'


@pytest.fixture
def lb(tmp_path: Path) -> Hooks:
    """Hooks that note when they were run, in one file with what the host did."""
    note = NOTE.format(folder=tmp_path)
    return Hooks(before_stop=note, after_ready=note, timeout=10.0)


def ran(folder: Path) -> list[str]:
    """What the hooks noted."""
    path = folder / "said"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def running(hooks: Hooks, **fields: object) -> World:
    """A world with one ready server that has these hooks, which were not run yet."""
    there = world(wanted(hooks=hooks, rollout=Rollout(drain=5.0), **fields))
    there.change(lambda server: replace(server, hooks=Hooks()))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    there.change(lambda server: replace(server, hooks=hooks))
    return there


def retuned(there: World) -> World:
    """Ask for another setting."""
    return there.change(
        lambda server: replace(server, settings={**server.settings, **wanted(args={"seed": 3}).settings})
    )


def failure(outcome: Outcome) -> Failure:
    """Why the one server failed."""
    (result,) = outcome.results
    assert result.failure is not None
    return result.failure


def note_steps(there: World, folder: Path) -> None:
    """Have what starts and stops be noted between the hooks' lines, as it reaches the host."""
    host = there.hosts["h1"]
    carry_out = host.steps

    def noting(request: Json, progress: Callable[[Json], None]) -> Json:
        with (folder / "said").open("a", encoding="utf-8") as said:
            for step in request["steps"]:
                if step["step"] == "stop-unit" or step.get("verb") == "start":
                    said.write(f"{step['step']} {step.get('verb', '')}\n")
        return carry_out(request, progress)

    host.steps = noting  # type: ignore[method-assign]  # this host alone


def test_the_order_of_a_retune(lb: Hooks, tmp_path: Path) -> None:
    """Hook, requests in flight, stop, start, ready, hook."""
    there = retuned(running(lb))
    there.hosts["h1"].in_flight["m"] = [3, 2, 1, 0]
    witness = Witness()
    note_steps(there, tmp_path)
    assert statuses(execute(there.plan(), run_of(there, witness))) == {"m@h1": "changed"}
    assert ran(tmp_path) == ["before_stop retune", "stop-unit ", "systemctl start", "after_ready retune"]
    waits = [line for _, line in witness.waited if "in flight" in line]
    assert waits[:3] == ["2 requests in flight", "1 request in flight", "0 requests in flight"]


def test_facts_of_the_server(tmp_path: Path) -> None:
    """Name, model, host, how that is reached, port, action and reason."""
    facts = f"env | grep ^VMRECONCILE_ | sort > {tmp_path}/$VMRECONCILE_HOOK"
    there = running(Hooks(before_stop=facts, after_ready=facts))
    there.change(lambda server: replace(server, port=8009))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    before, after = ((tmp_path / name).read_text(encoding="utf-8").split() for name in ("before_stop", "after_ready"))
    assert before == [
        "VMRECONCILE_ACTION=retune",
        "VMRECONCILE_ADDRESS=h1.example",
        "VMRECONCILE_HOOK=before_stop",
        "VMRECONCILE_HOST=h1",
        "VMRECONCILE_MODEL=m",
        "VMRECONCILE_PORT=8001",
        "VMRECONCILE_REASON=port_changed",
        "VMRECONCILE_SERVER=m@h1",
    ]
    assert "VMRECONCILE_PORT=8009" in after


def test_a_start_runs_after_ready_alone(lb: Hooks, tmp_path: Path) -> None:
    """There is nothing to take out; and what is in sync runs none."""
    there = world(wanted(hooks=lb))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert ran(tmp_path) == ["after_ready start"]
    assert statuses(apply(there)) == {"m@h1": "ok"}
    assert ran(tmp_path) == ["after_ready start"]


def test_a_start_is_seen_through_to_its_hook(lb: Hooks, tmp_path: Path) -> None:
    """Ctrl-C while it loads: the next run would find it in sync, and run no hook."""
    there, witness = world(wanted(hooks=lb)), Witness()
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=3.0)
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    outcome = execute(there.plan(), run)
    assert (statuses(outcome), outcome.interrupted) == ({"m@h1": "changed"}, True)
    assert ran(tmp_path) == ["after_ready start"]


@pytest.mark.parametrize("state", [DesiredState.STOPPED, DesiredState.ABSENT])
def test_a_stop_and_a_removal_take_it_out_for_good(lb: Hooks, tmp_path: Path, state: DesiredState) -> None:
    """The hook before, none after."""
    there = running(lb).change(lambda server: replace(server, state=state))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert ran(tmp_path) == [f"before_stop {'stop' if state is DesiredState.STOPPED else 'remove'}"]
    assert there.pids() == {}


def test_files_written_anew_run_none(lb: Hooks, tmp_path: Path) -> None:
    """A retune that touches no process takes nothing out."""
    there = running(lb)
    there.hosts["h1"].systemd.call("disable", "vmreconcile-m.service")
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert ran(tmp_path) == []


@pytest.mark.parametrize("state", [DesiredState.RUNNING, DesiredState.STOPPED, DesiredState.ABSENT])
def test_a_failing_before_stop_leaves_the_server_alone(tmp_path: Path, state: DesiredState) -> None:
    """Nothing is written or stopped; the failure has its last line; after_ready undoes what it may have done."""
    hooks = Hooks(before_stop="echo no pool named vllm; exit 4", after_ready=NOTE.format(folder=tmp_path))
    there = retuned(running(hooks)).change(lambda server: replace(server, state=state))
    pids, done = there.pids(), there.steps_done
    found = failure(apply(there))
    assert (found.kind, found.evidence) == ("hook_failed", "no pool named vllm")
    assert found.summary == "m@h1 was left as it is: its before_stop hook failed: exit status 4"
    assert (there.pids(), there.steps_done) == (pids, done)
    assert len(ran(tmp_path)) == 1


def test_a_failing_after_ready_tells_that_the_server_is_ready(tmp_path: Path) -> None:
    """The server stays as it was proven."""
    there = retuned(running(Hooks(after_ready="echo refused; exit 1")))
    found = failure(apply(there))
    assert (found.kind, found.evidence) == ("hook_failed", "refused")
    assert found.summary == "m@h1 is ready, but its after_ready hook failed: exit status 1"
    assert not there.plan().pending
    assert ran(tmp_path) == []


def test_a_server_that_went_back_is_put_in_again(lb: Hooks, tmp_path: Path) -> None:
    """The reason that it went back stays the report; a hook that fails is told beside it."""
    there = retuned(running(lb))
    (change,), why = there.plan().changes, Failure(kind="died", summary="it died", evidence="a line")
    assert back_in(change, why, run_of(there)) == why
    assert ran(tmp_path) == ["after_ready retune"]
    there.change(lambda server: replace(server, hooks=Hooks(after_ready="echo no pool; exit 2")))
    told = back_in(change, why, run_of(there))
    assert told.summary == "it died; m@h1 is ready, but its after_ready hook failed: exit status 2"
    assert (told.kind, told.evidence) == ("died", "a line | no pool")


def test_a_retune_that_goes_back_is_put_in_again(lb: Hooks, tmp_path: Path) -> None:
    """Taken out once, put in once it is ready on its old settings; on the port where it listens then."""
    there = retuned(running(lb))
    host = there.hosts["h1"]
    start = host.kernel._behaviour

    def behave(slug: str, argv: tuple[str, ...], version: str) -> Behaviour:
        return Behaviour(exit_code=1) if "--seed" in argv else start(slug, argv, version)

    host.kernel._behaviour = behave  # type: ignore[method-assign]
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert ran(tmp_path) == ["before_stop retune", "after_ready retune"]
    there.change(lambda server: replace(server, hooks=Hooks(after_ready="echo no pool; exit 2")))
    outcome = apply(there)
    assert statuses(outcome) == {"m@h1": "rolled_back"}
    assert failure(outcome).summary.endswith("but its after_ready hook failed: exit status 2")


def test_a_hook_that_refuses_the_stop_leaves_what_runs(tmp_path: Path) -> None:
    """Nothing was tried, so nothing goes back, and nothing is noted."""
    there = retuned(running(Hooks(before_stop="exit 1")))
    pids = there.pids()
    assert statuses(apply(there)) == {"m@h1": "failed"}
    assert there.pids() == pids
    assert len(there.hosts["h1"].history("m")) == 1
    assert ran(tmp_path) == []


def test_what_fails_while_it_still_serves_puts_it_back(lb: Hooks, tmp_path: Path) -> None:
    """Files that cannot be written take nothing down: the server goes back into the balancer."""
    there = retuned(running(lb))
    there.hosts["h1"].failing["write-file"] = Refusal("disk-full", "No space left on device", "/etc")
    assert failure(apply(there)).kind == "disk_full"
    assert ran(tmp_path) == ["before_stop retune", "after_ready retune"]


def test_what_fails_after_the_stop_is_not_put_back(lb: Hooks, tmp_path: Path) -> None:
    """A server that does not come up again stays out."""
    there = retuned(running(lb))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(exit_code=1)
    assert statuses(apply(there)) == {"m@h1": "failed"}
    assert ran(tmp_path) == ["before_stop retune"]


def test_requests_that_take_too_long_are_told(lb: Hooks, tmp_path: Path) -> None:
    """The reporter says how many are cut off, or what vLLM still gives them; the stop goes on."""
    there = retuned(running(lb)).change(lambda server: replace(server, rollout=Rollout(drain=0.01)))
    there.hosts["h1"].in_flight["m"] = [4]
    witness = Witness()
    assert statuses(execute(there.plan(), run_of(there, witness))) == {"m@h1": "changed"}
    told = [line for _, line in witness.waited if "after 0.01 s" in line]
    assert told == ["4 requests in flight after 0.01 s; vLLM gives them 5 s more"]
    assert ran(tmp_path) == ["before_stop retune", "after_ready retune"]


def test_requests_that_vllm_does_not_wait_for_are_cut_off(lb: Hooks) -> None:
    """A person's own shutdown_timeout counts: vLLM has none, so the stop ends them, and that is told."""
    there = running(lb, args={"shutdown_timeout": 0})
    retuned(there).change(lambda server: replace(server, rollout=Rollout(drain=0.01)))
    there.hosts["h1"].in_flight["m"] = [2]
    witness = Witness()
    assert statuses(execute(there.plan(), run_of(there, witness))) == {"m@h1": "changed"}
    assert "2 requests in flight after 0.01 s: cut off by the stop" in [line for _, line in witness.waited]


def test_a_server_without_metrics_is_not_waited_for(lb: Hooks) -> None:
    """It is told."""
    there = retuned(running(lb))
    there.hosts["h1"].in_flight["m"] = [None]
    witness = Witness()
    assert statuses(execute(there.plan(), run_of(there, witness))) == {"m@h1": "changed"}
    assert "no metrics: requests in flight are not waited for" in [line for _, line in witness.waited]


def test_an_interruption_while_draining_puts_it_back(lb: Hooks, tmp_path: Path) -> None:
    """Nothing was stopped; the server serves on, in the balancer again."""
    there = retuned(running(lb))
    there.hosts["h1"].in_flight["m"] = [4]
    pids, witness = there.pids(), Witness()
    run = run_of(there, witness)

    def stop() -> None:
        if any("in flight" in line for _, line in witness.waited):
            run.stopping.set()

    witness.on_wait = stop
    outcome = execute(there.plan(), run)
    (result,) = outcome.results
    assert (result.status.value, result.failure and result.failure.kind) == ("skipped", "interrupted")
    assert there.pids() == pids
    assert ran(tmp_path) == ["before_stop retune", "after_ready retune"]


def test_an_interruption_during_the_hook_lets_it_end_and_puts_it_back(tmp_path: Path) -> None:
    """The hook runs to its end; nothing is stopped."""
    note = NOTE.format(folder=tmp_path)
    there = retuned(running(Hooks(before_stop=f"sleep 0.4; {note}", after_ready=note)))
    pids, witness = there.pids(), Witness()
    run = run_of(there, witness)
    witness.on_wait = run.stopping.set
    assert statuses(execute(there.plan(), run)) == {"m@h1": "skipped"}
    assert there.pids() == pids
    assert ran(tmp_path) == ["before_stop retune", "after_ready retune"]


def test_a_server_that_does_not_answer_runs_no_before_stop(lb: Hooks, tmp_path: Path) -> None:
    """An unhealthy one serves nobody; it is put in once it is ready."""
    there = running(lb)
    root = there.hosts["h1"].root("m")
    assert root is not None
    root.behaviour = Behaviour(health=503)
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert ran(tmp_path) == ["after_ready restart"]


def test_an_unclaimed_server_has_no_hooks(lb: Hooks, tmp_path: Path) -> None:
    """Its model's file is gone, and they with it."""
    there = running(lb).want()
    assert statuses(apply(there, prune=True)) == {"m@h1": "changed"}
    assert ran(tmp_path) == []


def test_without_hooks_and_drain_nothing_is_asked() -> None:
    """No metrics are read before its steps."""
    there = world(wanted())
    apply(there)
    retuned(there)
    plan = there.plan()
    there.hosts["h1"].requests.clear()
    assert statuses(execute(plan, run_of(there))) == {"m@h1": "changed"}
    asked = there.hosts["h1"].requests
    first = next(at for at, request in enumerate(asked) if request["do"] == "steps")
    assert not any(request.get("metrics") for request in asked[:first])


def test_a_server_that_was_still_starting_is_put_in_once_it_is_ready(lb: Hooks, tmp_path: Path) -> None:
    """A run that was interrupted while it started ran no hook; the next one does."""
    there = world(wanted(hooks=lb))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=20.0)
    there.settle()
    assert statuses(apply(there)) == {"m@h1": "ok"}
    assert ran(tmp_path) == ["after_ready noop"]


def test_a_server_that_another_run_has_changed_meanwhile_is_not_taken_out(lb: Hooks, tmp_path: Path) -> None:
    """The plan was made before; what runs now is as it should be, so no hook is run and nothing is stopped."""
    there = retuned(running(lb))
    late = there.plan()
    assert statuses(apply(there)) == {"m@h1": "changed"}
    before, pids = ran(tmp_path), there.pids()
    assert statuses(execute(late, run_of(there))) == {"m@h1": "ok"}
    assert ran(tmp_path) == before
    assert there.pids() == pids


def test_a_failure_tells_that_after_ready_failed_too(tmp_path: Path) -> None:
    """Whoever reads the report alone knows that the server may be out of its balancer."""
    there = retuned(running(Hooks(before_stop="exit 3", after_ready="exit 4")))
    said = failure(apply(there)).summary
    assert "its before_stop hook failed" in said
    assert "after_ready failed too" in said
    assert "may be out of its load balancer" in said


def test_who_leaves_at_once_is_told_what_is_out_of_its_balancer(lb: Hooks) -> None:
    """At the second Ctrl-C, between the stop and the hook that puts it back; with what to do."""
    there = retuned(running(lb))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=500)
    witness = Witness()
    run = run_of(there, witness)

    def pressed() -> None:
        """The second one; the server is still waited for until it was heard."""
        if run.out and not run.stopping.is_set():
            run.stopping.set()
            signal.raise_signal(signal.SIGINT)
            until = time.monotonic() + 5.0
            while not told() and time.monotonic() < until:
                time.sleep(0.01)

    def told() -> list[str]:
        return [line for name, line in witness.waited if name == "m@h1" and "before_stop ran" in line]

    witness.on_wait = pressed
    with pytest.raises(KeyboardInterrupt):
        execute(there.plan(), run)
    assert told() == ["before_stop ran, after_ready did not: vmreconcile restart m@h1, or the hook by hand"]

"""Servers of one host side by side: only where they share no GPU, and none once the host was lost or Ctrl-C came."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import World, wanted, world
from vmreconcile.errors import UnreachableError
from vmreconcile.flows.execute import execute
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.outcome import Outcome, Result
from vmreconcile.model.plan import Change, Plan

SLOW = Behaviour(ready_after=20)
"""Seconds of the host's clock, which goes on by one with each request."""

MEET_S = 10.0


class Watch(Witness):
    """A reporter that knows when each server was at work, on which GPUs."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        super().__init__()
        self.began: dict[str, float] = {}
        self.over: dict[str, float] = {}

    def begins(self, change: Change) -> None:
        """Note the moment."""
        self.began[str(change.server)] = time.monotonic()
        super().begins(change)

    def ends(self, result: Result) -> None:
        """Note the moment."""
        self.over[str(result.server)] = time.monotonic()
        super().ends(result)

    def overlap(self, one: str, other: str) -> bool:
        """Whether two servers were at work at once."""
        return self.began[one] < self.over[other] and self.began[other] < self.over[one]


def there_with(*names: str, behaviour: Behaviour | None = None) -> World:
    """A host with these servers wanted."""
    there = world(*(wanted(f"{name}@h1", port=8000 + at) for at, name in enumerate(names)))
    if behaviour:
        there.hosts["h1"].kernel.behaviours |= dict.fromkeys(names, behaviour)
    return there


def on(plan: Plan, gpus: Mapping[str, str]) -> Plan:
    """The plan with GPUs decided: by server the names of its GPUs, a letter each."""
    changes = tuple(
        replace(change, placed=Placed(devices=tuple(gpus[change.server.model])))
        if change.server.model in gpus
        else change
        for change in plan.changes
    )
    return replace(plan, changes=changes)


def met(count: int) -> Callable[[Change], object]:
    """Something to do at a begin: wait until so many have begun."""
    barrier = threading.Barrier(count, timeout=MEET_S)
    return lambda _: barrier.wait()


def test_servers_on_different_gpus_start_at_once() -> None:
    """Three at work at the same time; each is proven."""
    there = there_with("a", "b", "c")
    witness = Witness()
    witness.on_begin = met(3)
    outcome = execute(on(there.plan(), {"a": "0", "b": "1", "c": "2"}), run_of(there, witness))
    assert set(statuses(outcome).values()) == {"changed"}
    assert len(there.pids()) == 3


def test_never_two_at_once_on_one_gpu() -> None:
    """Seven servers on four GPUs, one of which spans two: each pair that shares one goes one after the other."""
    gpus = {"a": "0", "b": "0", "c": "1", "d": "12", "e": "2", "f": "3", "g": "3"}
    lanes = ("ab", "cd", "de", "fg")
    there = there_with(*gpus, behaviour=SLOW)
    watch = Watch()
    firsts = threading.Barrier(3, timeout=MEET_S)
    watch.on_begin = lambda change: change.server.model in "acf" and firsts.wait()
    outcome = execute(on(there.plan(), gpus), run_of(there, watch))
    assert set(statuses(outcome).values()) == {"changed"}
    for lane in lanes:
        pairs = [(f"{one}@h1", f"{other}@h1") for one in lane for other in lane if one < other]
        assert not [pair for pair in pairs if watch.overlap(*pair)]
    assert watch.overlap("a@h1", "c@h1")
    assert watch.overlap("c@h1", "f@h1")


def test_without_known_gpus_a_host_is_one_gpu() -> None:
    """Each is ready before the next begins."""
    there = there_with("a", "b", "c", behaviour=SLOW)
    watch = Watch()
    assert set(statuses(execute(there.plan(), run_of(there, watch))).values()) == {"changed"}
    names = [*watch.began]
    assert names == ["a@h1", "b@h1", "c@h1"]
    assert not [pair for pair in itertools.pairwise(names) if watch.overlap(*pair)]


def test_one_that_gives_up_memory_goes_before_the_one_that_takes_it() -> None:
    """Also before a start, which takes nothing down; without the planner's word it would come last."""
    there = there_with("r")
    apply(there)
    there.want(wanted("a@h1", port=8005), wanted("r@h1", port=8000, args={"max_num_seqs": 8}))
    plan = on(there.plan(), {"a": "0", "r": "0"})
    frees = tuple(replace(each, frees=each.server.model == "r") for each in plan.changes)
    watch = Watch()
    assert set(statuses(execute(replace(plan, changes=frees), run_of(there, watch))).values()) == {"changed"}
    assert watch.begun == ["r@h1", "a@h1"]
    assert not watch.overlap("r@h1", "a@h1")


def test_what_starts_already_is_waited_for_first() -> None:
    """It measures its memory just now: nothing is started beside it."""
    there = there_with("z", behaviour=SLOW).settle()
    there.want(wanted("a@h1", port=8005), wanted("z@h1", port=8000))
    watch = Watch()
    outcome = execute(on(there.plan(), {"a": "0", "z": "0"}), run_of(there, watch))
    assert statuses(outcome) == {"a@h1": "changed", "z@h1": "ok"}
    assert watch.over["z@h1"] < watch.began["a@h1"]


def test_stops_go_before_every_lane() -> None:
    """Both that start find the stopped server gone, whichever GPU it was on."""
    there = there_with("x")
    apply(there)
    there.want(wanted("a@h1", port=8000), wanted("b@h1", port=8005))
    watch = Watch()
    plan = on(there.plan(prune=True), {"a": "0", "b": "1"})
    assert set(statuses(execute(plan, run_of(there, watch))).values()) == {"changed"}
    assert watch.begun[0] == "x@h1"
    assert watch.over["x@h1"] < min(watch.began["a@h1"], watch.began["b@h1"])


def test_a_port_swap_over_lanes_converges() -> None:
    """Both are taken down before either starts, as within one lane."""
    there = there_with("a", "b")
    apply(there)
    before = set(there.pids().values())
    there.want(wanted("a@h1", port=8001), wanted("b@h1", port=8000))
    witness = Witness()
    left: list[set[int]] = []
    witness.on_begin = lambda _: left.append(before & set(there.pids().values()))
    outcome = execute(on(there.plan(), {"a": "0", "b": "1"}), run_of(there, witness))
    assert set(statuses(outcome).values()) == {"changed"}
    assert left == [set(), set()]
    assert not there.plan().pending


def test_a_port_that_is_handed_on_needs_no_stop_for_all() -> None:
    """B takes A's port and A goes to a free one: A is done, and serves again, before B is touched."""
    there = there_with("b", "a")
    apply(there)
    there.want(wanted("b@h1", port=8001), wanted("a@h1", port=8009))
    plan = there.plan()
    assert [(each.server.model, each.early, [one.model for one in each.after]) for each in plan.changes] == [
        ("a", False, []),
        ("b", False, ["a"]),
    ]
    watch = Watch()
    outcome = execute(on(plan, {"a": "0", "b": "1"}), run_of(there, watch))
    assert set(statuses(outcome).values()) == {"changed"}
    assert watch.over["a@h1"] < watch.began["b@h1"]
    assert not there.plan().pending


def test_who_waits_for_a_port_that_was_not_given_up_is_not_begun() -> None:
    """A does not come up on its new port, so B, which takes the old one, is left alone and serves on."""
    there = there_with("b", "a")
    apply(there)
    there.want(wanted("b@h1", port=8001), wanted("a@h1", port=8009))
    there.hosts["h1"].kernel.behaviours["a"] = Behaviour(exit_code=1, log=("Segmentation fault",))
    before = there.pids()
    outcome = execute(there.plan(), run_of(there))
    found = {result.server.model: (result.status.value, result.failure) for result in outcome.results}
    assert found["a"][0] == "failed"
    assert found["b"][0] == "skipped"
    assert found["b"][1] is not None
    assert (found["b"][1].kind, "a@h1 has the port" in found["b"][1].summary) == ("not_freed", True)
    assert there.pids()["b@h1"] == before["b@h1"]


def test_a_failure_ends_no_lane() -> None:
    """The next server of the lane, and the other lane, go on."""
    there = there_with("a", "b", "c")
    there.hosts["h1"].kernel.behaviours["a"] = Behaviour(exit_code=1, log=("Segmentation fault",))
    outcome = execute(on(there.plan(), {"a": "0", "b": "0", "c": "1"}), run_of(there))
    assert statuses(outcome) == {"a@h1": "failed", "b@h1": "changed", "c@h1": "changed"}


def shares(**numbers: float) -> list[DesiredServer]:
    """Servers with these shares of a GPU each."""
    return [
        wanted(f"{name}@h1", port=8000 + at, args={"gpu_memory_utilization": share})
        for at, (name, share) in enumerate(numbers.items())
    ]


def test_as_the_planner_places_them() -> None:
    """Two GPUs for three servers: the two that share one go one after the other, the third at the same time."""
    there = world(*shares(a=0.6, b=0.6, c=0.3), gpus=2)
    plan = there.plan()
    gpus = {change.server.model: change.placed.devices for change in plan.changes if change.placed}
    assert gpus["a"] != gpus["b"]
    watch = Watch()
    both = threading.Barrier(2, timeout=MEET_S)
    watch.on_begin = lambda change: change.server.model in "ab" and both.wait()
    assert set(statuses(execute(plan, run_of(there, watch))).values()) == {"changed"}
    shared = "a@h1" if gpus["c"] == gpus["a"] else "b@h1"
    assert not watch.overlap("c@h1", shared)
    assert not there.plan().pending


def test_one_that_shrinks_makes_room_as_the_planner_says() -> None:
    """The only GPU is full: what has it restarts with less, then the new one starts, and both serve."""
    there = world(*shares(r=0.9), gpus=1)
    assert statuses(apply(there)) == {"r@h1": "changed"}
    there.want(*shares(r=0.5, a=0.4))
    watch = Watch()
    assert set(statuses(execute(there.plan(), run_of(there, watch))).values()) == {"changed"}
    assert watch.begun == ["r@h1", "a@h1"]
    assert sorted(there.pids()) == ["a@h1", "r@h1"]
    assert not there.plan().pending


def test_one_that_moves_gives_up_its_gpu_first() -> None:
    """Two servers change GPUs: each waits for the memory that the other one gave up, and gets it."""
    there = world(*shares(a=0.8, b=0.8), gpus=2)
    assert set(statuses(apply(there)).values()) == {"changed"}
    before = {change.server.model: change.placed.devices for change in there.plan().changes if change.placed}
    there.hosts["h1"].gpus_freed_after = 4.0
    index = {there.hosts["h1"].gpu(at).uuid: at for at in (0, 1)}
    there.change(lambda server: replace(server, gpus=(index[before["b" if server.id.model == "a" else "a"][0]],)))
    assert set(statuses(apply(there)).values()) == {"changed"}
    after = {change.server.model: change.placed.devices for change in there.plan().changes if change.placed}
    assert after == {"a": before["b"], "b": before["a"]}
    assert not there.plan().pending


# --- A host is lost, Ctrl-C ------------------------------------------------------------------------------------------


def unreachable(outcome: Outcome) -> list[str]:
    """Servers that were not done because their host was lost, each of which says so."""
    lost = [result for result in outcome.results if result.status == "unreachable"]
    assert all(result.failure and result.failure.kind == "unreachable" for result in lost)
    return [result.server.model for result in lost]


def test_a_host_lost_in_one_lane_is_lost_for_all() -> None:
    """What another lane is at ends as it ends; nothing more begins, and the host is reported once."""
    there = there_with("a", "b", "c", "d")
    host = there.hosts["h1"]
    request, lost = host.request, threading.Event()
    both = threading.Barrier(2, timeout=MEET_S)

    def losing(payload: dict[str, Any], **options: Any) -> object:  # noqa: ANN401 - passed on
        if payload["do"] == "steps" and payload["slug"] == "a":
            lost.set()
            raise UnreachableError("the connection was lost")
        return request(payload, **options)

    host.request = losing  # type: ignore[method-assign,assignment]
    witness = Witness()
    witness.on_begin = lambda change: (both.wait(), change.server.model == "a" or lost.wait(MEET_S))
    outcome = execute(on(there.plan(), {"a": "0", "b": "1", "c": "0", "d": "1"}), run_of(there, witness))
    assert unreachable(outcome) == ["a", "c", "d"]
    assert statuses(outcome)["b@h1"] == "changed"
    assert [(each.host, each.reason) for each in outcome.unreachable] == [("h1", "the connection was lost")]
    assert sorted(witness.begun) == ["a@h1", "b@h1"]
    host.request = request  # type: ignore[method-assign]
    assert set(statuses(apply(there)).values()) == {"changed", "ok"}


def test_every_lane_hears_of_a_host_that_is_gone() -> None:
    """Both wait for their servers as it goes; one entry for the host."""
    there = there_with("a", "b", "c", behaviour=Behaviour(ready_after=1e9))
    host = there.hosts["h1"]
    witness = Witness()
    waiting: set[str] = set()

    def leave() -> None:
        waiting.update(name for name, _ in witness.waited)
        if len(waiting) == 2:
            host.unreachable = "no route to host"

    witness.on_wait = leave
    outcome = execute(on(there.plan(), {"a": "0", "b": "1", "c": "0"}), run_of(there, witness))
    assert unreachable(outcome) == ["a", "b", "c"]
    assert [each.reason for each in outcome.unreachable] == ["no route to host"]


def test_ctrl_c_ends_the_waits_of_every_lane() -> None:
    """Two servers are waited for, two have not begun: all are skipped, the first two are left as they are."""
    there = there_with("a", "b", "c", "d", behaviour=Behaviour(ready_after=1e9))
    witness = Witness()
    main = threading.main_thread().ident
    assert main is not None
    lock, waiting = threading.Lock(), set[str]()

    def press() -> None:
        with lock:
            waiting.update(name for name, _ in witness.waited)
            if len(waiting) == 2:
                waiting.add("pressed")
                signal.pthread_kill(main, signal.SIGINT)

    witness.on_wait = press
    outcome = execute(on(there.plan(), {"a": "0", "b": "1", "c": "0", "d": "1"}), run_of(there, witness))
    assert outcome.interrupted
    assert witness.interruptions == 1
    assert set(statuses(outcome).values()) == {"skipped"}
    assert {result.failure.kind for result in outcome.results if result.failure} == {"interrupted"}
    assert sorted(witness.begun) == ["a@h1", "b@h1"]
    assert sorted(there.pids()) == ["a@h1", "b@h1"]


def test_a_second_ctrl_c_leaves_at_once() -> None:
    """Whatever the lanes wait for."""
    there = there_with("a", "b")
    witness = Witness()
    release = threading.Event()
    main = threading.main_thread().ident
    assert main is not None
    both = threading.Barrier(2, timeout=MEET_S)

    def press(change: Change) -> None:
        both.wait()
        if change.server.model == "a":
            signal.pthread_kill(main, signal.SIGINT)
        release.wait(MEET_S)

    witness.on_begin = press
    tell = witness.interrupted
    witness.interrupted = lambda: (tell(), signal.pthread_kill(main, signal.SIGINT))  # type: ignore[method-assign,assignment,return-value]
    try:
        with pytest.raises(KeyboardInterrupt):
            execute(on(there.plan(), {"a": "0", "b": "1"}), run_of(there, witness))
    finally:
        release.set()
    assert witness.interruptions == 1

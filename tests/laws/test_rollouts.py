"""Laws of rollouts: fleets, faults, edits and failing starts in any order, through the real planner and execution.

Whatever happens, no server that serves is taken down by us while as many of its model are down as may be; strangers
and hosts out of reach stay as they are; no token shows; once the faults are gone, one apply reaches what is wanted.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.lab.applying import run_of, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import TOKEN, World, fleet, wanted
from tests.laws.journeys import EVENTS
from tests.laws.test_apply import LAWS, converged, snapshot, strangers
from vmreconcile.core.rollout.budgets import budgets_of
from vmreconcile.effects.fleet import Fleet
from vmreconcile.flows.execute import execute
from vmreconcile.model.desired import DesiredServer, Health, HostLimit, Rollout
from vmreconcile.model.names import ServerId

HOSTS = ("h1", "h2", "h3", "h4")
MODELS = ("a", "b", "c")
WORLDS = settings(LAWS, max_examples=2000)
pytestmark = pytest.mark.slow


@dataclass(slots=True)
class Watch:
    """Looks at the whole fleet around each request, one at a time, for servers that a request took down."""

    there: World
    broken: list[str] = field(default_factory=list)
    turn: threading.RLock = field(default_factory=threading.RLock)

    def up(self) -> set[ServerId]:
        """Which wanted servers serve."""
        return {server.id for server in self.there.desired.servers if _serves(self.there, server.id)}

    def around(self, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One request; nobody may be missing afterwards whom a budget does not allow to be."""
        with self.turn:
            before = self.up()
            try:
                return ask()
            finally:
                self._judge(before - self.up())

    def _judge(self, taken: set[ServerId]) -> None:
        budgets = budgets_of(self.there.desired.servers)
        down = {server.id for server in self.there.desired.servers} - self.up()
        for budget in {each for server in taken for each in budgets.get(server, ())}:
            if len(budget.servers & down) > budget.limit:
                self.broken.append(f"{sorted(map(str, taken))}: {sorted(map(str, budget.servers & down))} are down")


@dataclass(slots=True)
class Watched:
    """A host's session that is watched."""

    host: FakeHost
    watch: Watch

    def request(self, payload: Mapping[str, object], **more: Any) -> dict[str, Any]:  # noqa: ANN401 - a session's
        """Ask the host."""
        return self.watch.around(lambda: self.host.request(payload, **more))

    def close(self) -> None:
        """The host does not mind."""


def _serves(there: World, server: ServerId) -> bool:
    host = there.hosts[server.host]
    root = host.root(server.slug)
    return root is not None and host.kernel.health(root) == 200 and not host.unreachable


@st.composite
def models(draw: st.DrawFn) -> list[DesiredServer]:
    """One to three models on some hosts each, with a rollout of their own."""
    servers = []
    for at, model in enumerate(draw(st.lists(st.sampled_from(MODELS), unique=True, min_size=1, max_size=3))):
        rollout = Rollout(
            max_unavailable=draw(st.sampled_from((1, 1, 2, 3, "50%", "100%"))),
            canary=draw(st.sampled_from((0, 0, 1, 2))),
            max_failures=draw(st.sampled_from((0, 0, 1, 9))),
        )
        limit = HostLimit(max_unavailable=draw(st.sampled_from((1, 2))), place="all") if draw(st.booleans()) else None
        hosts = draw(st.lists(st.sampled_from(HOSTS), unique=True, min_size=1, max_size=4))
        servers += [
            wanted(
                f"{model}@{host}",
                port=8001 + at,
                rollout=rollout,
                host_limit=limit,
                turn=draw(st.integers(0, 1)),
                health=Health(startup_timeout=60.0, soak=0.0),
            )
            for host in hosts
        ]
    limits = {server.host_limit for server in servers}
    return [replace(server, host_limit=next(iter(limits))) for server in servers]  # one line says it for all


@st.composite
def edited(draw: st.DrawFn, servers: list[DesiredServer]) -> list[DesiredServer]:
    """Other settings, or ports handed round among a host's servers, for some models."""
    names = sorted({server.id.model for server in servers})
    what = {name: draw(st.sampled_from(("", "args", "args", "env", "ports"))) for name in names}
    ports = [server.port for server in servers]
    turned = {old: new for old, new in zip(sorted(set(ports)), sorted(set(ports))[::-1], strict=True)}  # noqa: C416
    found = []
    for server in servers:
        match what[server.id.model]:
            case "args":
                found.append(replace(server, settings=wanted(args={"max_num_seqs": 8}).settings))
            case "env":
                found.append(replace(server, env=wanted(env={"PLAIN": "x"}).env))
            case _:
                found.append(server)
    if "ports" in what.values():
        # two that swap their ports are down together, which a limit of one over all models never allows
        return [replace(server, port=turned[server.port], host_limit=None) for server in found]
    return found


happenings = st.lists(
    st.tuples(st.sampled_from([each.__name__ for each in EVENTS]), st.sampled_from(HOSTS), st.integers(0, 9)),
    max_size=3,
)
failing = st.sets(st.tuples(st.sampled_from(HOSTS), st.sampled_from(MODELS)), max_size=2)


@WORLDS
@given(first=models(), events=happenings, dead=failing, data=st.data())
def test_a_rollout_hurts_nobody_and_converges(
    first: list[DesiredServer],
    events: list[tuple[str, str, int]],
    dead: set[tuple[str, str]],
    data: st.DataObject,
) -> None:
    """Budgets kept at every request, also while starts fail; then, without the faults, one apply does it all."""
    there = World(fleet(*first), {name: FakeHost(name) for name in HOSTS}).settle()
    for name, host, number in events:
        next(each for each in EVENTS if each.__name__ == name)(there.hosts[host], number)
    there.desired = fleet(*data.draw(edited(first)))
    for host, model in dead:
        there.hosts[host].kernel.behaviours[model] = Behaviour(exit_code=1, log=("Segmentation fault",))
    foreign = strangers(there)
    away = {name: snapshot(host) for name, host in there.hosts.items() if host.unreachable}
    watch = Watch(there)
    outcome = watched(there, watch)
    assert not watch.broken, watch.broken
    assert strangers(there) == foreign
    assert {name: snapshot(there.hosts[name]) for name in away} == away
    assert TOKEN not in json.dumps(statuses(outcome)) + repr(outcome)
    event(f"{sorted(set(statuses(outcome).values()))}")
    for host, model in dead:
        there.hosts[host].kernel.behaviours.pop(model, None)
    watched(there, watch)
    assert not watch.broken, watch.broken
    converged(there, there.plan())
    pids = there.pids()
    watched(there, watch)
    assert there.pids() == pids
    assert strangers(there) == foreign


def watched(there: World, watch: Watch) -> Any:  # noqa: ANN401 - an outcome
    """Plan and carry out, every request watched; no token is in the plan."""
    plan = there.plan()
    assert TOKEN not in repr(plan)
    run = run_of(there)
    seen = run.fleet.open_host
    whole = Fleet(
        open_host=lambda name: Watched(seen(name), watch),  # type: ignore[arg-type,return-value]  # a fake host
        looks=run.fleet.looks,
        salt=run.fleet.salt,
        forks=4,
    )
    return execute(plan, replace(run, fleet=whole))

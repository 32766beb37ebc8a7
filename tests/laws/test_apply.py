"""Laws of a plan carried out: generated fleets in memory, through the real planner and the real execution."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from tests.lab.applying import apply, statuses
from tests.lab.fake_host import ControllerDied, FakeHost
from tests.lab.worlds import World
from tests.laws.journeys import CATALOGUE, GENTLE, Journey, journeys
from vmreconcile.core.launching import TOKEN_VARIABLE, launch_settings, public_env
from vmreconcile.core.rollout.budgets import budgets_of
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase as ServerPhase
from vmreconcile.model.plan import Action, Change, Plan, Reason
from vmreconcile.vllm.command import from_argv, same

LAWS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
pytestmark = pytest.mark.slow

WANTED_PHASES = {
    DesiredState.RUNNING: {ServerPhase.READY},
    DesiredState.STOPPED: {ServerPhase.STOPPED, ServerPhase.ABSENT},
    DesiredState.ABSENT: {ServerPhase.ABSENT},
}


def snapshot(host: FakeHost) -> tuple[object, ...]:
    """Everything of a host that an apply could change."""
    files = {path: (file.content, file.mode, file.uid) for path, file in host.kernel.files.items()}
    units = {name: (unit.active, unit.enabled, unit.loaded) for name, unit in host.systemd.units.items()}
    return files, dict(host.kernel.processes), copy.deepcopy(units), host.lingering


def files(there: World) -> dict[str, tuple[str, int, int]]:
    """Every file of every host: content, mode, owner; histories aside, which say when something was proven."""
    return {
        f"{name}:{path}": (file.content, file.mode, file.uid)
        for name, host in there.hosts.items()
        for path, file in host.kernel.files.items()
        if not path.startswith(f"{host.state}/history/")
    }


def strangers(there: World) -> dict[str, list[int]]:
    """Pids that are not ours, by host."""
    return {name: sorted(process.pid for process in host.strangers()) for name, host in there.hosts.items()}


def as_wanted(there: World, server: DesiredServer, host: FakeHost) -> None:
    """The running server has exactly the settings and the environment that are wanted."""
    root = host.root(server.id.slug)
    assert root is not None
    command = from_argv(root.argv, CATALOGUE)
    assert command is not None
    assert command.model == server.model
    assert same(launch_settings(server), command.settings, CATALOGUE)
    expected = dict(public_env(server))
    if server.token is not None:
        expected[TOKEN_VARIABLE] = there.tokens[server.token]
    assert {**expected, **root.env} == dict(root.env)
    assert (TOKEN_VARIABLE in root.env) == (server.token is not None)
    env_file = host.kernel.files[f"{host.config}/env/{server.id.slug}.env"]
    assert (env_file.mode, env_file.uid) == (0o600, host.kernel.uid)


def held_back(server: ServerId, by_server: Mapping[ServerId, Change], there: World) -> bool:
    """Whether a server may not be touched, because another that shares a budget with it is down and stays so."""
    budgets = budgets_of(there.desired.servers).get(server, ())
    others = {each for budget in budgets for each in budget.servers} - {server}
    stay = [each for each in others if each not in by_server or by_server[each].action is Action.BLOCKED]
    return by_server[server].reason is Reason.MAX_UNAVAILABLE and bool(stay)


def converged(there: World, plan: Plan) -> None:
    """What a plan after an apply must say: nothing to do, and every server in its phase and as wanted."""
    assert not plan.pending, [(str(change.server), change.action, change.fields) for change in plan.pending]
    by_server = {change.server: change for change in plan.changes}
    for server in there.desired.servers:
        host = there.hosts[server.id.host]
        if host.unreachable:
            assert server.id not in by_server
            continue
        change = by_server[server.id]
        if change.action is Action.BLOCKED:
            assert change.reason is Reason.PORT_HELD or held_back(change.server, by_server, there)
            continue
        assert change.phase in WANTED_PHASES[server.state], change
        if server.state is DesiredState.RUNNING:
            as_wanted(there, server, host)


@LAWS
@given(journey=journeys(), prune=st.booleans())
def test_an_applied_plan_reaches_what_is_wanted(journey: Journey, *, prune: bool) -> None:
    """Settings, environment, token and phase; the second plan is empty, changes nothing and touches no process."""
    there = journey.start()
    foreign = strangers(there)
    untouched = {name: snapshot(host) for name, host in there.hosts.items() if host.unreachable}
    outcome = apply(there, prune=prune)
    assert set(statuses(outcome).values()) <= {"changed", "ok", "skipped", "unreachable"}, outcome
    converged(there, there.plan(prune=prune))
    pids, done = there.pids(), there.steps_done
    again = apply(there, prune=prune)
    assert set(statuses(again).values()) <= {"ok", "skipped", "unreachable"}
    assert (there.pids(), there.steps_done) == (pids, done)
    assert strangers(there) == foreign
    assert {name: snapshot(there.hosts[name]) for name in untouched} == untouched
    event(f"{len(outcome.results)} servers")


@LAWS
@given(journey=journeys())
def test_nothing_is_removed_without_prune(journey: Journey) -> None:
    """Servers of ours that nobody wants go on as they are: same process, same files."""
    there = journey.start()
    named = {(server.id.host, server.id.slug) for server in there.desired.servers}

    def unclaimed() -> dict[str, object]:
        return {
            f"{slug}@{name}": (host.root(slug), host.record(slug), host.systemd.text(f"vmreconcile-{slug}.service"))
            for name, host in there.hosts.items()
            for slug in host.slugs()
            if (name, slug) not in named
        }

    before = unclaimed()
    apply(there)
    assert unclaimed() == before


@LAWS
@given(journey=journeys(), data=st.data())
def test_only_what_is_selected_is_acted_on(journey: Journey, data: st.DataObject) -> None:
    """`only` leaves every other server, and every other host, as it is."""
    there = journey.start()
    everything = [change.server for change in there.plan(prune=True).changes]
    chosen = frozenset(data.draw(st.sets(st.sampled_from(everything)))) if everything else frozenset()
    others = {name: host for name, host in there.hosts.items() if name not in {server.host for server in chosen}}
    before, pids = {name: snapshot(host) for name, host in others.items()}, there.pids()
    plan = there.plan(prune=True, only=chosen)
    assert {change.server for change in plan.changes} <= chosen
    apply(there, plan)
    assert {name: snapshot(host) for name, host in others.items()} == before
    kept = {name: pid for name, pid in pids.items() if name not in {str(server) for server in chosen}}
    assert {name: there.pids().get(name) for name in kept} == kept
    assert not [change for change in there.plan(prune=True, only=chosen).pending if change.server in chosen]


@LAWS
@given(journey=journeys(events=GENTLE, same=True))
def test_files_edited_by_hand_are_mended_without_a_restart(journey: Journey) -> None:
    """Units and env files edited, opened, removed, disabled: everything as before, and every process lives on."""
    there = journey.start()
    pids = there.pids()
    plan = there.plan()
    assert not any(change.disruptive for change in plan.changes)
    apply(there, plan)
    assert there.pids() == pids
    converged(there, there.plan())
    assert files(there) == files(journey.settled())


@settings(LAWS, max_examples=30)
@given(journey=journeys())
def test_a_controller_killed_after_any_step_is_no_obstacle(journey: Journey) -> None:
    """For each step in turn: the run dies right after it, and the next run converges all the same."""
    whole = journey.start()
    before = whole.steps_done
    apply(whole, prune=True)
    for steps in range(whole.steps_done - before):
        there = journey.start()
        foreign, plan = strangers(there), there.plan(prune=True)
        there.live(steps)
        with pytest.raises(ControllerDied):
            apply(there, plan)
        apply(there.live(None), prune=True)
        converged(there, there.plan(prune=True))
        assert strangers(there) == foreign

"""Which servers may begin when: canaries, waves, budgets, pauses, failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.lab.worlds import wanted
from vmreconcile.core.rollout.budgets import budgets_of, limit_of, usual_changes
from vmreconcile.core.rollout.course import Course, Ended, Limits, course_of
from vmreconcile.core.rollout.units import Unit
from vmreconcile.core.rollout.waves import waves_of
from vmreconcile.model.desired import DesiredServer, DesiredState, HostLimit, Rollout
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase
from vmreconcile.model.plan import Action, Change, Gate, Plan, Reason

GATE = Gate(address="127.0.0.1", port=1, timeout=1.0, completion=True)
WELL = Ended(up=True, well=True)
FAILED = Ended(up=False, well=False, failed=True)
BACK = Ended(up=True, well=False, failed=True)


def retune(name: str, **fields: Any) -> Change:  # noqa: ANN401 - a Change's
    """A server that serves and is to be restarted."""
    usual: dict[str, Any] = {"action": Action.RETUNE, "disruptive": True, "phase": Phase.READY}
    usual |= {"reason": Reason.ARGS_CHANGED, "gate": GATE}
    return Change(server=ServerId.parse(name), **{**usual, **fields})


def start(name: str, phase: Phase = Phase.CRASHED) -> Change:
    """A server that does not run."""
    return retune(name, action=Action.START, disruptive=False, phase=phase, reason=Reason.CRASHED)


def of(count: int, model: str = "m", **rollout: Any) -> list[DesiredServer]:  # noqa: ANN401 - a Rollout's
    """A model on so many hosts."""
    return [wanted(f"{model}@h{at}", rollout=Rollout(**rollout)) for at in range(1, count + 1)]


def plan_of(*changes: Change, away: tuple[str, ...] = ()) -> Plan:
    """A plan of these changes, which knows who is down: who is not ready, and who is out of reach."""
    gone = frozenset(map(ServerId.parse, away))
    down = gone | {change.server for change in changes if change.phase is not Phase.READY}
    return Plan(changes=changes, unreachable_servers=tuple(sorted(gone)), down=down)


def course(
    changes: list[Change], servers: list[DesiredServer], limits: Limits | None = None, away: tuple[str, ...] = ()
) -> Course:
    """The course of a plan of these changes, hosts opened already."""
    wanted_by_name = {server.id: server for server in servers}
    found = course_of(plan_of(*changes, away=away), wanted_by_name, limits or Limits())
    for unit in found.begin(0.0):
        assert not unit.changes
        found.end(unit, {}, 0.0)
    return found


def held(found: Course) -> dict[str, Any]:
    """What is given up, by server."""
    return {str(server): why for unit, why in found.give_up().items() for server in unit.servers}


def names(units: list[Unit]) -> str:
    """The hosts that something begins on."""
    return " ".join(str(server).removeprefix("m@") for unit in units for server in sorted(unit.servers))


def go(found: Course, end: Ended = WELL, now: float = 0.0) -> str:
    """Begin what may, and end it so."""
    units = found.begin(now)
    for unit in units:
        found.end(unit, dict.fromkeys(unit.servers, end), now)
    return names(units)


@pytest.mark.parametrize(
    ("share", "total", "limit"),
    [(1, 1, 1), (1, 5, 1), (3, 5, 3), (9, 5, 4), (2, 2, 1), ("25%", 8, 2), ("25%", 3, 1), ("100%", 4, 3), ("1%", 9, 1)],
)
def test_how_many_may_be_down(share: int | str, total: int, limit: int) -> None:
    """Rounded down, at least one, and never all of several."""
    assert limit_of(share, total) == limit


def test_one_after_the_other_is_the_default() -> None:
    """Three servers, one down at a time; the next begins only once the one before is done."""
    found = course([retune(f"m@h{at}") for at in (1, 2, 3)], of(3))
    (first,) = found.begin(0.0)
    assert names([first]) == "h1"
    assert found.begin(0.0) == []
    found.end(first, {ServerId.parse("m@h1"): WELL}, 0.0)
    assert [go(found), go(found), go(found)] == ["h2", "h3", ""]
    assert not found.waiting


def test_nobody_is_overtaken_while_a_host_is_made_ready() -> None:
    """A host whose lock is waited for keeps its place; another model, and what takes nobody down, need not wait."""
    servers = [*of(3, max_unavailable=2), wanted("n@h4")]
    changes = (retune("m@h1"), retune("m@h2"), start("m@h3"), retune("n@h4"))
    found = course_of(plan_of(*changes), {server.id: server for server in servers}, Limits())
    opening = {unit.host: unit for unit in found.begin(0.0)}
    for host in ("h2", "h3", "h4"):
        found.end(opening[host], {}, 0.0)
    begun = found.begin(0.0)
    assert sorted(unit.host for unit in begun) == ["h3", "h4"]
    for unit in begun:
        found.end(unit, dict.fromkeys(unit.servers, WELL), 0.0)
    assert names(found.begin(0.0)) == ""
    found.end(opening["h1"], {}, 0.0)
    assert names(found.begin(0.0)) == "h1 h2"


def test_a_wave_ends_before_the_next_begins() -> None:
    """Two may be down: when the first of a wave is done, its place stays free until the other is."""
    found = course([retune(f"m@h{at}") for at in (1, 2, 3, 4)], of(4, max_unavailable=2))
    one, two = found.begin(0.0)
    found.end(one, dict.fromkeys(one.servers, WELL), 0.0)
    assert found.begin(0.0) == []
    found.end(two, dict.fromkeys(two.servers, WELL), 0.0)
    assert go(found) == "h3 h4"


def test_what_is_down_already_counts() -> None:
    """A crashed server comes back first, and only then others are taken down; a start needs no budget."""
    found = course([retune("m@h1"), start("m@h2"), start("m@h3")], of(3))
    assert go(found) == "h2 h3"
    assert go(found) == "h1"


def test_a_server_that_stays_down_holds_the_others() -> None:
    """Its host cannot be reached: nobody else is taken down, and it is said who is down and what allows more."""
    found = course([retune("m@h1"), retune("m@h2")], of(3), away=("m@h3",))
    assert go(found) == ""
    why = held(found)["m@h1"]
    assert why.kind == "max_unavailable"
    assert why.why == "1 of 3 servers of m are down already (m@h3), and rollout.max_unavailable allows 1"


def test_canaries_go_first_and_alone() -> None:
    """Also before the start of a new server; the rest begins once they are ready."""
    new = retune("m@h1", action=Action.START, disruptive=False, phase=Phase.ABSENT, reason=Reason.ABSENT)
    found = course([new, *(retune(f"m@h{at}") for at in (2, 3))], of(3, canary=1, max_unavailable=2))
    assert go(found) == "h1"
    assert go(found) == "h2 h3"


def test_a_failed_canary_stops_the_rollout() -> None:
    """Whatever max_failures allows."""
    found = course([retune(f"m@h{at}") for at in (1, 2, 3)], of(3, canary=1, max_failures=2))
    assert go(found, BACK) == "h1"
    assert go(found) == ""
    why = held(found)["m@h2"]
    assert (why.kind, "canary must be ready" in why.why) == ("rollout_stopped", True)


def test_the_pause_is_kept_between_waves_only() -> None:
    """30 seconds from the end of a wave; nothing waits after the last."""
    found = course([retune(f"m@h{at}") for at in (1, 2)], of(2, pause=30.0))
    assert go(found, now=100.0) == "h1"
    assert go(found, now=129.0) == ""
    assert found.wakes(129.0) == 1.0
    assert go(found, now=130.0) == "h2"
    assert found.wakes(130.0) is None


def test_failures_stop_the_model_and_nobody_else() -> None:
    """The rest of m is not begun; n goes on."""
    changes = [*(retune(f"m@h{at}") for at in (1, 2, 3)), *(retune(f"n@h{at}") for at in (4, 5))]
    servers = [*of(3), *(wanted(f"n@h{at}") for at in (4, 5))]
    found = course(changes, servers)
    units = found.begin(0.0)
    assert names(units) == "h1 n@h4"
    found.end(units[0], dict.fromkeys(units[0].servers, BACK), 0.0)
    found.end(units[1], dict.fromkeys(units[1].servers, WELL), 0.0)
    assert go(found) == "n@h5"
    whys = held(found)
    assert set(whys) == {"m@h2", "m@h3"}
    assert "m@h1 failed, and rollout.max_failures is 0" in whys["m@h2"].why


def test_max_failures_is_how_many_may_fail() -> None:
    """One failure is borne where one is allowed and the server is back up; the second stops the rollout."""
    found = course([retune(f"m@h{at}") for at in (1, 2, 3, 4)], of(4, max_failures=1))
    assert [go(found, BACK), go(found, BACK), go(found)] == ["h1", "h2", ""]


def test_a_limit_for_the_run_stops_everything() -> None:
    """--max-failures counts over all models."""
    changes = [retune("m@h1"), retune("n@h1"), retune("o@h1")]
    found = course(changes, [wanted("m@h1"), wanted("n@h1"), wanted("o@h1")], Limits(max_failures=0))
    assert go(found, FAILED) == "h1"
    assert go(found) == ""
    assert "more than --max-failures 0" in held(found)["n@h1"].why


def test_limits_of_hosts_and_of_the_run_hold_over_models() -> None:
    """Hosts that have the value from one line share it; a percentage is of all servers there."""
    servers = [wanted(f"{name}@h{at}") for at in (1, 2) for name in "mno"]
    changes = [retune(str(server.id)) for server in servers]
    assert len(course(changes, servers).begin(0.0)) == 2, "one lane a host; all models differ"
    limit = HostLimit(max_unavailable=1, place="inventory/group_vars/all.yml:1")
    limited = [replace(server, host_limit=limit) for server in servers]
    assert len(course(changes, limited).begin(0.0)) == 1
    assert len(course(changes, servers, Limits(max_unavailable="17%")).begin(0.0)) == 1
    budgets = budgets_of(limited)
    assert {budget.name for budget in budgets[servers[0].id]} == {"m", "the hosts of inventory/group_vars/all.yml:1"}


def test_order_names_who_goes_first() -> None:
    """Servers of a pattern that stands first, then the others, by name."""
    servers = [replace(server, turn=turn) for server, turn in zip(of(3), (1, 1, 0), strict=True)]
    found = course([retune(f"m@h{at}") for at in (1, 2, 3)], servers)
    assert [go(found), go(found), go(found)] == ["h3", "h1", "h2"]


def test_as_many_hosts_at_once_as_forks() -> None:
    """Hosts count, not servers."""
    found = course_of(
        plan_of(*(start(f"m@h{at}") for at in (1, 2, 3))),
        {server.id: server for server in of(3)},
        Limits(forks=2),
    )
    opening = found.begin(0.0)
    assert [unit.host for unit in opening] == ["h1", "h2"]
    found.end(opening[0], {}, 0.0)
    assert [(unit.host, bool(unit.changes)) for unit in found.begin(0.0)] == [("h3", False)]


def test_a_lost_host_counts_as_down() -> None:
    """Nothing more begins on it, and what it served may be gone."""
    found = course([*(retune(f"m@h{at}") for at in (1, 2)), retune("n@h1")], [*of(2), wanted("n@h1")])
    (first,) = [unit for unit in found.begin(0.0) if unit.host == "h1"]
    found.end(first, {}, 0.0)
    assert names(found.drop("h1", lost=True)) == "n@h1"
    assert go(found) == ""
    assert held(found)["m@h2"].kind == "max_unavailable"


def test_stops_that_are_wanted_need_no_budget() -> None:
    """A model that is wanted stopped stops everywhere at once."""
    servers = [replace(server, state=DesiredState.STOPPED) for server in of(3)]
    changes = [retune(f"m@h{at}", action=Action.STOP, gate=None, reason=Reason.WANTED_STOPPED) for at in (1, 2, 3)]
    assert go(course(changes, servers)) == "h1 h2 h3"


def test_two_that_swap_ports_are_one_unit_and_hold_both_budgets() -> None:
    """While m is down elsewhere, the pair waits as a whole."""
    pair = [retune("m@h1", early=True), retune("n@h1", early=True)]
    servers = [*of(2), wanted("n@h1"), wanted("n@h2")]
    found = course([*pair, retune("m@h2")], servers)
    (unit,) = found.begin(0.0)
    assert {str(server) for server in unit.servers} == {"m@h1", "n@h1"}
    held = course([*pair, start("m@h2")], servers)
    assert go(held) == "h2"
    assert go(held) == "h1 n@h1"


def test_the_waves_of_a_plan() -> None:
    """As they happen where everything succeeds; what crashed comes back beside the canary, and is in no wave."""
    servers = of(5, max_unavailable=2, canary=1, pause=30.0)
    plan = plan_of(*(retune(f"m@h{at}") for at in (1, 2, 3, 4)), start("m@h5"))
    (waves,), held = waves_of(plan, {server.id: server for server in servers}, Limits())
    assert [" ".join(each.host for each in wave) for wave in waves.waves] == ["h1", "h2 h3", "h4"]
    assert (waves.limit, waves.total, waves.canaries, waves.pause, waves.downtime) == (2, 5, 1, 30.0, False)
    assert not held


def test_a_models_only_server_is_downtime() -> None:
    """Said in the plan."""
    (waves,), _ = waves_of(plan_of(retune("m@h1")), {server.id: server for server in of(1)}, Limits())
    assert waves.downtime


def test_what_no_wave_can_hold_is_blocked_in_the_plan() -> None:
    """With who is down, and the setting."""
    plan = plan_of(retune("m@h1"), away=("m@h2",))
    waves, held = waves_of(plan, {server.id: server for server in of(2)}, Limits())
    assert not waves
    assert held[ServerId.parse("m@h1")].reason is Reason.MAX_UNAVAILABLE


def test_the_usual_number_of_changes() -> None:
    """A third of the servers, at least three."""
    many = tuple(retune(f"m@h{at}") for at in range(30))
    assert [usual_changes(Plan(changes=many[:count])) for count in (1, 9, 12, 30)] == [3, 3, 4, 10]


def test_what_waits_behind_one_that_is_held_back_goes_on() -> None:
    """A pair that swaps ports is held by a budget; the server behind it on the same GPU needs nothing of it."""
    changes = [retune("a@h1", early=True), retune("c@h1", early=True), retune("b@h1")]
    servers = [wanted(f"{name}@h1") for name in "abc"] + [wanted("c@h2")]
    found = course(changes, servers, away=("c@h2",))
    assert go(found) == ""
    assert set(held(found)) == {"a@h1", "c@h1"}
    assert go(found) == "b@h1"


def test_a_pause_is_not_waited_for_where_nothing_could_begin_after_it() -> None:
    """One failed and is down, which the budget does not allow another to be: the run ends at once, and says so."""
    found = course([retune(f"m@h{at}") for at in (1, 2, 3)], of(3, pause=600.0, max_failures=5))
    assert go(found, FAILED) == "h1"
    assert found.begin(0.0) == []
    assert found.wakes(0.0) is None
    assert set(held(found)) == {"m@h2", "m@h3"}


def test_what_ended_by_itself_waits_for_no_canary_and_for_no_failure() -> None:
    """It is down already; a canary that failed is no reason to leave it so."""
    found = course([retune("m@h1"), start("m@h2"), start("m@h3")], of(4, canary=1, max_unavailable=3))
    units = found.begin(0.0)
    assert names(units) == "h1 h2 h3"
    found = course([start("m@h1"), start("m/1@h1")], [wanted("m@h1"), wanted("m/1@h1")])
    assert go(found, FAILED) == "h1"
    assert go(found) == "m/1@h1"


def test_nothing_is_taken_down_before_every_host_of_the_model_is_held() -> None:
    """Another run that holds one may be restarting the same model just now; a model that is elsewhere need not wait."""
    servers = [*of(2), wanted("n@h1")]
    changes = [retune("m@h1"), retune("m@h2"), retune("n@h1")]
    for lost in (False, True):
        found = course_of(plan_of(*changes), {server.id: server for server in servers}, Limits())
        first, second = found.begin(0.0)
        found.end(first, {}, 0.0)
        assert go(found) == "n@h1"
        assert go(found) == ""
        found.end(second, {}, 0.0)
        if lost:
            found.drop("h2", lost=True)
            assert go(found) == ""
            assert held(found)["m@h1"].kind == "max_unavailable"
        else:
            assert [go(found), go(found)] == ["h1", "h2"]

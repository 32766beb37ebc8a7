"""Laws of plans as values: no host is changed here."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lab.applying import apply
from tests.lab.worlds import TOKEN, known
from tests.laws.journeys import OTHER_TOKEN, SECRET, Journey, journeys
from vmreconcile.agent.steps import FIELDS
from vmreconcile.core.planfile import confirm, parse, render
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.core.reports import apply_json, plan_json, status_json
from vmreconcile.model.desired import DesiredFleet
from vmreconcile.model.steps import from_json, to_json

LAWS = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
pytestmark = pytest.mark.slow
SECRETS = (TOKEN, OTHER_TOKEN, SECRET)


@LAWS
@given(journey=journeys(), prune=st.booleans(), seed=st.integers(0, 99))
def test_the_same_world_gives_the_same_plan(journey: Journey, seed: int, *, prune: bool) -> None:
    """Whatever order the wanted servers come in; and it is sorted."""
    there = journey.start()
    view, options = there.observe(), Options(known=known(there.tokens), prune=prune)
    plan = make_plan(there.desired, view, options)
    shuffled = list(there.desired.servers)
    random.Random(seed).shuffle(shuffled)
    other = make_plan(DesiredFleet(servers=tuple(shuffled)), view, options)
    assert other.changes == plan.changes
    assert list(plan.changes) == sorted(plan.changes, key=lambda change: change.server)


@LAWS
@given(journey=journeys(), prune=st.booleans())
def test_every_step_is_one_the_agent_knows(journey: Journey, *, prune: bool) -> None:
    """By name and by the kinds of its fields; and it survives JSON."""
    for change in journey.start().plan(prune=prune).changes:
        for step in (*change.stops, *change.steps):
            wire = json.loads(json.dumps(to_json(step)))
            for field, kinds in FIELDS[wire["step"]].items():
                assert isinstance(wire[field], kinds)
            assert from_json(wire) == step


@LAWS
@given(journey=journeys(), prune=st.booleans())
def test_a_plan_survives_its_file(journey: Journey, *, prune: bool) -> None:
    """What is carried out from a file is what was planned: actions, reasons, steps, gates."""
    there = journey.start()
    plan = there.plan(prune=prune)
    saved = parse(render(plan, there.desired, version="0", inventory="i"), "plan.json")
    found = confirm(saved, there.plan(prune=prune), there.desired)
    kept = ("server", "action", "reason", "phase", "disruptive", "stops", "steps", "early", "gate")
    assert [[getattr(change, name) for name in kept] for change in found.changes] == [
        [getattr(change, name) for name in kept] for change in plan.pending
    ]


@LAWS
@given(journey=journeys(), prune=st.booleans())
def test_a_pending_change_is_told_and_has_steps(journey: Journey, *, prune: bool) -> None:
    """Each has something to do; what is not pending does nothing; blocked ones say why and what to do."""
    for change in journey.start().plan(prune=prune).changes:
        assert change.pending == bool(change.stops or change.steps), change
        if change.action == "blocked":
            assert change.note
            assert change.remedy
        if change.disruptive:
            assert change.stops


@settings(LAWS, max_examples=60)
@given(journey=journeys(), prune=st.booleans())
def test_no_secret_is_anywhere_but_in_env_files_and_environments(journey: Journey, *, prune: bool) -> None:
    """Not in requests, answers, plans, plan files, reports, units, records, logs or argv."""
    there = journey.before()
    plan = there.plan(prune=prune)
    file = render(plan, there.desired, version="0", inventory="i")
    outcome = apply(there, plan)
    texts = [
        file,
        repr(plan),
        repr(outcome),
        json.dumps(plan_json(plan)),
        json.dumps(apply_json(outcome)),
        json.dumps(status_json(there.observe(), there.plan())),
    ]
    for host in there.hosts.values():
        texts += [
            json.dumps(host.requests),
            json.dumps(host.answers),
            json.dumps(host.done),
            json.dumps(host.kernel.logs),
        ]
        texts += [file.content for path, file in host.kernel.files.items() if not path.endswith(".env")]
        texts += [" ".join(process.argv) for process in host.kernel.processes.values()]
    for secret in SECRETS:
        assert not [text for text in texts if secret in text]

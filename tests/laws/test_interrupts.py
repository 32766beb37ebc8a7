"""Laws of rollouts that are cut short: by a first Ctrl-C, or by the loss of a host, at any request.

What served before serves afterwards, whichever settings it has, except on the host that was lost; budgets hold; the
next apply needs nobody's help.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.flows.test_going_back import dies_with
from tests.lab.applying import run_of, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import World, fleet, wanted
from tests.laws.test_rollouts import Watch, Watched
from vmreconcile.effects.fleet import Fleet
from vmreconcile.flows.execute import execute
from vmreconcile.model.desired import DesiredServer, Health, Hooks, Rollout
from vmreconcile.model.names import ServerId

pytestmark = pytest.mark.slow
LAWS = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
HOSTS = ("h1", "h2", "h3")
DEADLY = "8192"


@dataclass(slots=True)
class Blow:
    """Something that happens at the so-and-so-many-th request of a run."""

    at: int
    do: Callable[[], object]

    def count(self) -> None:
        """One request more."""
        self.at -= 1
        if self.at == 0:
            self.do()


@dataclass(slots=True)
class Struck(Watched):
    """A watched host whose requests are counted."""

    blow: Blow

    def request(self, payload: Any, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - a session's
        """Ask the host."""
        self.blow.count()
        return super(Struck, self).request(payload, **more)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[DesiredServer], list[DesiredServer]]:
    """Some models with replicas, and what is wanted of them then: other ports, other settings, good or deadly."""
    first: list[DesiredServer] = []
    then: list[DesiredServer] = []
    shift = draw(st.sampled_from((0, 1, -1, 10)))
    swap = draw(st.booleans())
    for at, name in enumerate(draw(st.sampled_from((("a",), ("a", "b"))))):
        rollout = Rollout(
            max_unavailable=draw(st.sampled_from((1, 1, 2, "50%"))),
            canary=draw(st.sampled_from((0, 1))),
            max_failures=draw(st.sampled_from((0, 1))),
        )
        hooks = draw(st.sampled_from((Hooks(), Hooks(), Hooks(before_stop="exit 0", after_ready="exit 0"))))
        base = wanted(
            f"{name}@h1",
            rollout=rollout,
            hooks=hooks,
            health=Health(startup_timeout=60.0, soak=0.0),
            args={"max_model_len": 4096},
        )
        length = draw(st.sampled_from(("4096", "2048", DEADLY)))
        for host in HOSTS:
            for replica in range(draw(st.sampled_from((1, 1, 2)))):
                server = ServerId(host=host, model=name, replica=replica)
                port = 8001 + 100 * at + replica
                first.append(replace(base, id=server, port=port))
                other = 8001 + 100 * (1 - at) + replica if swap else port + shift
                args = wanted(args={"max_model_len": int(length)}).settings
                then.append(replace(base, id=server, port=other, settings=args))
    return first, then


@LAWS
@given(wishes=fleets(), at=st.integers(1, 120), lost=st.sampled_from((None, None, *HOSTS)), slow=st.integers(0, 3))
def test_nobody_is_left_down(
    wishes: tuple[list[DesiredServer], list[DesiredServer]], at: int, lost: str | None, slow: int
) -> None:
    """Whoever served before, and whose host is still there, serves."""
    first, then = wishes
    there = World(fleet(*first), {name: FakeHost(name) for name in HOSTS}).settle()
    for host in there.hosts.values():
        host.kernel.behaviours |= dict.fromkeys((server.id.slug for server in first), Behaviour(ready_after=slow))
        dies_with(host, DEADLY)
    watch = Watch(there)
    for _ in range(slow + 1):
        there.observe()
    before = watch.up()
    assert before == {server.id for server in first}
    there.desired = fleet(*then)
    plan = there.plan()
    run = run_of(there)

    def strike() -> None:
        if lost is None:
            run.stopping.set()
        else:
            there.hosts[lost].unreachable = "no route to host"

    blow, seen = Blow(at, strike), run.fleet.open_host
    whole = Fleet(
        open_host=lambda name: Struck(seen(name), watch, blow),  # type: ignore[arg-type,return-value]  # a fake host
        looks=run.fleet.looks,
        salt=run.fleet.salt,
        forks=4,
    )
    outcome = execute(plan, replace(run, fleet=whole))
    assert lost or not watch.broken, watch.broken  # that a host is lost is heard of when it is asked next
    left = {server for server in before - watch.up() if server.host != lost}
    assert not left, (sorted(map(str, left)), statuses(outcome), [each.failure for each in outcome.results])
    if lost is not None:
        there.hosts[lost].unreachable = ""

"""Crash-only: an apply with every kind of step is killed at each step and request in turn; the next one converges."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator

import pytest

from tests.lab.applying import apply, statuses
from tests.lab.deaths import Death, doomed, moments
from tests.lab.fake_host import ControllerDied, FakeHost
from tests.lab.worlds import TOKEN, World, wanted, world
from tests.laws.test_apply import converged, strangers
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.outcome import Status
from vmreconcile.model.plan import Action, Reason
from vmreconcile.model.steps import STEPS

pytestmark = pytest.mark.slow

ROTATED = "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00"  # made up
LENGTH, LONGER = {"max_model_len": 4096}, {"max_model_len": 8192}


@pytest.fixture(autouse=True, scope="module")
def the_dead_do_not_complain() -> Iterator[None]:
    """A killed controller has no threads left that could tell of its death."""
    former = threading.excepthook

    def hook(told: threading.ExceptHookArgs) -> None:
        if not isinstance(told.exc_value, ControllerDied):
            former(told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", hook)
        yield


def server(name: str, port: int, **fields: object) -> DesiredServer:
    """A server that has no token, unless `fields` give it one."""
    return wanted(name, port=port, **{"token": None, "args": LENGTH, **fields})  # type: ignore[arg-type]


UNITS = (
    server("keep@units", 8001),
    server("tune@units", 8002),
    server("rotate@units", 8003, token="default"),
    server("deliver@units", 8004, token="default"),
    server("stop@units", 8005),
    server("drop@units", 8006),
    server("moved@units", 8007),
    server("left@units", 8008),
    server("right@units", 8009),
)
PLAIN = (
    server("keep@plain", 8001),
    server("tune@plain", 8002),
    server("rotate@plain", 8003, token="default"),
    server("orphaned@plain", 8004),
    server("stop@plain", 8005),
    server("drop@plain", 8006),
)
SHARE = {"gpu_memory_utilization": 0.5}
CARDS = (server("keep@cards", 8001, gpus=1), server("tune@cards", 8002, gpus=1, args=LENGTH | SHARE))
TOO_LONG = server("tune@cards", 8002, gpus=1, args={"max_model_len": 10**8} | SHARE)
"""No GPU has the memory for one request of that length, and the numbers were given by hand."""
THEN = (
    *UNITS[:1],
    server("tune@units", 8002, args=LONGER),
    server("rotate@units", 8003, token="default"),
    server("deliver@units", 8004, token="default", delivery="credential"),
    server("stop@units", 8005, state=DesiredState.STOPPED),
    server("moved@units", 8007, runtime="process"),
    server("left@units", 8009),
    server("right@units", 8008),
    server("new@units", 8010, prefetch=True),
    *PLAIN[:1],
    server("tune@plain", 8002, args=LONGER),
    server("rotate@plain", 8003, token="default"),
    server("orphaned@plain", 8004),
    server("stop@plain", 8005, state=DesiredState.ABSENT),
    server("new@user", 8001, token="default"),
    *CARDS[:1],
    server("tune@cards", 8002, gpus=1, args=LONGER | SHARE),
)


HOSTS = ("cards", "plain", "units", "user")


def made(name: str) -> FakeHost:
    """A host: as root with systemd, without systemd, as a user, with GPUs."""
    systemd, uid, gpus = None if name == "plain" else 252, 1000 if name == "user" else 0, 2 if name == "cards" else 0
    return FakeHost(name, systemd=systemd, uid=uid, gpus=gpus)


def settled(*names: str) -> World:
    """The first wish, come true on some hosts, with strangers beside the servers and a root that was killed since."""
    hosts = [made(name) for name in names]
    there = world(*(each for each in (*UNITS, *PLAIN, *CARDS) if each.id.host in names), hosts=hosts)
    assert set(statuses(apply(there)).values()) <= {"changed"}
    assert not there.plan().pending
    for host in hosts:
        host.stranger(9000)
        host.done.clear()
    if "plain" in names:
        there.hosts["plain"].kill_root("orphaned")
    there.tokens = {"default": ROTATED}
    return there.want(*(each for each in THEN if each.id.host in names))


def kept(there: World) -> dict[str, int]:
    """The processes that no plan is about."""
    return {name: pid for name, pid in there.pids().items() if name.startswith("keep@")}


def no_token_beside_its_files(there: World) -> None:
    """Tokens are in env files and token files of mode 0600 and in environments, and nowhere else."""
    for name, host in there.hosts.items():
        for path, file in host.kernel.files.items():
            if TOKEN in file.content or ROTATED in file.content:
                assert path.endswith((".env", ".token")), f"{name}:{path}"
                assert file.mode == 0o600, f"{name}:{path}"
        told = repr([*host.requests, *host.answers, *host.kernel.logs.values()])
        argv = repr([process.argv for process in host.kernel.processes.values()])
        assert TOKEN not in told + argv, name
        assert ROTATED not in told + argv, name


def killed_in_turn(start: World, death: Death, host: str) -> Iterator[World]:
    """The world after each death at a host that there can be in an apply: one earlier for each, until it ends first."""
    at = 0
    while True:
        there = copy.deepcopy(start)
        foreign, before, plan = strangers(there), kept(there), there.plan(prune=True)
        life = doomed(there, death, host, at)
        alive = set(threading.enumerate())
        with contextlib.suppress(ControllerDied):
            apply(there, plan, prune=True)
        for thread in set(threading.enumerate()) - alive:
            thread.join(30)  # else it would go on once there is life again
            assert not thread.is_alive()
        if not life.ended:
            assert at >= moments(there, host) > 5  # how often it is asked while it starts is a matter of time
            return
        assert (strangers(there), kept(there)) == (foreign, before)
        there.live(None)
        yield there
        assert (strangers(there), kept(there)) == (foreign, before)
        no_token_beside_its_files(there)
        at += 1


def converges(there: World) -> None:
    """One apply does all that is left to do, and then there is nothing."""
    outcome = apply(there, prune=True)
    assert [each for each in outcome.results if each.status not in {Status.CHANGED, Status.OK}] == []
    converged(there, there.plan(prune=True))
    assert TOKEN not in repr(outcome)
    assert ROTATED not in repr(outcome)


def test_the_plan_holds_every_kind_of_step() -> None:
    """What the deaths below happen in: every action, moves of runtime and of ports, every step that there is."""
    there = settled(*HOSTS)
    plan = there.plan(prune=True)
    reasons = {change.reason for change in plan.pending}
    assert {change.action for change in plan.pending} == set(Action) - {Action.NOOP, Action.BLOCKED}
    assert {Reason.RUNTIME_CHANGED, Reason.PORT_CHANGED, Reason.TOKEN_CHANGED, Reason.ROOT_DIED} <= reasons
    assert any(change.early for change in plan.pending)
    apply(there, plan)
    assert {step["step"] for host in there.hosts.values() for step in host.done} == set(STEPS)
    assert there.hosts["units"].fetched


@pytest.mark.parametrize("death", Death, ids=lambda death: death.value)
@pytest.mark.parametrize("host", HOSTS)
def test_killed_at_each_moment_in_turn(death: Death, host: str) -> None:
    """After every step of a host, carried out by an agent that goes on or not; before and after every request."""
    beside = "user" if host == "cards" else "cards"
    for there in killed_in_turn(settled(host, beside), death, host):
        converges(there)


@pytest.mark.parametrize("death", Death, ids=lambda death: death.value)
def test_killed_at_each_moment_of_a_retune_that_fails(death: Death) -> None:
    """Whatever was done by then, and undone: once a wish that can come true is said, the next apply converges."""
    start = settled("cards")
    start.want(CARDS[0], TOO_LONG)
    for there in killed_in_turn(start, death, "cards"):
        converges(there.want(*CARDS))
    there = copy.deepcopy(start)
    assert statuses(apply(there))["tune@cards"] in {"failed", "rolled_back"}

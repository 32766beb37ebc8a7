"""How long requests may take before a stop, what vLLM is told of it, and what a stop gives what runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.fake_host import FakeHost
from tests.lab.worlds import World, only, wanted, world
from vmreconcile.core.draining import drain_of, with_drain
from vmreconcile.errors import Place
from vmreconcile.model.desired import DesiredServer, Hooks, Rollout
from vmreconcile.model.plan import Action, Change
from vmreconcile.model.steps import StopProcess, StopUnit, Systemctl, WriteFile
from vmreconcile.model.values import JsonValue, Origin, OriginKind
from vmreconcile.vllm.catalogue import catalogue_for
from vmreconcile.vllm.draining import shutdown_timeout_of

HOOKED = Hooks(before_stop="lb out")
WITHOUT = replace(
    catalogue_for(None),
    arguments={name: each for name, each in catalogue_for(None).arguments.items() if name != "shutdown_timeout"},
)
BOTH = pytest.mark.parametrize("systemd", [252, None])


def given(server: DesiredServer) -> JsonValue:
    """What vLLM is told; None: nothing."""
    setting = with_drain(server, catalogue_for(None)).settings.get("shutdown_timeout")
    return setting.value if setting else None


@pytest.mark.parametrize(
    ("drain", "hooks", "seconds"),
    [
        (None, Hooks(), 0),
        (None, HOOKED, 30),
        (None, Hooks(after_ready="lb in"), 0),
        (0.0, HOOKED, 0),
        (7.2, Hooks(), 7.2),
    ],
)
def test_how_long_requests_may_take(drain: float | None, hooks: Hooks, seconds: float) -> None:
    """As said; 30 s with a hook that takes the server out; else not at all. vLLM gets whole seconds, rounded up."""
    server = wanted(rollout=Rollout(drain=drain), hooks=hooks)
    assert drain_of(server) == seconds
    assert given(server) == ({7.2: 8, 30: 30}.get(seconds))


def test_what_somebody_set_stays() -> None:
    """Zero, too, which is how a person says that vLLM is not to wait."""
    assert given(wanted(args={"shutdown_timeout": 0}, hooks=HOOKED)) == 0
    assert given(wanted(args={"shutdown_timeout": 90}, hooks=HOOKED)) == 90


def test_a_version_without_the_argument_gets_none() -> None:
    """It would not start with it."""
    assert "shutdown_timeout" not in with_drain(wanted(hooks=HOOKED), WITHOUT).settings


def test_its_origin_is_told() -> None:
    """The tool's, where the drain or the hooks were written."""
    place = Origin(kind=OriginKind.MODEL, place=Place(file="models.d/m.yaml", line=7))
    server = wanted(rollout=Rollout(drain=5.0), origins={"rollout": place, "hooks": place})
    origin = with_drain(server, catalogue_for(None)).settings["shutdown_timeout"].origin
    assert (origin.kind, str(origin)) == (OriginKind.TOOL, "models.d/m.yaml:7 (rollout.drain)")
    hooked = replace(server, rollout=Rollout(), hooks=HOOKED)
    origin = with_drain(hooked, catalogue_for(None)).settings["shutdown_timeout"].origin
    assert str(origin) == "models.d/m.yaml:7 (rollout.drain is 30 s with hooks.before_stop)"


def test_a_hook_retunes_once() -> None:
    """The argument is new, so the server gets a new process once; then it is in sync."""
    there = world(wanted()).settle()
    there.change(lambda server: replace(server, hooks=HOOKED))
    change = only(there.plan())
    assert (change.action, change.disruptive) == (Action.RETUNE, True)
    (field,) = change.fields
    assert (field.path, field.before, field.after) == ("args.shutdown_timeout", 0, 30)
    assert "hooks.before_stop" in field.origin
    assert only(there.settle().plan()).action is Action.NOOP


def draining(there: World, seconds: int, *, systemd: bool) -> Change:
    """The change that asks for another `shutdown_timeout`."""
    change = only(
        there.change(
            lambda server: replace(server, settings=wanted(args={"shutdown_timeout": seconds}).settings)
        ).plan()
    )
    graces = {step.grace_s for step in change.stops if isinstance(step, StopUnit if systemd else StopProcess)}
    assert len(graces) == 1
    return change


def grace(change: Change) -> float:
    """Seconds until the second TERM of its stop."""
    (found,) = [step.grace_s for step in change.stops if isinstance(step, StopUnit | StopProcess)]
    return found


@BOTH
def test_a_stop_gives_what_runs_its_time(systemd: int | None) -> None:
    """By the command line that runs, not by the one that is wanted."""
    there = world(wanted(), systemd=systemd).settle()
    assert grace(draining(there, 40, systemd=bool(systemd))) == 15
    there.settle()
    assert grace(draining(there, 100, systemd=bool(systemd))) == 55
    there.settle()
    assert grace(draining(there, 0, systemd=bool(systemd))) == 115


def units(steps: tuple[object, ...]) -> list[str]:
    """What the unit files among steps say of stopping."""
    texts = [step.content for step in steps if isinstance(step, WriteFile)]
    return [
        "/".join(line for line in text.splitlines() if line.startswith(("KillMode", "TimeoutStop"))) for text in texts
    ]


def test_systemd_waits_as_long() -> None:
    """Longer than vLLM may take; what is written before the stop counts for the process that is stopped."""
    plain, long = "KillMode=control-group/TimeoutStopSec=60", "KillMode=mixed/TimeoutStopSec=100"
    there = world(wanted())
    assert units(only(there.plan()).steps) == [plain]
    there.settle()
    up = draining(there, 40, systemd=True)
    assert (units(up.stops), units(up.steps)) == ([long], [])
    there.settle()
    down = draining(there, 0, systemd=True)
    assert (units(down.stops), units(down.steps)) == ([long], [plain])
    verbs = [step.verb for step in down.steps if isinstance(step, Systemctl)]
    assert verbs.index("daemon-reload") < verbs.index("start")
    assert only(there.settle().plan()).action is Action.NOOP


def test_a_units_old_way_of_stopping_is_drift() -> None:
    """A unit of an older release is written anew, and its process goes on."""
    server = wanted(args={"shutdown_timeout": 40})
    there = world(server).settle()
    path = "/etc/systemd/system/vmreconcile-m.service"
    file = there.hosts["h1"].kernel.files[path]
    file.content = file.content.replace("TimeoutStopSec=100", "TimeoutStopSec=60")
    there.hosts["h1"].systemd.call("daemon-reload", "")
    change = only(there.plan())
    assert (change.action, change.disruptive) == (Action.RETUNE, False)
    assert [field.path for field in change.fields] == ["unit.TimeoutStopSec"]


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (("--shutdown-timeout", "40"), 40),
        (("--shutdown_timeout=7",), 7),
        ((), 0),
        (("--shutdown-timeout", "-3"), 0),
        (("--shutdown-timeout", "soon"), 0),
    ],
)
def test_what_runs_tells_its_own_time(words: tuple[str, ...], seconds: int) -> None:
    """In any spelling; what vLLM would refuse is none."""
    assert shutdown_timeout_of(("/usr/bin/python3", "/usr/local/bin/vllm", "serve", "m", *words)) == seconds


def test_no_vllm_has_no_time() -> None:
    """Another program's argument of that name means nothing."""
    assert shutdown_timeout_of(("/bin/other", "--shutdown-timeout", "40")) == 0
    assert FakeHost("h1").root("m") is None

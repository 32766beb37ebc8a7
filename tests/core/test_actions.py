"""What is done to one server in which situation: every row of docs/planning-behaviors.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmreconcile.core.actions import decide, decide_unclaimed, exists
from vmreconcile.core.diff import Drift
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.observed import EnvFile, ObservedServer, Phase, Process, Record, Unit, Worker
from vmreconcile.model.plan import Action, Field, Reason

RUNNING, STOPPED, ABSENT = DesiredState.RUNNING, DesiredState.STOPPED, DesiredState.ABSENT
PROCESS = Process(pid=812, start_ticks=8231, started_at=1.0, argv=("vllm", "serve", "m"))
UNIT = Unit(name="vmreconcile-m.service", active="active", sub="running", enabled="enabled")
WORKER = Worker(pid=900, start_ticks=8300)
DOCS = Path(__file__).parents[2] / "docs/planning-behaviors.md"


def server(**parts: object) -> ObservedServer:
    """What is there under the name m."""
    return ObservedServer(slug="m", **parts)  # type: ignore[arg-type]  # the fields of ObservedServer


def field(path: str) -> tuple[Field, ...]:
    """One field that differs."""
    return (Field(path=path, before=1, after=2),)


@pytest.mark.parametrize(
    ("observed", "phase", "reason"),
    [
        (server(), Phase.ABSENT, Reason.ABSENT),
        (server(unit=UNIT), Phase.STOPPED, Reason.STOPPED),
        (server(record=Record(state="running")), Phase.CRASHED, Reason.CRASHED),
        (server(orphans=(WORKER,)), Phase.CRASHED, Reason.ROOT_DIED),
        (server(orphans=(WORKER,), unit=UNIT), Phase.STOPPED, Reason.ROOT_DIED),
    ],
)
def test_what_does_not_run_is_started(observed: ObservedServer, phase: Phase, reason: Reason) -> None:
    """Wanted running, no process: a start, with the reason why there is none; nothing is taken down."""
    decision = decide(RUNNING, observed, phase, Drift())
    assert (decision.action, decision.reason, decision.disruptive) == (Action.START, reason, False)


def test_a_crash_tells_how_it_ended() -> None:
    """The note names the unit's last result and exit status."""
    unit = Unit(name="u", active="failed", sub="failed", result="exit-code", exit_code=2, restarts=5)
    decision = decide(RUNNING, server(unit=unit), Phase.CRASHED, Drift())
    assert decision.note == "the unit is failed (exit-code, exit status 2, 5 restarts)"
    assert decide(RUNNING, server(), Phase.CRASHED, Drift()).note == "its process is gone"


@pytest.mark.parametrize(
    ("drift", "phase", "expected"),
    [
        (Drift(settings=field("model")), Phase.READY, (Action.RETUNE, Reason.MODEL_CHANGED, True)),
        (Drift(settings=field("revision")), Phase.READY, (Action.RETUNE, Reason.MODEL_CHANGED, True)),
        (Drift(settings=field("port")), Phase.READY, (Action.RETUNE, Reason.PORT_CHANGED, True)),
        (Drift(settings=field("port") + field("args.seed")), Phase.READY, (Action.RETUNE, Reason.ARGS_CHANGED, True)),
        (Drift(settings=field("args.seed")), Phase.UNHEALTHY, (Action.RETUNE, Reason.ARGS_CHANGED, True)),
        (Drift(program=field("runtime")), Phase.READY, (Action.RESTART, Reason.RUNTIME_CHANGED, True)),
        (Drift(program=field("executable")), Phase.READY, (Action.RESTART, Reason.EXECUTABLE_CHANGED, True)),
        (Drift(environment=field("env.A")), Phase.READY, (Action.RESTART, Reason.ENV_CHANGED, True)),
        (Drift(token=field("hf_token")), Phase.READY, (Action.RESTART, Reason.TOKEN_CHANGED, True)),
        (Drift(version=field("vllm_version")), Phase.READY, (Action.RESTART, Reason.VERSION_CHANGED, True)),
        (Drift(), Phase.UNHEALTHY, (Action.RESTART, Reason.UNHEALTHY, True)),
        (Drift(files=field("unit.ExecStart")), Phase.READY, (Action.RETUNE, Reason.UNIT_CHANGED, False)),
        (Drift(files=field("env_file.mode")), Phase.READY, (Action.RETUNE, Reason.ENV_FILE_CHANGED, False)),
        (Drift(files=field("record")), Phase.READY, (Action.RETUNE, Reason.ENV_FILE_CHANGED, False)),
        (Drift(files=field("unit")), Phase.STARTING, (Action.RETUNE, Reason.UNIT_CHANGED, False)),
        (Drift(), Phase.STARTING, (Action.NOOP, Reason.STILL_STARTING, False)),
        (Drift(), Phase.READY, (Action.NOOP, Reason.IN_SYNC, False)),
    ],
)
def test_what_runs_is_kept_as_wanted(drift: Drift, phase: Phase, expected: tuple[Action, Reason, bool]) -> None:
    """Wanted running, a process is there: by what differs, settings before anything else."""
    decision = decide(RUNNING, server(process=PROCESS, unit=UNIT), phase, drift)
    assert (decision.action, decision.reason, decision.disruptive) == expected
    assert decision.fields == drift.fields


def test_all_that_the_process_differs_in_is_told() -> None:
    """A retune for one field names the others too: the restart mends them all, and the files follow from them."""
    drift = Drift(settings=field("args.seed"), token=field("hf_token"), files=field("unit.ExecStart"))
    decision = decide(RUNNING, server(process=PROCESS), Phase.READY, drift)
    assert [each.path for each in decision.fields] == ["args.seed", "hf_token"]


@pytest.mark.parametrize(
    ("observed", "phase", "disruptive"),
    [
        (server(process=PROCESS, unit=UNIT), Phase.READY, True),
        (server(process=PROCESS), Phase.STARTING, True),
        (server(orphans=(WORKER,)), Phase.CRASHED, False),
        (server(unit=Unit(name="u", active="inactive", enabled="enabled")), Phase.STOPPED, False),
        (server(unit=Unit(name="u", active="activating", sub="auto-restart")), Phase.CRASHED, False),
        (server(unit=Unit(name="u", active="failed", enabled="disabled")), Phase.CRASHED, False),
        (server(record=Record(runtime="process", state="running")), Phase.CRASHED, False),
    ],
)
def test_what_is_wanted_stopped_is_stopped(observed: ObservedServer, phase: Phase, *, disruptive: bool) -> None:
    """Stopped where it runs, would come back at the next boot, or ended by itself and shows as crashed."""
    decision = decide(STOPPED, observed, phase, Drift())
    assert (decision.action, decision.reason, decision.disruptive) == (
        Action.STOP,
        Reason.WANTED_STOPPED,
        disruptive,
    )


@pytest.mark.parametrize(
    "observed",
    [
        server(),
        server(unit=Unit(name="u", active="inactive", enabled="disabled")),
        server(record=Record(runtime="process", state="stopped")),
    ],
)
def test_what_is_stopped_stays_so(observed: ObservedServer) -> None:
    """Wanted stopped and stopped: nothing to do, whatever its files say."""
    phase = Phase.ABSENT if observed == server() else Phase.STOPPED
    decision = decide(STOPPED, observed, phase, Drift(files=field("unit")))
    assert (decision.action, decision.reason) == (Action.NOOP, Reason.IN_SYNC)


TRACES = [
    server(process=PROCESS),
    server(orphans=(WORKER,)),
    server(unit=UNIT),
    server(record=Record()),
    server(env_file=EnvFile(path="/e", mode=0o600, uid=0)),
]


@pytest.mark.parametrize("observed", TRACES)
def test_any_trace_of_an_absent_server_is_removed(observed: ObservedServer) -> None:
    """Wanted absent: a process, an orphan, a unit, a record or an env file alone is enough."""
    decision = decide(ABSENT, observed, Phase.STOPPED, Drift())
    assert exists(observed)
    assert (decision.action, decision.reason) == (Action.REMOVE, Reason.WANTED_ABSENT)
    assert decision.disruptive == (observed.process is not None)


def test_nothing_is_removed_where_nothing_is() -> None:
    """Wanted absent and absent."""
    assert not exists(server())
    assert decide(ABSENT, server(), Phase.ABSENT, Drift()).action is Action.NOOP


@pytest.mark.parametrize("observed", TRACES)
def test_unclaimed_servers_go_only_when_asked(observed: ObservedServer) -> None:
    """Without --prune they are shown with the way out; with it they are removed."""
    kept, gone = decide_unclaimed(observed, prune=False), decide_unclaimed(observed, prune=True)
    assert (kept.action, kept.reason, kept.disruptive) == (Action.NOOP, Reason.UNCLAIMED, False)
    assert "--prune" in kept.remedy
    assert (gone.action, gone.reason) == (Action.REMOVE, Reason.UNCLAIMED)


def test_every_reason_is_documented() -> None:
    """docs/planning-behaviors.md names exactly the reasons that there are."""
    rows = [line.split("|") for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    named = {cell.strip().strip("`") for row in rows for cell in row if cell.strip().startswith("`")}
    assert {reason.value for reason in Reason} == named & {reason.value for reason in Reason}
    assert {name for name in named if name.replace("_", "").isalpha() and name.islower()} <= {
        reason.value for reason in Reason
    }

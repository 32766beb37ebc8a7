"""Proof that an action is done: what counts as ready, and what is said of a start that fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.lab.applying import apply, run_of, statuses
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import World, only, wanted, world
from vmreconcile.core.gpus.applied import with_placed
from vmreconcile.errors import Place
from vmreconcile.flows.explaining import latest_start_of
from vmreconcile.model.desired import Health
from vmreconcile.model.gpus import Placed
from vmreconcile.model.observed import Phase
from vmreconcile.model.outcome import Failure, Outcome
from vmreconcile.model.plan import Action, Plan, Reason
from vmreconcile.model.tuning import Manner, Match, Rule

BOTH = pytest.mark.parametrize("systemd", [252, None])
NO_KV = (
    "(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] ValueError: No available memory for the cache blocks.",
    "RuntimeError: Engine core initialization failed. See root cause above.",
)

UNKNOWN = (
    "(APIServer pid=4) INFO 01-31 12:00:00 [utils.py:1] non-default args: {'model': 'org/model'}",
    "(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] EngineCore failed to start.",
    "(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] Traceback (most recent call last):",
    "(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] KeyError: 'frobnicate'",
    "Traceback (most recent call last):",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    "",
)
"""A failure that no signature knows, as vLLM 0.32 prints one."""


def failing(behaviour: Behaviour, *, timeout: float = 60.0, completion: bool = True, **options: object) -> World:
    """One server that behaves so."""
    health = Health(startup_timeout=timeout, completion=completion, soak=0.0)
    there = world(wanted(health=health), **options)
    there.hosts["h1"].kernel.behaviours["m"] = behaviour
    return there


def failure(outcome: Outcome) -> Failure:
    """Why the one server failed."""
    (result,) = outcome.results
    assert result.status == "failed"
    assert result.failure is not None
    return result.failure


@BOTH
def test_a_start_that_dies_is_told_with_its_cause(systemd: int | None) -> None:
    """Class, summary, the log line that shows it, and what to do; the last line of a log is never the cause."""
    found = failure(apply(failing(Behaviour(exit_code=1, log=NO_KV), systemd=systemd)))
    assert found.kind == "no_kv_memory"
    assert found.summary.startswith("m@h1 did not start: ")
    assert "No available memory for the cache blocks." in found.evidence
    assert "vmreconcile logs m@h1" in found.remedy


@BOTH
def test_a_start_that_dies_without_a_known_cause_shows_its_last_line(systemd: int | None) -> None:
    """The last words, and where to read more."""
    found = failure(apply(failing(Behaviour(exit_code=1, log=("first", "Segmentation fault", "")), systemd=systemd)))
    assert (found.kind, found.evidence) == ("died", "Segmentation fault")
    assert found.remedy.startswith("vmreconcile logs m@h1 ")


@BOTH
def test_the_error_above_the_generic_words_is_the_evidence(systemd: int | None) -> None:
    """Its own last words say nothing: the root's exception stands above them, whatever comes after."""
    found = failure(apply(failing(Behaviour(exit_code=1, log=UNKNOWN), systemd=systemd)))
    assert (found.kind, found.evidence) == ("died", "KeyError: 'frobnicate'")
    assert "m@h1 on host h1" in found.remedy


def test_what_a_tuning_rule_set_is_told_as_its() -> None:
    """The value that ran, the rule that set it, and the file that overrules it."""
    sets = {"gpu_memory_utilization": (Manner.AT_LEAST, 0.95)}
    place = Place(file="tuning.yaml", line=3)
    rule = Rule(name="much", match=Match(model="*"), sets=sets, reason="it needs it", place=place)
    there = world(wanted(rules=(rule,)))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(exit_code=1, log=NO_KV)
    found = failure(apply(there))
    assert "is 0.95, tuning.yaml:3 (rule much), another goes into models.d/m.yaml" in found.remedy


def test_a_unit_that_dies_is_not_started_for_ever() -> None:
    """It would go on trying: after the failure it is stopped and disabled, and the next plan starts it anew."""
    there = failing(Behaviour(exit_code=1, log=NO_KV))
    apply(there)
    unit = there.hosts["h1"].systemd.unit("vmreconcile-m.service")
    assert (unit.active, unit.enabled) == ("inactive", False)
    there.hosts["h1"].kernel.behaviours.clear()
    assert only(there.plan()).action is Action.START
    assert statuses(apply(there)) == {"m@h1": "changed"}


def test_arguments_that_vllm_refuses_are_told() -> None:
    """Exit status 2, and vLLM's own words."""
    there = world(wanted(args={"made_up": 1}))
    there.hosts["h1"].kernel.installed[""] = ("/usr/local/bin/vllm", "0.32.1")
    found = failure(apply(there))
    assert found.kind == "unknown_argument"
    assert "--made-up" in found.evidence


@BOTH
def test_a_wedged_server_is_not_ready(systemd: int | None) -> None:
    """/health says 200 and no completion comes: too late, said why, stopped and left stopped."""
    there = failing(Behaviour(completes=False), timeout=0.02, systemd=systemd)
    found = failure(apply(there))
    assert found.kind == "startup_timeout"
    assert "was not ready within 0.02 s: no completion: /v1/completions: no answer" in found.summary
    assert found.summary.endswith("; it never was good, and is left stopped")
    assert "left as it" not in found.remedy
    assert not there.pids()


def test_health_alone_is_enough_where_that_was_asked_for() -> None:
    """completion: false."""
    assert statuses(apply(failing(Behaviour(completes=False), completion=False))) == {"m@h1": "changed"}


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(ready_after=1e9), "not listening on port 8001"),
        (Behaviour(health=503), "/health answers 503"),
    ],
)
def test_a_server_that_is_late_is_told_as_it_was_seen_last(behaviour: Behaviour, words: str) -> None:
    """The remedy names the setting that gives it more time."""
    found = failure(apply(failing(behaviour, timeout=0.02)))
    assert found.summary == f"m@h1 was not ready within 0.02 s: {words}; it never was good, and is left stopped"
    assert "health.startup_timeout is not set in models.d/m.yaml; m@h1 on host h1" in found.remedy


def test_a_late_server_is_told_with_the_place_of_what_its_log_shows() -> None:
    """Still there, but its engine is gone: the cause, and the line that sets it."""
    there = world(wanted(args={"gpu_memory_utilization": 0.2}, health=Health(startup_timeout=0.02, soak=0.0)))
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(ready_after=1e9, log=NO_KV)
    found = failure(apply(there))
    assert found.kind == "no_kv_memory"
    assert "args.gpu_memory_utilization is 0.2, models.d/m.yaml:9" in found.remedy


@BOTH
def test_a_slow_start_is_waited_for(systemd: int | None) -> None:
    """Ready after some looks."""
    there = failing(Behaviour(ready_after=12), systemd=systemd)
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert there.hosts["h1"].kernel.now > 12


def test_a_start_that_dies_while_it_is_waited_for_is_noticed() -> None:
    """It is started again each time: the second start is the sign."""
    there = failing(Behaviour(ready_after=1e9))
    host = there.hosts["h1"]
    request, count = host.request, iter(range(1000))

    def dying(payload: dict[str, object], **options: object) -> object:
        if payload["do"] == "observe" and next(count) == 4:
            host.kernel.logs["m"].extend(NO_KV)
            host.kill_root("m")
        return request(payload, **options)  # type: ignore[arg-type]

    host.request = dying  # type: ignore[method-assign,assignment]
    assert failure(apply(there)).kind == "no_kv_memory"
    assert not there.pids()


def test_a_server_stopped_by_somebody_else_is_noticed() -> None:
    """While it is waited for, its unit is stopped on the host."""
    there = failing(Behaviour(ready_after=1e9))
    host = there.hosts["h1"]
    request, count = host.request, iter(range(1000))

    def stopped(payload: dict[str, object], **options: object) -> object:
        if payload["do"] == "observe" and next(count) == 4:
            host.systemd.call("stop", "vmreconcile-m.service")
        return request(payload, **options)  # type: ignore[arg-type]

    host.request = stopped  # type: ignore[method-assign,assignment]
    assert "its unit was stopped" in failure(apply(there)).summary


def test_a_server_that_came_up_different_is_failed() -> None:
    """A drop-in on the host changes its environment: it runs, and what still differs is named."""
    there = world(wanted(env={"VLLM_LOGGING_LEVEL": "INFO"}))
    host = there.hosts["h1"]
    start = host.kernel.start

    def other(slug: str, argv: tuple[str, ...], env: dict[str, str], **options: str) -> object:
        return start(slug, argv, {**env, "VLLM_LOGGING_LEVEL": "DEBUG"}, **options)

    host.kernel.start = other  # type: ignore[method-assign,assignment]
    found = failure(apply(there))
    assert found.kind == "still_differs"
    assert found.summary == "m@h1 runs, but still differs: env.VLLM_LOGGING_LEVEL (DEBUG instead of INFO)"


def decided(settings: dict[str, object], **args: object) -> tuple[World, Plan]:
    """A server whose number is left to the tool, and the plan as it is once these settings were decided for it."""
    placed = Placed(settings=settings, reasons=("shared",))  # type: ignore[arg-type]  # JSON values
    left_open = wanted(args={"gpu_memory_utilization": "auto", **args})
    there = world(with_placed(left_open, placed))
    plan = there.plan()
    there.want(left_open)
    return there, replace(plan, changes=tuple(replace(change, placed=placed) for change in plan.changes))


def test_a_server_is_compared_with_what_was_decided() -> None:
    """Not with `auto`, which is nobody's number."""
    there, plan = decided({"gpu_memory_utilization": 0.45})
    assert statuses(apply(there, plan)) == {"m@h1": "changed"}
    assert "0.45" in there.argv(there.desired.servers[0].id)
    there, plan = decided({"gpu_memory_utilization": 0.45})
    other = Placed(settings={"gpu_memory_utilization": 0.5})
    plan = replace(plan, changes=(replace(only(plan), placed=other),))
    found = failure(apply(there, plan))
    assert found.summary == "m@h1 runs, but still differs: args.gpu_memory_utilization (0.45 instead of 0.5)"


def test_a_number_of_the_tool_is_told_as_its() -> None:
    """With the file in which a person may write another."""
    there, plan = decided({"gpu_memory_utilization": 0.45})
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(exit_code=1, log=NO_KV)
    found = failure(apply(there, plan))
    assert "args.gpu_memory_utilization is 0.45, tool (shared), another goes into models.d/m.yaml" in found.remedy


def test_a_rule_about_gpus_holds_when_the_server_is_looked_at_again() -> None:
    """The proof sees the GPUs that the plan saw."""
    place = Place(file="tuning.yaml", line=3)
    sets = {"max_num_seqs": (Manner.DEFAULT, 8)}
    rule = Rule(name="small", match=Match(model="*", gpu="*H100*"), sets=sets, reason="it needs it", place=place)
    there = world(wanted(rules=(rule,)), gpus=1)
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert "--max-num-seqs" in there.argv(there.desired.servers[0].id)


def test_a_secret_that_still_differs_is_not_told() -> None:
    """Only that it does."""
    there = world(wanted())
    host = there.hosts["h1"]
    start = host.kernel.start

    def other(slug: str, argv: tuple[str, ...], env: dict[str, str], **options: str) -> object:
        return start(slug, argv, {**env, "HF_TOKEN": "hf_AnotherSecretTokenOfSomebody00"}, **options)

    host.kernel.start = other  # type: ignore[method-assign,assignment]
    found = failure(apply(there))
    assert found.kind == "still_differs"
    assert "hf_" not in found.summary.replace("hf_token", "")


def test_a_stop_that_swallows_the_first_term_still_ends() -> None:
    """As vLLM does while it starts."""
    there = failing(Behaviour(ready_after=1e9, swallows_term=True), systemd=None)
    there.settle()
    there.want()
    assert statuses(apply(there, prune=True)) == {"m@h1": "changed"}
    assert not there.pids()


def test_a_log_that_cannot_be_read_is_empty() -> None:
    """Evidence is an extra: its absence breaks no report."""
    there = world(wanted())
    assert latest_start_of(there.desired.servers[0].id, run_of(there).fleet) == []


def test_an_unhealthy_server_is_restarted_and_proven() -> None:
    """503 now; healthy after the restart."""
    there = world(wanted()).settle()
    root = there.hosts["h1"].root("m")
    assert root is not None
    root.behaviour = Behaviour(health=503)
    assert only(there.plan()).reason is Reason.UNHEALTHY
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert there.pids()["m@h1"] != root.pid


def test_a_file_mended_in_place_needs_no_wait_for_another_start() -> None:
    """A non-disruptive retune is proven too, with the same process."""
    there = world(wanted())
    apply(there)
    before = there.pids()
    there.hosts["h1"].kernel.files["/etc/vmreconcile/env/m.env"].mode = 0o644
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert there.pids() == before
    assert not there.plan().pending


@BOTH
def test_a_wedged_server_is_restarted_and_proven(systemd: int | None) -> None:
    """Healthy, and none of its requests moves: told in the plan, with what was seen."""
    there = world(wanted(), systemd=systemd).settle()
    root = there.hosts["h1"].root("m")
    assert root is not None
    root.behaviour = Behaviour(stalled_s=26.3)
    change = only(there.plan())
    assert (change.action, change.reason, change.phase) == (Action.RESTART, Reason.WEDGED, Phase.UNHEALTHY)
    assert [(field.path, field.before) for field in change.fields] == [("progress", "none for 26 s")]
    assert change.note == ("/health is 200, but no request moved for 26 s (1 running), nor was one token answered")
    assert change.disruptive
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert there.pids()["m@h1"] != root.pid
    assert not there.plan().pending

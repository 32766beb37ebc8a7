"""When a server counts as ready, from what is wanted and seen of it."""

from __future__ import annotations

import pytest

from tests.lab.worlds import wanted
from vmreconcile.core.gates import extension_of, gate_of, longest_wait, runner_of, served_names, startup_timeout
from vmreconcile.core.phases import phase_of
from vmreconcile.model.desired import Health
from vmreconcile.model.gpus import Figures, Measured, Placed
from vmreconcile.model.observed import ObservedServer, Phase, Process, Record
from vmreconcile.model.values import JsonValue

GB = 10**9
NOW = 100_000.0


def measured(weights: int) -> ObservedServer:
    """A server that was started before, with these bytes on each GPU."""
    figures = Figures(weights=weights)
    found = Measured(key="ab", gpu="H100", gpu_memory=80 * GB, vllm_version="0.32.0", utilization=0.9, figures=figures)
    return ObservedServer(slug="m", record=Record(measured=found))


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (None, ("org/model",)),
        ("chat", ("chat",)),
        (["chat", "gpt-4"], ("chat", "gpt-4")),
        ([], ("org/model",)),
    ],
)
def test_the_names_that_it_must_show(said: JsonValue, names: tuple[str, ...]) -> None:
    """Those that were given, else what stands on the command line: an id as well as a path."""
    settings = {} if said is None else {"served_model_name": said}
    assert gate_of(wanted(args=settings)).models == names
    assert served_names("/models/tiny", {}) == ("/models/tiny",)


@pytest.mark.parametrize(
    ("settings", "runner"),
    [
        ({}, ""),
        ({"runner": "auto", "convert": "none"}, ""),
        ({"runner": "pooling"}, "pooling"),
        ({"convert": "embed"}, "pooling"),
        ({"task": "classify"}, "pooling"),
        ({"task": "score"}, "pooling"),
        ({"runner": "generate"}, "generate"),
        ({"task": "generate"}, "generate"),
        ({"task": "transcription"}, ""),
    ],
)
def test_what_kind_of_model_the_settings_make(settings: dict[str, JsonValue], runner: str) -> None:
    """Only where they say it: vLLM looks at the model itself else."""
    assert runner_of(settings) == runner


def test_a_deadline_grows_with_the_weights() -> None:
    """10 s for each GB on all GPUs together, where nobody said how long; what was said stands."""
    server = wanted(health=Health())
    assert startup_timeout(server, None) == 900.0
    assert startup_timeout(server, 140 * GB) == 900.0 + 1400.0
    assert startup_timeout(wanted(health=Health(startup_timeout=60.0)), 140 * GB) == 60.0
    two = Placed(devices=("GPU-a", "GPU-b"), requested=(1, 1))
    once = gate_of(server, measured(70 * GB), two)
    assert (once.timeout, once.grows) == (2300.0, False)
    planned = Placed(devices=("GPU-a",), requested=(1,), least=Figures(beside=20 * GB))
    assert gate_of(server, measured(70 * GB), planned).timeout == 1100.0
    unknown = gate_of(server)
    assert (unknown.timeout, unknown.grows) == (900.0, True)
    assert not gate_of(wanted(health=Health(startup_timeout=60.0))).grows


@pytest.mark.parametrize(
    ("age", "written", "phase"),
    [
        (899.0, None, Phase.STARTING),
        (900.0, None, Phase.UNHEALTHY),
        (900.0, 224.0, Phase.STARTING),
        (900.0, 225.0, Phase.UNHEALTHY),
        (3599.0, 1.0, Phase.STARTING),
        (3600.0, 1.0, Phase.UNHEALTHY),
    ],
)
def test_a_start_that_another_run_still_waits_for_is_not_given_up(
    age: float, written: float | None, phase: Phase
) -> None:
    """Beyond its time a server whose log goes on is starting for as long as a run would wait for it."""
    process = Process(pid=1, start_ticks=1, started_at=NOW - age, argv=())
    server = ObservedServer(slug="m", process=process, log_written_at=None if written is None else NOW - written)
    assert phase_of(server, NOW, 900.0) is phase
    assert (extension_of(900.0), longest_wait(900.0)) == (225.0, 3600.0)

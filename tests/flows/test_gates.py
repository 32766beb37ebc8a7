"""The gate of a start: the right model, an answer by its task, a soak, and a deadline that moves with progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.lab.applying import Witness, apply, run_of, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import World, only, wanted, world
from vmreconcile.core.gates import gate_of
from vmreconcile.flows.execute import execute
from vmreconcile.flows.patience import Patience
from vmreconcile.model.desired import DesiredServer, Health
from vmreconcile.model.names import ServerId
from vmreconcile.model.outcome import Failure, Outcome
from vmreconcile.model.plan import Reason
from vmreconcile.vllm.memory.stored import Checkpoint, Tensor

BOTH = pytest.mark.parametrize("systemd", [252, None])
NO_KV = "ValueError: No available memory for the cache blocks."
SHARDS = "Loading safetensors checkpoint shards:  {}% Completed | 1/100 [00:03<00:03,  1.02it/s]"


def soaking(soak: float, **options: object) -> World:
    """One server that must stay up for `soak` seconds."""
    return world(wanted(health=Health(startup_timeout=60.0, soak=soak)), **options)


def failure(outcome: Outcome) -> Failure:
    """Why the one server failed."""
    (result,) = outcome.results
    assert result.status == "failed"
    assert result.failure is not None
    return result.failure


def after_gate(host: FakeHost, act: Callable[[], object], looks: int = 2) -> list[str]:
    """Do something at a look after the server has answered its completion; what was asked of the host."""
    request, asked = host.request, []  # type: ignore[var-annotated]

    def watched(payload: dict[str, object], **options: object) -> object:
        asked.append(str(payload["do"]))
        if "gate" in asked and asked[asked.index("gate") :].count("observe") == looks and asked[-1] == "observe":
            act()
        return request(payload, **options)  # type: ignore[arg-type]

    host.request = watched  # type: ignore[method-assign,assignment]
    return asked


@BOTH
def test_another_model_on_the_port_is_not_ready(systemd: int | None) -> None:
    """It fails at once, and both names are said; as any start that never was good it is left stopped."""
    there = world(wanted(args={"served_model_name": ["chat", "gpt"]}), systemd=systemd)
    there.hosts["h1"].kernel.behaviours["m"] = Behaviour(names=("other", "adapter"))
    found = failure(apply(there))
    assert found.kind == "wrong_model"
    assert found.summary.startswith("m@h1 answers as adapter, other, and should as chat, gpt; ")
    assert "vmreconcile show m@h1" in found.remedy
    assert not there.pids()


def test_adapters_stand_beside_the_model() -> None:
    """The wanted names must be among those that it shows, whatever else there is; one of them is asked."""
    there = world(wanted(args={"served_model_name": ["chat"]}))
    host = there.hosts["h1"]
    host.kernel.behaviours["m"] = Behaviour(names=("a-lora", "chat"))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    (asked,) = [request for request in host.requests if request["do"] == "gate"]
    assert (asked["model"], asked["runner"]) == ("chat", "")


def test_the_settings_say_which_question_comes_first() -> None:
    """A pooling model is asked for an embedding."""
    there = world(wanted(args={"runner": "pooling", "convert": "embed"}))
    assert statuses(apply(there)) == {"m@h1": "changed"}
    (asked,) = [request for request in there.hosts["h1"].requests if request["do"] == "gate"]
    assert (asked["model"], asked["runner"]) == ("org/model", "pooling")


@BOTH
def test_a_server_must_stay_up_for_its_soak(systemd: int | None) -> None:
    """It is looked at again and again until the time is over, and only then counts."""
    there = soaking(0.1, systemd=systemd)
    asked = after_gate(there.hosts["h1"], str)
    begun = time.monotonic()
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert time.monotonic() - begun >= 0.1
    assert asked[asked.index("gate") :].count("observe") > 3


@BOTH
def test_a_crash_within_the_soak_is_a_start_that_failed(systemd: int | None) -> None:
    """Explained from its log, and stopped for good."""
    there = soaking(5.0, systemd=systemd)
    host = there.hosts["h1"]

    def crash() -> None:
        host.kernel.logs["m"].append(NO_KV)
        host.kill_root("m")

    after_gate(host, crash)
    begun = time.monotonic()
    assert failure(apply(there)).kind == "no_kv_memory"
    assert time.monotonic() - begun < 2
    assert not there.pids()


def test_a_crash_within_the_soak_that_no_log_explains() -> None:
    """It is said that it was ready before."""
    there = soaking(5.0)
    after_gate(there.hosts["h1"], lambda: there.hosts["h1"].kill_root("m"))
    assert "just after it was ready" in failure(apply(there)).summary


def test_another_process_in_its_place_is_noticed() -> None:
    """Neither its unit nor a restart count tells: its pid does, as where somebody starts it by hand."""
    there = soaking(5.0, systemd=None)
    host = there.hosts["h1"]

    def replace() -> None:
        root = host.root("m")
        assert root is not None
        host.kernel.processes.pop(root.pid)
        host.kernel.processes[root.pid + 1000] = root
        root.pid += 1000
        host.kernel.files[f"{host.state}/servers/m.json"].content = host.kernel.files[
            f"{host.state}/servers/m.json"
        ].content.replace(f'"pid": {root.pid - 1000}', f'"pid": {root.pid}')

    after_gate(host, replace)
    assert "its process ended, and another was started" in failure(apply(there)).summary


def test_a_server_that_turns_ill_within_the_soak_must_pass_again() -> None:
    """503 for a moment: the gate is asked anew, and the soak begins anew."""
    there = soaking(0.05)
    host = there.hosts["h1"]

    def ill() -> None:
        root = host.root("m")
        assert root is not None
        root.behaviour = Behaviour(health=503)

    def well() -> None:
        root = host.root("m")
        assert root is not None
        root.behaviour = Behaviour()

    witness = Witness()
    witness.on_wait = well
    asked = after_gate(host, ill)
    assert statuses(execute(there.plan(), run_of(there, witness))) == {"m@h1": "changed"}
    assert asked.count("gate") >= 2
    assert ("m@h1", "/health answers 503, after it was ready") in witness.waited


def test_files_alone_need_no_soak() -> None:
    """The process was there all the time."""
    there = soaking(30.0)
    there.settle()
    there.hosts["h1"].kernel.files["/etc/vmreconcile/env/m.env"].mode = 0o644
    begun = time.monotonic()
    assert statuses(apply(there)) == {"m@h1": "changed"}
    assert time.monotonic() - begun < 5


def test_ctrl_c_ends_a_soak() -> None:
    """What runs is left, and the server is not called done."""
    there = soaking(30.0)
    run = run_of(there)
    after_gate(there.hosts["h1"], run.stopping.set)
    assert statuses(execute(there.plan(), run)) == {"m@h1": "skipped"}
    assert there.pids()


@dataclass(slots=True)
class Start:
    """A start that is waited for, by hand: `log` is what its log holds now."""

    server: DesiredServer
    witness: Witness = field(default_factory=Witness)
    files: Checkpoint | None = None
    there: World = field(init=False)
    patience: Patience = field(init=False)

    def __post_init__(self) -> None:
        """One server that loads for ever."""
        self.there = world(self.server)
        self.there.hosts["h1"].kernel.logs["m"] = []
        run = run_of(self.there, self.witness)
        object.__setattr__(run, "model_files", self._files)
        self.patience = Patience(wanted=self.server, gate=gate_of(self.server), run=run)

    @property
    def log(self) -> list[str]:
        """Lines of the log, to be added to."""
        return self.there.hosts["h1"].kernel.logs["m"]

    @property
    def reads(self) -> int:
        """How often the log was read."""
        return sum(request["do"] == "log" for request in self.there.hosts["h1"].requests)

    def _files(self, server: ServerId) -> Checkpoint | None:
        assert server == self.server.id
        return self.files


def test_a_start_without_progress_ends_at_its_deadline() -> None:
    """To the second; the log is not read in the first half of the time."""
    start = Start(wanted(health=Health(startup_timeout=100.0)))
    start.log.append(SHARDS.format(1))
    assert not any(start.patience.is_over(waited) for waited in range(50))
    assert start.reads == 0
    assert [waited for waited in range(50, 103) if start.patience.is_over(waited)] == [100, 101, 102]
    assert 5 < start.reads < 15
    assert start.witness.waited == []


def test_a_start_is_waited_for_while_its_log_goes_on() -> None:
    """A minute, at least, after the last progress; said once."""
    start = Start(wanted(health=Health(startup_timeout=100.0)))
    for waited in range(300):
        if waited <= 140 and waited % 10 == 0:
            start.log.append(SHARDS.format(waited // 10))
        if start.patience.is_over(waited):
            break
    assert 195 <= waited <= 210
    assert [line for _, line in start.witness.waited] == [
        "not ready after 106 s, but its log goes on: waited for up to 400 s"
    ]
    assert start.patience.deadline <= waited


def test_nobody_waits_for_ever() -> None:
    """Four times its time is the end, whatever the log shows."""
    start = Start(wanted(health=Health(startup_timeout=100.0)))
    for waited in range(1000):
        start.log.append(f"Model loading took 1.0 GiB memory and {waited} seconds")
        if start.patience.is_over(waited):
            break
    assert 400 <= waited <= 407


def test_files_that_are_read_at_the_deadline_give_more_time() -> None:
    """Nobody said how long: a model of 140 GB has 1400 s more; asked only where the time is up."""
    tensors = (Tensor(name="w", dtype="BF16", shape=(70, 10**9)),)
    start = Start(wanted(health=Health()), files=Checkpoint(config={}, tensors=tensors, source="tests"))
    over = [waited for waited in range(0, 2400, 10) if start.patience.is_over(float(waited))]
    assert over[0] == 2300
    assert [line for _, line in start.witness.waited] == [
        "not ready after 900 s; it has 2300 s, for its weights are large"
    ]


def test_what_a_person_wrote_does_not_grow() -> None:
    """Only progress moves it."""
    tensors = (Tensor(name="w", dtype="BF16", shape=(70, 10**9)),)
    start = Start(
        wanted(health=Health(startup_timeout=900.0)), files=Checkpoint(config={}, tensors=tensors, source="tests")
    )
    assert next(waited for waited in range(0, 1000, 10) if start.patience.is_over(float(waited))) == 900


def test_a_start_whose_log_goes_on_is_not_taken_for_dead() -> None:
    """What another run waits for beyond its time is still starting for the next plan, and is waited for by it."""
    there = world(wanted(health=Health(startup_timeout=60.0, soak=0.0)))
    host = there.hosts["h1"]
    host.kernel.behaviours["m"] = Behaviour(ready_after=150.0)
    there.settle()
    host.kernel.now += 100
    assert only(there.plan()).reason is Reason.UNHEALTHY
    host.kernel.log_times["m"] = host.kernel.now
    assert only(there.plan()).reason is Reason.STILL_STARTING
    before = there.pids()
    assert statuses(apply(there)) == {"m@h1": "ok"}
    assert there.pids() == before

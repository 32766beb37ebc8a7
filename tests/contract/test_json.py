"""The JSON that scripts rely on: exactly these keys, exactly these words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.lab.applying import apply
from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import World, wanted, world
from vmreconcile.core.gpus.figures import memory_json
from vmreconcile.core.reports import apply_json, diagnostics_json, plan_json, status_json
from vmreconcile.errors import Diagnostic, Place
from vmreconcile.model.desired import DesiredState
from vmreconcile.model.gpus import Figures, Measured
from vmreconcile.model.observed import Phase
from vmreconcile.model.outcome import Status
from vmreconcile.model.plan import Action, Reason

PLAN = {
    *("format_version", "summary", "changes", "servers", "placements", "strangers", "orphans", "unreachable"),
    *("diagnostics", "waves"),
}
WAVES = {"model", "waves", "canaries", "max_unavailable", "servers", "pause_seconds", "downtime"}
SUMMARY = {"start", "restart", "retune", "stop", "remove", "noop", "blocked", "unreachable"}
CHANGE = {"server", "host", "model", "action", "reason", "disruptive", "fields"}
FIELD = {"path", "before", "after"}
SERVER = {"server", "host", "action", "phase"}
PLACEMENT = {"server", "devices", "settings", "requested_bytes", "reasons"}
STRANGER = {"host", "pid", "port", "what"}
ORPHAN = {"host", "pid", "gpu_memory_bytes"}
UNREACHABLE = {"host", "reason"}
STATUS = {"format_version", "servers", "strangers", "orphans", "unreachable"}
STATUS_ROW = {
    *("server", "host", "model", "phase", "pid", "port", "gpus", "gpu_memory_bytes", "started_at", "vllm_version"),
    *("runtime", "drift", "memory"),
}
MEMORY = {"measured", "predicted", "utilization", "max_model_len", "gpu", "vllm_version"}
FIGURES = {"weights_bytes", "beside_bytes", "graph_bytes", "kv_bytes", "kv_tokens"}
APPLY = {"format_version", "changed", "ok", "failed", "unreachable", "results"}
RESULT = {"server", "action", "status", "seconds", "error"}
ERROR = {"class", "summary", "evidence", "remedy"}
PREDICTED = Measured(
    key="ff", gpu="NVIDIA L4", gpu_memory=1, vllm_version="0.32.0", utilization=0.9, predicted=Figures(weights=1)
)
ACTIONS = SUMMARY - {"unreachable"}
PHASES = {"absent", "stopped", "starting", "ready", "unhealthy", "crashed", "unknown"}
STATUSES = {"changed", "ok", "failed", "skipped", "rolled_back", "unreachable"}


@pytest.fixture(scope="module")
def busy() -> World:
    """A bit of everything: each action, a stranger, an orphan, a host that is away."""
    names = ("absent", "blocked", "gone", "noop", "orphaned", "restart", "retune", "stopped", "unclaimed")
    first = [wanted(f"{name}@h1", port=8001 + number) for number, name in enumerate(names)]
    first = [replace(server, runtime="process") if server.id.model == "orphaned" else server for server in first]
    host = FakeHost("h1", gpus=16)
    there = world(*(server for server in first if server.id.model not in {"absent", "blocked"}), hosts=[host]).settle()
    host.kill_root("orphaned")
    host.stranger(8002)
    sick = host.root("restart")
    assert sick is not None
    sick.behaviour = Behaviour(health=503)
    changed = {"gone": DesiredState.ABSENT, "stopped": DesiredState.STOPPED}
    then = [replace(server, state=changed.get(server.id.model, server.state)) for server in first]
    then = [replace(server, model="org/other") if server.id.model == "retune" else server for server in then]
    there.hosts["h2"] = FakeHost("h2")
    there.hosts["h2"].unreachable = "connection refused (10.0.0.2:22)"
    return there.want(*(server for server in then if server.id.model != "unclaimed"), wanted("away@h2"))


def test_plan_has_exactly_these_keys(busy: World) -> None:
    """On every level, with each kind of row there."""
    document = json.loads(json.dumps(plan_json(busy.plan())))
    assert set(document) == PLAN
    assert document["format_version"] == 1
    assert set(document["summary"]) == SUMMARY
    for name, keys in (
        *(("changes", CHANGE), ("servers", SERVER), ("strangers", STRANGER), ("orphans", ORPHAN)),
        *(("placements", PLACEMENT), ("unreachable", UNREACHABLE), ("waves", WAVES)),
    ):
        assert document[name], f"no {name} to look at"
        assert all(set(row) == keys for row in document[name]), name
    assert all(set(field) == FIELD for change in document["changes"] for field in change["fields"])


def test_plan_counts_and_lists_what_it_should(busy: World) -> None:
    """The summary is that of the servers; changes are what is not in sync."""
    document = json.loads(json.dumps(plan_json(busy.plan())))
    assert document["summary"] == {
        "start": 2,
        "restart": 1,
        "retune": 1,
        "stop": 1,
        "remove": 1,
        "noop": 2,
        "blocked": 1,
        "unreachable": 1,
    }
    assert {change["server"]: (change["action"], change["reason"]) for change in document["changes"]} == {
        "absent@h1": ("start", "absent"),
        "blocked@h1": ("blocked", "port_held"),
        "gone@h1": ("remove", "wanted_absent"),
        "orphaned@h1": ("start", "root_died"),
        "restart@h1": ("restart", "unhealthy"),
        "retune@h1": ("retune", "model_changed"),
        "stopped@h1": ("stop", "wanted_stopped"),
    }
    phases = {server["server"]: (server["action"], server["phase"]) for server in document["servers"]}
    assert phases["noop@h1"] == ("noop", "ready")
    assert phases["away@h2"] == ("noop", "unknown")
    assert phases["orphaned@h1"] == ("start", "crashed")
    assert len(phases) == 10
    assert document["unreachable"] == [{"host": "h2", "reason": "connection refused (10.0.0.2:22)"}]
    (change,) = [change for change in document["changes"] if change["server"] == "retune@h1"]
    assert (change["host"], change["model"], change["disruptive"]) == ("h1", "retune", True)
    assert change["fields"] == [{"path": "model", "before": "org/model", "after": "org/other"}]


def test_what_a_person_is_told_of_a_block_is_a_diagnostic(busy: World) -> None:
    """Who holds the port, and what to do."""
    document = plan_json(busy.plan())
    told = [row for row in document["diagnostics"] if isinstance(row, dict) and row["code"] == "port_held"]  # type: ignore[union-attr]
    assert len(told) == 1
    assert "port 8002 is held by pid" in str(told[0]["summary"])


def test_status_has_exactly_these_keys(busy: World) -> None:
    """A row for every server, away ones too."""
    document = json.loads(json.dumps(status_json(busy.observe(), busy.plan())))
    assert set(document) == STATUS
    assert all(set(row) == STATUS_ROW for row in document["servers"])
    assert {row["phase"] for row in document["servers"]} <= PHASES
    rows = {row["server"]: row for row in document["servers"]}
    assert (rows["noop@h1"]["port"], rows["noop@h1"]["vllm_version"], rows["noop@h1"]["runtime"]) == (
        8004,
        "0.32.0",
        "systemd",
    )
    assert rows["noop@h1"]["drift"] == []
    assert [field["path"] for field in rows["retune@h1"]["drift"]] == ["model"]
    assert (rows["away@h2"]["phase"], rows["away@h2"]["pid"]) == ("unknown", None)
    assert [len(rows["noop@h1"]["gpus"]), rows["noop@h1"]["gpu_memory_bytes"] > 70 << 30] == [1, True]


def test_memory_has_exactly_these_keys() -> None:
    """What a host's record holds of a start, measured and predicted alike; null before one was learned."""
    there = world(wanted(), hosts=[FakeHost("h1", gpus=1)])
    (row,) = json.loads(json.dumps(status_json(there.observe(), there.plan())))["servers"]
    assert row["memory"] is None
    (outcome,) = apply(there).results
    assert outcome.status is Status.CHANGED
    (row,) = json.loads(json.dumps(status_json(there.observe(), there.plan())))["servers"]
    assert set(row["memory"]) == MEMORY
    assert set(row["memory"]["measured"]) == FIGURES
    assert row["memory"]["predicted"] is None
    assert set(memory_json(PREDICTED)["predicted"]) == FIGURES  # type: ignore[index,arg-type]


def test_apply_has_exactly_these_keys() -> None:
    """Counts of servers, and one row each; an error only where there is one."""
    there = world(
        wanted("fails@h1", port=8001), wanted("m@h1", port=8002), wanted("m@h2"), wanted("blocked@h1", port=9)
    )
    there.hosts["h1"].kernel.behaviours["fails"] = Behaviour(exit_code=1, log=("Segmentation fault",))
    there.hosts["h1"].stranger(9)
    there.hosts["h2"].unreachable = "no route"
    document = json.loads(json.dumps(apply_json(apply(there))))
    assert set(document) == APPLY
    assert [document[name] for name in ("format_version", "changed", "ok", "failed", "unreachable")] == [1, 1, 0, 1, 1]
    rows = {row["server"]: row for row in document["results"]}
    assert all(set(row) == RESULT for row in rows.values())
    assert {name: row["status"] for name, row in rows.items()} == {
        "blocked@h1": "skipped",
        "fails@h1": "failed",
        "m@h1": "changed",
        "m@h2": "unreachable",
    }
    assert rows["m@h1"]["error"] is None
    assert set(rows["fails@h1"]["error"]) == ERROR
    assert rows["fails@h1"]["error"]["evidence"] == "Segmentation fault"
    assert all(row["seconds"] >= 0 for row in rows.values())


def test_words_are_the_contracts() -> None:
    """Actions, phases, statuses: closed sets; reasons in snake_case, each documented (tests/core/test_actions.py)."""
    assert {action.value for action in Action} == ACTIONS
    assert {phase.value for phase in Phase} == PHASES
    assert {status.value for status in Status} == STATUSES
    assert all(reason.value.replace("_", "").isalpha() and reason.value.islower() for reason in Reason)


def test_diagnostics_have_a_place() -> None:
    """Null where a line or column is not known."""
    problem = Diagnostic(place=Place(file="models.d/m.yaml", line=3), code="unknown-argument", summary="s")
    (row,) = json.loads(json.dumps(diagnostics_json([problem])))["diagnostics"]
    assert row == {
        "file": "models.d/m.yaml",
        "line": 3,
        "column": None,
        "severity": "error",
        "code": "unknown-argument",
        "summary": "s",
        "why": "",
        "remedy": "",
        "suggestion": "",
    }

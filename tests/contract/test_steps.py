"""The steps of a plan are the steps of the agent: same names, same fields, on both sides of the wire."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from tests.lab.fake_host import STEPS as FAKE_STEPS
from vmreconcile.agent import steps as agent
from vmreconcile.agent.systemd import VERBS
from vmreconcile.model.steps import (
    KEEP,
    STEPS,
    EndOrphans,
    SecretRef,
    Spawn,
    Systemctl,
    WriteEnv,
    WriteFile,
    from_json,
    to_json,
)

WIRE = (Path(__file__).parents[2] / "docs/wire.md").read_text(encoding="utf-8")
SAMPLES = (
    WriteFile(path="/p", content="ü\n", mode=0o600),
    WriteEnv(path="/p", entries=(("A", "1"), ("B", SecretRef(name="default")), ("C", KEEP))),
    WriteEnv(path="/p", entries=(), credential="only"),
    Systemctl(verb="start", unit="vmreconcile-m.service", scope="user"),
    EndOrphans(slug="m", processes=((1, 2), (3, 4))),
    Spawn(slug="m", argv=("/v", "serve"), cwd="/", env_path="/e", log_path="/l", record={"a": [1, None, {"b": True}]}),
)


def test_the_same_steps_everywhere() -> None:
    """Controller, agent, its table of fields, the host in memory, and the page."""
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", WIRE, re.MULTILINE))
    assert set(STEPS) == set(agent.FIELDS) == set(agent.registry()) == set(FAKE_STEPS) == documented


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_field_the_agent_needs_is_sent(name: str) -> None:
    """And is of a kind that it takes; fields it does not need have defaults or are optional to it."""
    ours = {field.name: field for field in fields(STEPS[name])}
    assert set(agent.FIELDS[name]) <= set(ours)
    for field in set(ours) - set(agent.FIELDS[name]):
        assert ours[field].default is not MISSING or field == "cwd"


@pytest.mark.parametrize("name", sorted(STEPS))
def test_fields_are_documented(name: str) -> None:
    """Each stands in the step's row of docs/wire.md."""
    (row,) = re.findall(rf"^\| `{name}` \|([^|]*)\|", WIRE, re.MULTILINE)
    for field in fields(STEPS[name]):
        assert field.name in row, f"{name}: {field.name} is not in docs/wire.md"


@pytest.mark.parametrize("step", SAMPLES, ids=lambda step: step.name)
def test_steps_survive_the_wire(step: WriteFile | WriteEnv) -> None:
    """Through JSON and back; the agent finds its fields of the right kinds."""
    wire = json.loads(json.dumps(to_json(step), ensure_ascii=True))
    assert from_json(wire) == step
    for field, kinds in agent.FIELDS[step.name].items():
        assert isinstance(wire[field], kinds)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"step": "rm -rf"},
        {"step": "write-file", "path": "/p", "content": "", "owner": "root"},
        {"step": "write-env", "path": "/p", "entries": [["A"]]},
        {"step": "write-env", "path": "/p", "entries": [["A", 5]]},
    ],
)
def test_unknown_steps_and_fields_are_refused(data: dict[str, object]) -> None:
    """A plan file of another version, or one that somebody wrote."""
    with pytest.raises((ValueError, TypeError)):
        from_json(data)  # type: ignore[arg-type]


def test_what_is_no_json_has_no_place_in_a_step() -> None:
    """Bytes, sets, secrets themselves."""
    with pytest.raises(TypeError):
        to_json(WriteFile(path="/p", content=b"x"))  # type: ignore[arg-type]


def test_verbs_are_the_agents() -> None:
    """Every verb that a runtime uses."""
    source = (Path(__file__).parents[2] / "vmreconcile/runtimes/systemd.py").read_text(encoding="utf-8")
    used = set(re.findall(r'verb="([a-z-]+)"', source))
    assert used
    assert used <= set(VERBS)

"""What tests on real hosts want of a model, as text, and the tool's documents as small values. Runs nothing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.command import Outcome

USUAL: dict[str, object] = {
    "model": "Qwen/Qwen2.5-0.5B-Instruct",
    "hosts": "all",
    "port": 8001,
    "hf_token": None,
    "args": {"max_model_len": 512},
    "health": {"startup_timeout": "60s", "soak": 0},
}


def model(**fields: object) -> str:
    """A model file's text: a small model on every host, port 8001, no token; `fields` over that."""
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in {**USUAL, **fields}.items())


def one_each(count: int = 3, **fields: object) -> dict[str, str]:
    """A model for each of the first hosts, `m1` on gpu1 and so on: no rollout makes one of them wait for another."""
    return {f"m{number}": model(hosts=f"gpu{number}", **fields) for number in range(1, count + 1)}


def changes(outcome: Outcome) -> dict[str, tuple[str, str, bool]]:
    """Action, reason and whether it is disruptive, by server, of everything that is not in sync."""
    return {row["server"]: (row["action"], row["reason"], row["disruptive"]) for row in outcome.json["changes"]}


def fields(outcome: Outcome, server: str) -> dict[str, tuple[object, object]]:
    """What differs of one server: path → (before, after)."""
    rows = [row for row in outcome.json["changes"] if row["server"] == server]
    return {field["path"]: (field["before"], field["after"]) for row in rows for field in row["fields"]}


def results(outcome: Outcome) -> dict[str, tuple[str, str]]:
    """Action and status by server, of an apply."""
    return {row["server"]: (row["action"], row["status"]) for row in outcome.json["results"]}


def errors(outcome: Outcome) -> dict[str, dict[str, str]]:
    """The error by server, of an apply."""
    return {row["server"]: row["error"] for row in outcome.json["results"] if row["error"]}


def phases(outcome: Outcome) -> dict[str, str]:
    """The phase by server, of a plan or a status."""
    return {row["server"]: row["phase"] for row in outcome.json["servers"]}

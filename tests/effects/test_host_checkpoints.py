"""The answer to `checkpoint`, whatever a host makes of it: whole and in form, or counted as not there."""

from __future__ import annotations

from typing import Any

import pytest

from vmreconcile.effects.host_checkpoints import expanded, host_checkpoints
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.memory.stored import Checkpoint, Tensor

CONFIG = {"model_type": "llama"}
ROW: list[JsonValue] = ["a.*.w", "BF16", [4, 8], [[[[0, 1], [7, 7]]]]]
WHERE = {"m": "h:/models/m", "n": "h:/models/n"}


def read(*rows: object) -> dict[str, Checkpoint]:
    """What is believed of an answer with these rows."""
    return host_checkpoints({"checkpoints": [*rows]}, WHERE)  # type: ignore[list-item]  # that is the point


def told(*tensors: object) -> tuple[Tensor, ...] | None:
    """The tensors that are believed of rows."""
    return read({"slug": "m", "config": CONFIG, "tensors": [*tensors]})["m"].tensors


def test_config_and_tensors_by_server() -> None:
    """Rows with boxes stand for each of their numbers; the tensors are sorted by name, as in a folder."""
    found = read(
        {"slug": "m", "config": CONFIG, "tensors": [ROW, ["Z", "F32", []]]},
        {"slug": "n", "config": CONFIG, "tensors": None},
    )
    names = ("Z", "a.0.w", "a.1.w", "a.7.w")
    shapes = ((), (4, 8), (4, 8), (4, 8))
    assert [(each.name, each.shape) for each in found["m"].tensors or ()] == list(zip(names, shapes, strict=True))
    assert [each.dtype for each in found["m"].tensors or ()] == ["F32", "BF16", "BF16", "BF16"]
    assert found["n"] == Checkpoint(config=CONFIG, tensors=None, source="h:/models/n")
    assert found["m"].source == "h:/models/m"


def test_boxes_are_every_combination() -> None:
    """Of the numbers of each star; several boxes stand beside each other."""
    rows: list[JsonValue] = [["l.*.e.*", "F32", [1], [[[[0, 0], [2, 2]], [[5, 6]]], [[[9, 9]], [[0, 0]]]]]]
    assert [each.name for each in expanded(rows)] == ["l.0.e.5", "l.0.e.6", "l.2.e.5", "l.2.e.6", "l.9.e.0"]


def test_a_star_without_boxes_is_a_star() -> None:
    """A name is what it is where nothing is said of numbers."""
    assert [each.name for each in expanded([["a.*.w", "F32", [1]]])] == ["a.*.w"]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"checkpoints": None},
        {"checkpoints": {"m": CONFIG}},
        {"checkpoints": [None, 5, [], {}, {"slug": 5, "config": CONFIG}, {"slug": "other", "config": CONFIG}]},
        {"checkpoints": [{"slug": "m", "config": None, "tensors": [ROW]}, {"slug": "n", "config": "{}"}]},
        {"checkpoints": [{"slug": "m", "config": {"a": "x" * (9 << 20)}}]},
    ],
)
def test_what_is_no_model_of_ours_is_left_out(answer: dict[str, Any]) -> None:
    """Nothing asked, nothing that fits, no config.json that one could bear."""
    assert host_checkpoints(answer, WHERE) == {}


@pytest.mark.parametrize(
    "row",
    [
        None,
        {},
        [],
        ["a"],
        ["a", "F32"],
        [5, "F32", [1]],
        ["a", None, [1]],
        ["a", "F32", "1"],
        ["a", "F32", [1.0]],
        ["a", "F32", [True]],
        ["a", "F32", [-1]],
        ["a", "F32", [1 << 40, 1 << 40]],
        ["a", "F32", [10**400]],
        ["a", "F32", [1] * 17],
        ["a", "F32", [1], [[]]],
        ["a", "F32", [1], [], 5],
        ["a.*", "F32", [1], None],
        ["a.*", "F32", [1], [None]],
        ["a.*", "F32", [1], [[]]],
        ["a.*", "F32", [1], [[[]]]],
        ["a.*", "F32", [1], [[[[0, 1]], [[0, 1]]]]],
        ["a.*", "F32", [1], [[[[1, 0]]]]],
        ["a.*", "F32", [1], [[[[-1, 0]]]]],
        ["a.*", "F32", [1], [[[[0, 0.5]]]]],
        ["a.*", "F32", [1], [[[[0, 1, 2]]]]],
        ["a.*", "F32", [1], [[[[0, 999_999]]]]],
        ["a.*", "F32", [1], [[[[0, 10**12]]]]],
        ["a.*.*", "F32", [1], [[[[0, 999_999]] * 50, [[0, 999_999]] * 50]]],
        ["a.*.*", "F32", [1], [[[[0, 999_999]] * 50, []]]],
        ["a.*", "F32", [1], [[[[0, 1]]], [[[1, 2]]]]],
        ["a" * 600, "F32", [1]],
        ["good", "F32", [1]],
    ],
)
def test_tensors_out_of_form_are_none_at_all(row: object) -> None:
    """A part of them would be a wrong figure; the last row is a name that is there already."""
    assert told(["good", "F32", [1]]) is not None
    assert told(["good", "F32", [1]], row) is None


def test_no_more_than_any_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted before anything is made of it."""
    monkeypatch.setattr("vmreconcile.effects.host_checkpoints.MOST_TENSORS", 100)
    most = ["a.*", "U8", [1], [[[[0, 99]]]]]
    assert len(told(most) or ()) == 100
    assert told(most, ["b", "U8", [1]]) is None


def test_an_answer_without_tensors_has_none() -> None:
    """Not an empty list of them."""
    assert told() is None


def test_no_row_unfolds_into_gigabytes() -> None:
    """A short row may stand for many names, and for names as long as any, but not for both."""
    assert told(["x." * 200 + "*", "F32", [1], [[[[0, 999]]]]]) is not None
    assert told(["x." * 200 + "*", "F32", [1], [[[[0, 199_999]]]]]) is None


def test_no_config_is_deeper_than_anybody_can_look() -> None:
    """One at the edge of the stack was believed, and ended the plan where it was looked at from further down."""
    deep: JsonValue = {}
    for _ in range(60):
        deep = [deep]
    assert read({"slug": "m", "config": {"rope_scaling": {"rope_type": deep}}}) == {}

"""Which servers of a host go side by side, and in which order the others."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.lab.worlds import wanted
from vmreconcile.core.gpus.lanes import in_order, lanes, starts, uses_lane
from vmreconcile.model.desired import DesiredServer
from vmreconcile.model.gpus import Placed
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase
from vmreconcile.model.plan import Action, Change, Gate, Reason

GATE = Gate(address="127.0.0.1", port=1, timeout=1.0, completion=True)


def change(name: str, *gpus: str, action: Action = Action.START, **fields: Any) -> Change:  # noqa: ANN401 - a Change's
    """A change of a server on these GPUs; none are known where none are named."""
    usual: dict[str, Any] = {"reason": Reason.ABSENT, "phase": Phase.ABSENT, "gate": GATE}
    placed = Placed(devices=gpus) if gpus else None
    return Change(server=ServerId.parse(f"{name}@h"), action=action, placed=placed, **{**usual, **fields})


def apart(*changes: Change, servers: tuple[DesiredServer, ...] = ()) -> set[str]:
    """The pairs that share a lane, and so never start at once."""
    known = {server.id: server for server in servers}
    queue = in_order(changes, known)
    taken = dict(zip((each.server.model for each in queue), lanes(queue, known), strict=True))
    return {one + other for one, other in itertools.combinations(sorted(taken), 2) if taken[one] & taken[other]}


def test_disjoint_gpus_are_lanes_of_their_own() -> None:
    """Two GPUs, three servers."""
    assert apart(change("a", "G0"), change("b", "G1"), change("c", "G0")) == {"ac"}


def test_one_that_spans_gpus_shares_each() -> None:
    """Those on either of them go beside each other all the same."""
    spanning = change("z", "G0", "G1")
    assert apart(change("a", "G0"), change("b", "G1"), change("c", "G2"), spanning) == {"az", "bz"}


def test_servers_without_known_gpus_share_one_lane() -> None:
    """A host whose GPUs cannot be seen is taken as one GPU."""
    assert apart(change("a"), change("b"), change("c")) == {"ab", "ac", "bc"}


def test_one_that_may_take_any_gpu_goes_alone() -> None:
    """Nobody knows where it starts, so nothing starts beside it; one for the CPU, or that only waits, is no such."""
    assert apart(change("a", "G0"), change("b", "G1"), change("c")) == {"ac", "bc"}
    cpu = wanted("c@h", args={"device": "cpu"})
    assert apart(change("a", "G0"), change("b", "G1"), change("c"), servers=(cpu,)) == set()
    written = change("c", action=Action.RETUNE, phase=Phase.READY)
    assert apart(change("a", "G0"), change("b", "G1"), written) == set()


def test_the_order_within_a_lane() -> None:
    """What starts already, what gives up memory for others, what takes nothing down, the rest; each by priority."""
    down: dict[str, Any] = {"action": Action.RETUNE, "disruptive": True, "phase": Phase.READY}
    found = in_order(
        (
            change("a", "G0", **down),
            change("b", "G0"),
            change("c", "G0", **down, frees=True),
            change("d", "G0", action=Action.NOOP, reason=Reason.STILL_STARTING, phase=Phase.STARTING),
            change("e", action=Action.STOP, disruptive=True, gate=None),
            change("f", "G0"),
        ),
        {ServerId.parse("f@h"): wanted("f@h", priority=1)},
    )
    assert "".join(each.server.model for each in found) == "edcfba"


@pytest.mark.parametrize(
    ("action", "reason", "in_lane"),
    [
        (Action.START, Reason.ABSENT, True),
        (Action.RETUNE, Reason.ENV_FILE_CHANGED, True),
        (Action.NOOP, Reason.STILL_STARTING, True),
        (Action.NOOP, Reason.IN_SYNC, False),
        (Action.BLOCKED, Reason.PORT_HELD, False),
        (Action.STOP, Reason.WANTED_STOPPED, False),
        (Action.REMOVE, Reason.UNCLAIMED, False),
    ],
)
def test_what_begins_no_start_goes_before_all_lanes(action: Action, reason: Reason, in_lane: bool) -> None:  # noqa: FBT001 - a case
    """Stops and removals free something; the rest is only reported."""
    assert uses_lane(change("a", action=action, reason=reason)) == in_lane


def test_what_counts_as_a_start() -> None:
    """A new process with a gate: not a stop, and not a file that is written while the process goes on."""
    assert starts(change("a"))
    assert starts(change("a", action=Action.RESTART, disruptive=True))
    assert not starts(change("a", action=Action.RETUNE))
    assert not starts(change("a", action=Action.STOP, disruptive=True, gate=None))
    assert not starts(change("a", action=Action.BLOCKED, disruptive=True))

"""Holding a host for a run: what its servers are told where that cannot be, and Ctrl-C while it is waited for."""

from __future__ import annotations

from dataclasses import replace

from tests.lab.applying import Witness, run_of, statuses
from tests.lab.fake_lock import FakeSession
from tests.lab.worlds import World, wanted, world
from vmreconcile.flows.execute import execute
from vmreconcile.flows.locking import lock_host
from vmreconcile.model.outcome import Status

BOB: dict[str, object] = {"do": "lock", "owner": "bob@desk", "command": "vm stop m", "run": "b" * 32, "timeout": 0}


def held(there: World, host: str = "h1") -> FakeSession:
    """Another run that holds a host."""
    session = there.hosts[host].open()
    session.request(BOB, timeout=5.0)
    return session


def test_none_where_it_is_held_now_and_a_failure_where_it_is_not() -> None:
    """Idempotent; the failure names the holder and the way out."""
    there = world(wanted("m@h1"))
    run = run_of(there)
    assert lock_host("h1", run) is None
    assert lock_host("h1", run) is None
    run.fleet.close()
    held(there)
    failure = lock_host("h1", run)
    assert failure is not None
    assert failure.kind == "locked"
    assert "bob@desk" in failure.summary
    assert "vm stop m" in failure.summary
    assert "--lock-timeout" in failure.remedy


def test_ctrl_c_ends_the_waiting_for_a_lock() -> None:
    """At once; nothing was changed on that host, which is free for whoever comes, and others are as far as they are."""
    there = world(wanted("m@h1"), wanted("m@h2"))
    other = held(there)
    witness = Witness()
    run = replace(run_of(there, witness), lock_timeout=600.0)
    witness.on_queue = run.stopping.set
    outcome = execute(there.plan(), run)
    assert outcome.interrupted
    assert statuses(outcome)["m@h1"] == "skipped"
    (failure,) = [result.failure for result in outcome.results if str(result.server) == "m@h1"]
    assert failure is not None
    assert failure.kind == "interrupted"
    assert there.hosts["h1"].done == []
    assert there.hosts["h1"].run_lock.holder is other


def test_servers_in_sync_on_a_host_that_is_held_are_ok() -> None:
    """Only what would be changed is refused, and everybody is told of each server once."""
    there = world(wanted("a@h1", port=8001), wanted("b@h1", port=8002))
    execute(there.plan(), run_of(there))
    there.change(lambda server: replace(server, port=8003) if server.id.model == "b" else server)
    there.hosts["h1"].gone(there.hosts["h1"])
    held(there)
    witness = Witness()
    outcome = execute(there.plan(), run_of(there, witness))
    assert statuses(outcome) == {"a@h1": "ok", "b@h1": "skipped"}
    assert sorted((str(each.server), each.status) for each in witness.ended) == [
        ("a@h1", Status.OK),
        ("b@h1", Status.SKIPPED),
    ]

"""Whose is what, from values to values: only proof makes a process ours."""

from __future__ import annotations

from typing import Any

import pytest

from vmreconcile.agent.classify import Known, Verdict, classify, serve_index, within
from vmreconcile.agent.proc import Process

BOOT = "boot-1"
SERVE = ("/v/bin/python3", "/v/bin/vllm", "serve", "m")
RECORD = {"runtime": "process", "pid": 100, "start_ticks": 50, "boot_id": BOOT}
LOG = "/state/log/a.log"


def process(pid: int, ppid: int = 1, **fields: Any) -> Process:  # noqa: ANN401 - fields of a process
    """A process whose environment was read."""
    made = Process(pid, ppid, fields.pop("session", pid), fields.pop("start_ticks", pid))
    made.environ_seen, made.uid = True, 7
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def judge(*processes: Process, records: dict[str, Any] | None = None, units: Any = None) -> Verdict:  # noqa: ANN401 - slug to pair
    """Classify with server `a` known by default."""
    known = Known(BOOT, {"a": RECORD} if records is None else records, units or {}, {"a": LOG}, uid=7)
    return classify({one.pid: one for one in processes}, known)


ROOT: dict[str, Any] = {"argv": SERVE, "marker": "a", "start_ticks": 50}
ENGINE: dict[str, Any] = {
    "argv": ("VLLM::EngineCore",),
    "comm": "VLLM::EngineCor",
    "session": 100,
    "outputs": (LOG, LOG),
}


@pytest.mark.parametrize(
    ("argv", "index"),
    [
        (("/v/bin/python", "/v/bin/vllm", "serve", "m"), 3),
        (("python3.11", "-u", "-X", "dev", "/v/bin/vllm", "serve"), 6),
        (("vllm", "serve", "m"), 2),
        (("python", "-m", "vllm.entrypoints.openai.api_server", "--model", "m"), 3),
        (("python", "-m", "vllm.entrypoints.cli.main", "serve", "m"), 4),
        (("python", "/x/vllm/entrypoints/openai/api_server.py", "--model", "m"), 2),
        (("python", "-m", "vllm.entrypoints.cli.main", "bench"), 0),
        (("python", "-c", "vllm", "serve"), 0),
        (("python", "/v/bin/vllm", "bench", "serve"), 0),
        (("bash", "-c", "vllm serve m"), 0),
        (("ssh", "host", "vllm", "serve", "m"), 0),
        (("vim", "vllm", "serve"), 0),
        (("grep", "-r", "vllm serve"), 0),
        (("docker", "run", "image", "vllm", "serve", "m"), 0),
        (("sudo", "vllm", "serve", "m"), 0),
        (("tail", "-f", "/x/vllm", "serve"), 0),
        (("python", "-"), 0),
        (("python",), 0),
        (("",), 0),
        ((), 0),
    ],
)
def test_what_is_a_server(argv: tuple[str, ...], index: int) -> None:
    """A server's root by its command line; what merely mentions one is none."""
    assert serve_index(argv) == index


def test_ours_by_record_and_marker() -> None:
    """Both together are proof; its workers are its children."""
    verdict = judge(process(100, **ROOT), process(101, 100, **ENGINE))
    assert verdict.roots["a"].pid == 100
    assert [one.pid for one in verdict.children[100]] == [101]
    assert (verdict.strangers, verdict.orphans, verdict.loose) == ([], {}, [])


@pytest.mark.parametrize(
    ("fields", "records", "why"),
    [
        ({"marker": None}, None, "no marker of ours"),
        ({"start_ticks": 51}, None, "carries our marker for a, but the record names pid 100"),
        ({}, {}, "carries our marker for a, but no record of this boot names it"),
        ({}, {"a": {**RECORD, "boot_id": "boot-0"}}, "carries our marker for a, but no record of this boot names it"),
        ({}, {"a": {**RECORD, "pid": True}}, "carries our marker for a, but no record of this boot names it"),
        ({}, {"a": []}, "carries our marker for a, but no record of this boot names it"),
        ({"uid": 8}, None, "carries our marker for a, but belongs to uid 8"),
        ({"uid": -1}, None, "carries our marker for a, but belongs to uid -1"),
        ({"environ_seen": False, "marker": None}, None, "its environment cannot be read by us, so it cannot be ours"),
    ],
)
def test_anything_less_is_a_stranger(fields: dict[str, Any], records: dict[str, Any] | None, why: str) -> None:
    """A marker alone, a pid alone, another boot or garbage is no proof, and the reason is told."""
    verdict = judge(process(100, **{**ROOT, "session": 7, **fields}), records=records)
    assert verdict.roots == {}
    assert [(one.pid, reason) for one, reason in verdict.strangers] == [(100, why)]


def test_orphans_of_ours() -> None:
    """The session of a recorded root that is gone, with our log as output or our marker, is ours."""
    forked = process(102, 1, argv=SERVE, session=100, marker="a")
    verdict = judge(process(101, 1, **ENGINE), forked)
    assert [one.pid for one in verdict.orphans["a"]] == [101, 102]
    assert (verdict.strangers, verdict.loose) == ([], [])


@pytest.mark.parametrize(
    "fields",
    [{"session": 99}, {"start_ticks": 49}, {"outputs": ("/other.log",)}, {"outputs": ()}, {"uid": 8, "marker": "a"}],
)
def test_a_title_alone_makes_no_orphan_of_ours(fields: dict[str, Any]) -> None:
    """Another session, an earlier start, another output or another user: it belongs to nobody we know."""
    verdict = judge(process(101, 1, **{**ENGINE, **fields}))
    assert verdict.orphans == {}
    assert [one.pid for one in verdict.loose] == [101]


def test_a_session_number_that_was_given_again_is_not_ours() -> None:
    """The recorded pid leads somebody else's session now."""
    leader = process(100, 1, argv=("sleep",), start_ticks=900)
    verdict = judge(leader, process(101, 100, **{**ENGINE, "start_ticks": 901, "outputs": ()}))
    assert verdict.orphans == {}
    verdict = judge(leader, process(101, 100, **{**ENGINE, "start_ticks": 901}))
    assert verdict.orphans == {}


def test_a_zombie_root_is_gone() -> None:
    """A root that only waits to be reaped leaves orphans."""
    verdict = judge(process(100, state="Z", **ROOT), process(101, 100, **ENGINE))
    assert verdict.roots == {}
    assert [one.pid for one in verdict.orphans["a"]] == [101]


def test_a_unit_owns_its_control_group() -> None:
    """The main process with our marker is the root; everything else in there is its own, the host's other units not."""
    units = {"a": ("/system.slice/vmreconcile-a.service", 100)}
    group = {"cgroup": "/system.slice/vmreconcile-a.service"}
    wrapper = process(100, argv=("/bin/sh", "start"), marker="a", start_ticks=50, **group)
    inner = process(101, 100, argv=SERVE, marker="a", **group)
    engine = process(102, 101, argv=("VLLM::EngineCore",), cgroup=group["cgroup"] + "/sub")
    elsewhere = process(103, 1, argv=SERVE, marker="a", cgroup="/x/system.slice/vmreconcile-a.service")
    verdict = judge(wrapper, inner, engine, elsewhere, units=units, records={})
    assert verdict.roots["a"].pid in (100, 101)
    assert [one.pid for one, _ in verdict.strangers] == [103]
    assert 102 in [one.pid for one in verdict.children[verdict.roots["a"].pid]]


def test_forks_of_strangers_are_no_servers_of_their_own() -> None:
    """A fork that has not yet set its title is part of its parent; a stranger's workers are its own."""
    theirs = process(200, argv=SERVE)
    fork = process(201, 200, argv=SERVE, session=200)
    worker = process(202, 201, argv=("VLLM::Worker_TP0",), session=200)
    verdict = judge(theirs, fork, worker, records={})
    assert [one.pid for one, _ in verdict.strangers] == [200]
    assert [one.pid for one in verdict.children[200]] == [202]
    assert verdict.loose == []


def test_workers_of_a_living_program_are_no_orphans() -> None:
    """An engine inside somebody's own Python program has a parent; one handed to init has not."""
    program = process(300, 299, argv=("python", "batch.py"), comm="python")
    engine = process(301, 300, argv=("VLLM::EngineCore",))
    lost = process(302, 1, argv=("VLLM::EngineCore",))
    below = process(303, 302, argv=("VLLM::Worker_TP0",))
    verdict = judge(program, engine, lost, below, records={})
    assert [one.pid for one in verdict.loose] == [302, 303]


@pytest.mark.parametrize(
    ("cgroup", "unit", "inside"),
    [("/a/b", "/a/b", True), ("/a/b/c", "/a/b", True), ("/a/bc", "/a/b", False), ("/a", "", False), ("/a", "/", False)],
)
def test_within(cgroup: str, unit: str, *, inside: bool) -> None:
    """A control group is inside another by whole parts of its path."""
    assert within(cgroup, unit) is inside

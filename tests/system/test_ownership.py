"""What is ours and what is not: strangers, copied marks, servers that nobody wants, plan files. vLLM is simulated."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import wait_until
from tests.lab.served import pids, root, roots
from tests.lab.wanting import changes, errors, fields, model, phases, results

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.command import Cli, Outcome
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

RECORD = "/var/lib/vmreconcile/servers/tiny.json"


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool, with one model wanted on every host."""
    cli.inventory({"vllm_executable": simulated_vllm})
    cli.model("tiny", model())
    return cli


def by_hand(lab: Lab, host: Host, vllm: str, port: int, **env: str) -> int:
    """A vLLM that somebody started by hand, once it listens; its pid."""
    argv = [vllm, "serve", "somebody/else", "--host", "127.0.0.1", "--port", str(port)]
    pid = lab.start_by_hand(host, argv, env=env)
    wait_until(lambda: listens(host, port), 20, f"port {port} of {host.name}", pause=0.1)
    return pid


def listens(host: Host, port: int) -> bool:
    """Whether something listens on a port of a host."""
    return bool(host.exec(["ss", "-Hltn", f"sport = :{port}"]).stdout)


def not_its_own(host: Host) -> dict[int, int]:
    """Every process that somebody started by hand or the tool started: pid → when it started."""
    words = ("vllm", "VLLM", "http.server", "resource_tracker")
    return {one.pid: one.start for one in host.processes() if any(word in " ".join(one.argv) for word in words)}


def begun(host: Host, pid: int) -> int:
    """When a process started."""
    return next(one.start for one in host.processes() if one.pid == pid)


def strangers(outcome: Outcome) -> set[tuple[str, int, int]]:
    """Host, pid and port of every stranger."""
    return {(row["host"], row["pid"], row["port"]) for row in outcome.json["strangers"]}


def test_strangers_are_shown_and_never_touched(fleet: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str) -> None:
    """A vLLM or anything else on a wanted port blocks with its holder named; no command signals what is not ours."""
    gpu1, gpu2, gpu3 = hosts
    fleet.inventory({"vllm_executable": simulated_vllm}, {"gpu3": {"vllm_runtime": "process"}})
    held = by_hand(lab, gpu1, simulated_vllm, 8001, VMRECONCILE_SERVER="tiny")
    web = lab.start_by_hand(gpu2, [sys.executable, "-m", "http.server", "8001", "--bind", "127.0.0.1"])
    beside = by_hand(lab, gpu2, simulated_vllm, 9000)
    lonely = by_hand(lab, gpu2, simulated_vllm, 9002)
    gpu2.exec(["kill", "-9", str(lonely)])
    wait_until(lambda: listens(gpu2, 8001), 10, "the web server")
    wait_until(lambda: not gpu2.pids() & {lonely}, 5, "the root to be gone")
    strange = {host.name: not_its_own(host) for host in hosts}
    assert [len(found) for found in strange.values()] == [3, 6, 0]

    plan = fleet("plan", "--json")
    assert changes(plan) == {
        "tiny@gpu1": ("blocked", "port_held", False),
        "tiny@gpu2": ("blocked", "port_held", False),
        "tiny@gpu3": ("start", "absent", False),
    }
    notes = {note["summary"].partition(":")[0]: note["summary"] for note in plan.json["diagnostics"]}
    assert f"pid {held} (not ours: " in notes["tiny@gpu1"]
    assert "vllm serve somebody/else" in notes["tiny@gpu1"]
    assert f"pid {web} (not ours: " in notes["tiny@gpu2"]
    assert "http.server 8001" in notes["tiny@gpu2"]
    assert strangers(plan) == {("gpu1", held, 8001), ("gpu2", beside, 9000)}
    assert {row["host"] for row in plan.json["orphans"]} == {"gpu2"}, "an engine of nobody's"
    assert f"pid {held}" in fleet("plan").stdout

    applied = fleet("apply", "--json")
    assert applied.returncode == 1, applied
    assert results(applied) == {
        "tiny@gpu1": ("blocked", "skipped"),
        "tiny@gpu2": ("blocked", "skipped"),
        "tiny@gpu3": ("start", "changed"),
    }
    assert errors(applied)["tiny@gpu1"]["class"] == "port_held"
    assert str(held) in errors(applied)["tiny@gpu1"]["summary"]

    ours = root(gpu3)
    copied = by_hand(lab, gpu3, simulated_vllm, 9001, **ours.environ)
    strange["gpu3"] = {pid: start for pid, start in not_its_own(gpu3).items() if start >= begun(gpu3, copied)}
    assert ("gpu3", copied, 9001) in strangers(fleet("status", "--json"))
    for words in (
        ["restart", "tiny@gpu3"],
        ["restart", "tiny"],
        ["apply", "--prune"],
        ["stop", "tiny"],
        ["start", "tiny"],
    ):
        done = fleet(*words)
        assert done.returncode in (0, 1), done
    fleet.models(spare=model(state="absent", port=8009))
    done = fleet("apply", "--prune", "--json")
    assert done.returncode == 0, done
    assert set(phases(fleet("status", "--json")).values()) == {"absent"}
    assert {host.name: not_its_own(host) for host in hosts} == strange


def test_a_record_that_names_a_stranger_proves_nothing(
    fleet: Cli, lab: Lab, hosts: list[Host], simulated_vllm: str
) -> None:
    """The recorded pid is another process today, with our mark copied: a stranger, while ours is started anew."""
    (_, _, gpu3) = hosts
    fleet.model("tiny", model(hosts="gpu3", runtime="process"))
    assert fleet("apply").returncode == 0
    ours = root(gpu3)
    taken = by_hand(lab, gpu3, simulated_vllm, 9001, **ours.environ)
    gpu3.exec(["kill", str(ours.pid)])
    wait_until(lambda: not gpu3.pids() & {ours.pid}, 10, "our root to end")
    record = json.loads(gpu3.read(RECORD))
    assert record["pid"] == ours.pid
    gpu3.write(RECORD, json.dumps(record | {"pid": taken}), 0o600)
    plan = fleet("plan", "--json")
    assert changes(plan) == {"tiny@gpu3": ("start", "crashed", False)}
    assert strangers(plan) == {("gpu3", taken, 9001)}
    for words in (["stop", "--no-save", "tiny"], ["apply", "--prune"], ["restart", "tiny"]):
        done = fleet(*words)
        assert done.returncode == 0, done
    assert len(roots(gpu3)) == 2
    assert taken in {one.pid for one in roots(gpu3)}

    gpu3.exec(["rm", RECORD])
    lost = fleet("plan", "--json")
    assert changes(lost) == {"tiny@gpu3": ("blocked", "port_held", False)}, "without its record, nothing proves it ours"
    fleet.model("tiny", model(hosts="gpu3", runtime="process", state="absent"))
    assert fleet("apply").returncode == 0
    assert len(roots(gpu3)) == 2


def test_absent_and_unclaimed_servers_leave_nothing(fleet: Cli, hosts: list[Host]) -> None:
    """`state: absent` and --prune remove everything of ours, --limit narrows both, and nothing goes unasked."""
    fleet.model("other", model(port=8003, hosts="gpu1,gpu2", runtime="process"))
    first = fleet("apply", "--json")
    assert (first.returncode, first.json["changed"]) == (0, 5), first
    before = pids(hosts)

    fleet.model("tiny", model(state="absent"))
    plan = fleet("plan", "--json", "--limit", "gpu1")
    assert changes(plan) == {"tiny@gpu1": ("remove", "wanted_absent", True)}
    one = fleet("apply", "--json", "--limit", "gpu1")
    assert results(one) == {"tiny@gpu1": ("remove", "changed"), "other@gpu1": ("noop", "ok")}, one
    assert pids(hosts)["gpu2"] == before["gpu2"]
    assert [len(roots(host)) for host in hosts] == [1, 2, 1]
    assert phases(fleet("plan", "--json"))["tiny@gpu1"] == "absent"

    fleet.models(spare=model(state="absent", port=8009))
    left = fleet("plan", "--json")
    assert left.json["summary"]["noop"] == 4 + 3, left
    assert changes(left) == {}
    assert "--prune" in fleet("plan").stdout
    kept = fleet("apply", "--json")
    assert (kept.returncode, kept.json["changed"]) == (0, 0), kept
    assert [len(roots(host)) for host in hosts] == [1, 2, 1]
    some = fleet("apply", "--prune", "--json", "--limit", "!gpu2")
    assert some.returncode == 0, some
    assert [len(roots(host)) for host in hosts] == [0, 2, 0]
    assert left_of_ours(hosts[0]) == left_of_ours(hosts[2]) == []
    rest = fleet("apply", "--prune", "--json")
    assert results(rest)["tiny@gpu2"] == ("remove", "changed"), rest
    assert not any(host.pids("vllm") | host.pids("VLLM") for host in hosts)
    assert not left_of_ours(hosts[1])
    for host in (hosts[0], hosts[2]):  # looked at again since: the agent itself is cached
        assert {path.partition("/agent")[0] for path in left_of_ours(host)} <= {"var/lib/vmreconcile"}
    assert set(phases(fleet("status", "--json")).values()) == {"absent"}
    again = fleet("apply", "--prune", "--json")
    assert (again.returncode, again.json["changed"]) == (0, 0)


def left_of_ours(host: Host) -> list[str]:
    """Every file and folder with our name that was made on the host itself; a mark of removal is none."""
    found = [path for path in host.upper.rglob("*vmreconcile*") if not path.is_char_device()]
    names = [str(path.relative_to(host.upper)) for path in found]
    return [name for name in names if name != "var/tmp/vmreconcile-lab"]


def test_a_plan_file_is_carried_out_exactly(fleet: Cli, hosts: list[Host], tmp_path: Path) -> None:
    """It does what it says and no more; a server that moved since is refused with the field, the others are done."""
    gpu1, gpu2, gpu3 = hosts
    assert fleet("apply").returncode == 0
    fleet.model("tiny", model(args={"max_model_len": 1024}))
    made = fleet("plan", "-o", "plan.json")
    assert made.returncode == 0, made
    saved = fleet.folder / "plan.json"
    assert saved.stat().st_mode & 0o777 == 0o600
    fleet.model("later", model(port=8003))
    before = pids(hosts)
    gpu2.exec(["systemctl", "restart", "vmreconcile-tiny"])
    wait_until(lambda: phases(fleet("status", "--json"))["tiny@gpu2"] == "ready", 20, "tiny on gpu2", pause=0.2)
    moved = pids(hosts)
    applied = fleet("apply", "plan.json", "--json")
    assert applied.returncode == 1, applied
    assert results(applied) == {
        "tiny@gpu1": ("retune", "changed"),
        "tiny@gpu2": ("blocked", "skipped"),
        "tiny@gpu3": ("retune", "changed"),
    }
    error = errors(applied)["tiny@gpu2"]
    assert error["class"] == "plan_stale"
    assert "process.pid" in error["summary"]
    assert pids(hosts)["gpu2"] == moved["gpu2"]
    assert pids(hosts)["gpu1"] != before["gpu1"]
    assert all("1024" in root(host).argv for host in (gpu1, gpu3))
    stale = fleet("apply", "plan.json", "--json")
    assert {status for _, status in results(stale).values()} == {"skipped"}, stale

    fleet.models(tiny=model(args={"max_model_len": 2048}))
    assert fleet("plan", "-o", "plan.json").returncode == 0
    fleet.model("tiny", model(args={"max_model_len": 256}))
    other = fleet("apply", "plan.json", "--json")
    assert other.returncode == 1, other
    assert {error["class"] for error in errors(other).values()} == {"plan_stale"}

    text = saved.read_text()
    now = pids(hosts)
    for damaged in (text[:-40], "", "[]", '{"kind": "vmreconcile-plan"}', text.replace("write-env", "write-anything")):
        saved.write_text(damaged)
        refused = fleet("apply", "plan.json")
        assert refused.returncode in (5, 64), refused
        assert "plan.json" in refused.stderr, refused
    assert fleet("apply", "nowhere.json").returncode in (5, 64)
    saved.write_text(text)
    addresses = {"gpu1": {"ansible_host": gpu2.address}, "gpu2": {"ansible_host": gpu1.address}}
    vllm = json.loads((fleet.folder / "inventory/hosts.yaml").read_text())["all"]["children"]["gpu"]["vars"]
    fleet.inventory(vllm, addresses)
    swapped = fleet("apply", "plan.json")
    assert swapped.returncode in (5, 64), swapped
    assert "another inventory" in swapped.stderr
    assert pids(hosts) == now
    assert fields(fleet("plan", "--json", "--limit", "gpu3"), "tiny@gpu3")["args.max_model_len"] == (1024, 256)

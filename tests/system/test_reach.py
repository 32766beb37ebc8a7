"""Hosts that cannot be reached, or not quite: one that fails never holds up or harms the others."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import PASSWORD
from tests.lab.served import pids, root, roots, written
from tests.lab.wanting import model

if TYPE_CHECKING:
    from tests.lab.command import Cli, Outcome
    from tests.lab.hosts import Host, Lab

pytestmark = pytest.mark.system

MODEL = model(health={"startup_timeout": "30s", "soak": 0})

OLD_PYTHON = """#!{python}
import sys
sys.version_info = (3, 6, 15, "final", 0)
sys.version = "3.6.15 (a stand-in)"
sys.executable = "/usr/bin/python3"
at = sys.argv.index("-c")
code, sys.argv = sys.argv[at + 1], ["-c", *sys.argv[at + 2 :]]
exec(code)
"""


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool with one model wanted on all three hosts."""
    cli.inventory({"vllm_executable": simulated_vllm})
    cli.model("tiny", MODEL)
    return cli


@pytest.fixture
def old_python(lab: Lab) -> str:
    """An interpreter of Python 3.6: a real one where this machine has it, else one that passes itself off as that."""
    for found in sorted((Path.home() / ".pyenv/versions").glob("3.6.*/bin/python3.6")):
        return str(found)
    stand_in = lab.shared / "python3.6"
    stand_in.write_text(OLD_PYTHON.format(python=sys.executable))
    stand_in.chmod(0o755)
    return str(stand_in)


def reasons(outcome: Outcome) -> dict[str, str]:
    """Why each host is unreachable, from the document of `plan` or `status`."""
    return {row["host"]: row["reason"] for row in outcome.json["unreachable"]}


def statuses(outcome: Outcome) -> dict[str, str]:
    """What became of each host's server, from the document of `apply`."""
    return {row["server"].partition("@")[2]: row["status"] for row in outcome.json["results"]}


def test_unreachable_hosts_do_not_hold_up_the_others(fleet: Cli, hosts: list[Host]) -> None:
    """A pulled cable and a stopped sshd: the third host is done, exit 3; once back, a second apply finishes."""
    _, cut, refusing = hosts
    cut.link_down()
    refusing.stop_sshd()

    plan = fleet("plan", "--json", "--detailed-exitcode", "--timeout", "2")
    assert plan.returncode == 3, plan
    assert plan.json["summary"]["start"] == 1
    assert plan.json["summary"]["unreachable"] == 2
    told = reasons(plan)
    assert set(told) == {"gpu2", "gpu3"}
    assert "timed out" in told["gpu2"] or "no route" in told["gpu2"], told
    assert told["gpu3"] == f"connection refused ({refusing.address}:22)"

    first = fleet("apply", "--json", "--timeout", "2")
    assert first.returncode == 3, first
    assert statuses(first) == {"gpu1": "changed", "gpu2": "unreachable", "gpu3": "unreachable"}
    assert (first.json["changed"], first.json["failed"], first.json["unreachable"]) == (1, 0, 2)
    assert [len(roots(host)) for host in hosts] == [1, 0, 0]
    assert written(cut) == written(refusing) == []

    status = fleet("status", "--json", "--timeout", "2")
    assert status.returncode == 3, status
    assert {row["host"]: row["phase"] for row in status.json["servers"]} == {
        "gpu1": "ready",
        "gpu2": "unknown",
        "gpu3": "unknown",
    }

    cut.link_up()
    refusing.start_sshd()
    before = root(hosts[0])
    second = fleet("apply", "--json")
    assert second.returncode == 0, second
    assert statuses(second) == {"gpu1": "ok", "gpu2": "changed", "gpu3": "changed"}
    assert (root(hosts[0]).pid, root(hosts[0]).start) == (before.pid, before.start)
    assert [len(roots(host)) for host in hosts] == [1, 1, 1]


def test_a_silent_sshd_is_given_up_in_time(fleet: Cli, hosts: list[Host]) -> None:
    """A host that accepts connections and never speaks costs --timeout, not forever, and is told in words."""
    hosts[1].freeze_sshd()
    begun = time.monotonic()
    sound = fleet("plan", "--limit", "gpu1,gpu3")
    usual = time.monotonic() - begun
    begun = time.monotonic()
    plan = fleet("plan", "--timeout", "1")
    assert plan.returncode == 3, plan
    assert sound.returncode == 0, sound
    assert time.monotonic() - begun < 2 * usual + 5
    assert f"timed out after 1 s in the SSH handshake ({hosts[1].address}:22)" in plan.stdout
    assert plan.stdout.count("start") >= 2


def test_host_keys_unknown_accepted_and_changed(fleet: Cli, lab: Lab, hosts: list[Host]) -> None:
    """An unknown key is refused until it is accepted, and then recorded; a changed key is refused whatever is said."""
    _, unknown, changed = hosts
    known_hosts = fleet.home / ".ssh/known_hosts"
    changed.change_host_key()
    text = "".join(line for line in known_hosts.read_text().splitlines(keepends=True) if unknown.name not in line)
    known_hosts.write_text(text)

    refused = fleet("plan", "--json")
    assert refused.returncode == 3, refused
    told = reasons(refused)
    assert set(told) == {"gpu2", "gpu3"}
    assert "unknown host key SHA256:" in told["gpu2"]
    assert "host key has CHANGED" in told["gpu3"]
    spoken = fleet("plan")
    assert "--accept-new-host-keys" in spoken.stdout, spoken
    assert f"ssh-keygen -f {known_hosts} -R '{changed.address}'" in spoken.stdout
    assert known_hosts.read_text() == text

    accepting = fleet("plan", "--json", "--accept-new-host-keys")
    assert accepting.returncode == 3, accepting
    assert set(reasons(accepting)) == {"gpu3"}
    assert known_hosts.read_text().removeprefix(text).count("\n") == 1
    found = lab.run(["ssh-keygen", "-F", unknown.address, "-f", str(known_hosts)]).stdout.splitlines()[-1]
    assert found.split()[1:3] == unknown.host_key.split()[:2]  # the name is hashed where the person's ssh does that

    assert set(reasons(fleet("plan", "--json"))) == {"gpu3"}
    lab.trust(fleet.home)
    assert reasons(fleet("plan", "--json")) == {}


def test_hosts_without_a_python_that_serves(cli: Cli, hosts: list[Host], simulated_vllm: str, old_python: str) -> None:
    """No Python, or an old one alone: told as such, nothing written. An old one beside vLLM's own: vLLM's serves."""
    hosts[0].hide_python()
    hosts[1].only_python(old_python)
    hosts[2].only_python(old_python)
    cli.inventory({}, {"gpu3": {"vllm_executable": simulated_vllm}})
    cli.model("tiny", MODEL)

    done = cli("apply", "--json")
    assert done.returncode == 3, done
    assert statuses(done) == {"gpu1": "unreachable", "gpu2": "unreachable", "gpu3": "changed"}
    told = {row["server"].partition("@")[2]: row["error"] for row in done.json["results"]}
    assert told["gpu1"]["summary"] == "no Python there"
    assert told["gpu2"]["summary"] == "no Python 3.8 or newer there (found: 3.6.15 at /usr/bin/python3)"
    assert "ansible_python_interpreter" in told["gpu1"]["remedy"]
    assert "python3 (3.8 or newer)" in told["gpu2"]["remedy"]
    assert [len(roots(host)) for host in hosts] == [0, 0, 1]
    for host in hosts[:2]:
        assert not host.exists("/var/lib/vmreconcile")
        assert not host.exists("/etc/vmreconcile")
    assert cli("apply", "--json", "--limit", "gpu3").json["changed"] == 0


def test_sudo_refused_free_and_with_a_password(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """Who may not become root is told so in time and changes nothing; the others' servers are root's system units."""
    become = {"ansible_become": True}
    careful = {**become, "ansible_user": "careful"}

    def logins(**third: object) -> None:
        cli.inventory(
            {"vllm_executable": simulated_vllm},
            {
                "gpu1": {**become, "ansible_user": "operator"},
                "gpu2": {**careful, "ansible_become_password": PASSWORD},
                "gpu3": third,
            },
        )

    cli.model("tiny", MODEL)
    logins(**careful, ansible_become_password="not-the-password-at-all")
    begun = time.monotonic()
    done = cli("apply", "--json", "-vv")
    assert time.monotonic() - begun < 60
    assert done.returncode == 3, done
    assert statuses(done) == {"gpu1": "changed", "gpu2": "changed", "gpu3": "unreachable"}
    refused = next(row["error"] for row in done.json["results"] if row["status"] == "unreachable")
    assert refused["summary"] == "sudo refused the password"
    assert "ansible_become_password" in refused["remedy"]
    assert "not-the-password" not in str(done)
    assert PASSWORD not in str(done)
    for host in hosts[:2]:
        assert root(host).uid == 0
        assert host.exec(["systemctl", "is-active", "vmreconcile-tiny.service"]).stdout == "active\n"

    for third, reason in (
        (careful, "sudo needs a password"),
        ({**become, "ansible_user": "plain"}, "sudo needs a password"),
        ({**become, "ansible_user": "plain", "ansible_become_password": PASSWORD}, "sudo refused the password"),
    ):
        logins(**third)
        plan = cli("plan", "--json", "--limit", "gpu3")
        assert plan.returncode == 3, plan
        assert reasons(plan) == {"gpu3": reason}
    assert roots(hosts[2]) == []
    assert written(hosts[2]) == []

    logins(ansible_user="plain")
    before = pids(hosts[:2])
    own = cli("apply", "--json")
    assert own.returncode == 0, own
    assert statuses(own) == {"gpu1": "ok", "gpu2": "ok", "gpu3": "changed"}
    assert root(hosts[2]).uid == 2003
    assert pids(hosts[:2]) == before


def test_a_host_without_vllm_blocks_its_own_server_alone(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """Told with the way out; the next host is done, and exit 1 goes before the 3 of a third that is away."""
    hosts[2].stop_sshd()
    cli.inventory({"vllm_executable": simulated_vllm}, {"gpu2": {"vllm_executable": "/opt/nowhere/bin/vllm"}})
    cli.model("tiny", MODEL)
    plan = cli("plan", "--json", "--detailed-exitcode", "--timeout", "2")
    assert plan.returncode == 3, plan
    assert [(row["host"], row["action"], row["reason"]) for row in plan.json["changes"]] == [
        ("gpu1", "start", "absent"),
        ("gpu2", "blocked", "no_executable"),
    ]
    done = cli("apply", "--json", "--timeout", "2")
    assert done.returncode == 1, done
    assert statuses(done) == {"gpu1": "changed", "gpu2": "skipped", "gpu3": "unreachable"}
    blocked, away = (row["error"] for row in done.json["results"][1:])
    assert (blocked["class"], away["class"]) == ("no_executable", "unreachable")
    assert "/opt/nowhere/bin/vllm" in blocked["summary"]
    assert blocked["remedy"] == "install vLLM there, or set vllm_executable to its path"
    assert "tiny@gpu1: start (absent)" in done.stderr
    assert written(hosts[1]) == []

    spoken = cli("apply", "--timeout", "2")
    assert spoken.returncode == 1, spoken
    assert "/opt/nowhere/bin/vllm" in spoken.stdout
    assert f"connection refused ({hosts[2].address}:22)" in spoken.stdout
    assert "set vllm_executable to its path" in spoken.stdout

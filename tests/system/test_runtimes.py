"""Every way a server is kept running: system units, user units, plain processes, other folders. vLLM is simulated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.hosts import wait_until
from tests.lab.served import root, roots
from tests.lab.wanting import changes, errors, fields, model, phases, results

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.command import Cli
    from tests.lab.hosts import Host

pytestmark = pytest.mark.system

UNIT = "vmreconcile-tiny.service"
TOKEN = {"HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz01234567"}


NO_LINGER = """polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.freedesktop.login1.set-") == 0) { return polkit.Result.NO; }
});
"""


@pytest.fixture
def fleet(cli: Cli, simulated_vllm: str) -> Cli:
    """The tool with one model wanted; gpu1: user `operator` with sudo, gpu2: user `plain`, gpu3: root."""
    cli.inventory(
        {"vllm_executable": simulated_vllm},
        {
            "gpu1": {"ansible_user": "operator", "ansible_become": True},
            "gpu2": {"ansible_user": "plain"},
        },
    )
    cli.model("tiny", model())
    return cli


@pytest.fixture
def lingering(hosts: list[Host]) -> Iterator[None]:
    """Whatever the test does to the lingering of `plain` on gpu2, it lingers again afterwards."""
    yield
    hosts[1].shell("rm -f /etc/polkit-1/rules.d/00-lab.rules; loginctl enable-linger plain")
    wait_until(lambda: hosts[1].exists("/run/user/2003/systemd/private"), 10, "the user's manager")


def left_of_ours(host: Host) -> list[str]:
    """Every file and folder that was made on the host itself and has our name."""
    found = (str(path.relative_to(host.upper)) for path in host.upper.rglob("*vmreconcile*"))
    return [path for path in found if path != "var/tmp/vmreconcile-lab" and not is_hidden(host, path)]


def is_hidden(host: Host, path: str) -> bool:
    """Whether the host's own layer only says that this path is removed."""
    return (host.upper / path).is_char_device()


def linger(host: Host) -> bool:
    """Whether `plain` lingers."""
    return host.exists("/var/lib/systemd/linger/plain")


def test_system_units_by_sudo_and_user_units_without(fleet: Cli, hosts: list[Host]) -> None:
    """Root by sudo gets a system unit, an ordinary user a user unit; both are logged, outlive a reboot, and leave."""
    gpu1, gpu2, gpu3 = hosts
    first = fleet("apply", "--json")
    assert (first.returncode, first.json["changed"]) == (0, 3), first
    assert [root(host).uid for host in hosts] == [0, 2003, 0]
    assert root(gpu1).group.endswith(f"/system.slice/{UNIT}")
    assert f"/user@2003.service/app.slice/{UNIT}" in root(gpu2).group
    assert gpu2.exists(f"/home/plain/.config/systemd/user/{UNIT}")
    assert gpu1.read(f"/etc/systemd/system/{UNIT}") == gpu3.read(f"/etc/systemd/system/{UNIT}")
    assert not gpu1.exists("/home/operator/.config/vmreconcile")
    assert not gpu2.exists("/etc/vmreconcile")
    status = fleet("status", "--json")
    assert {row["runtime"] for row in status.json["servers"]} == {"systemd"}
    assert fleet("plan", "--detailed-exitcode").returncode == 0
    for host in ("gpu1", "gpu2"):
        shown = fleet("logs", f"tiny@{host}", "-n", "400")
        assert shown.returncode == 0, shown
        assert "Application startup complete." in shown.stdout, shown

    gpu2.exec(["kill", "-9", str(root(gpu2).pid)])
    mended = fleet("apply", "--json")
    assert (mended.returncode, mended.json["failed"]) == (0, 0), mended
    for host in (gpu1, gpu2):
        host.reboot()
    wait_until(lambda: set(phases(fleet("status", "--json")).values()) == {"ready"}, 30, "all of them", pause=0.3)
    quiet = fleet("plan", "--json", "--detailed-exitcode")
    assert quiet.returncode == 0, quiet

    fleet.model("tiny", model(state="absent"))
    gone = fleet("apply", "--json")
    assert {status for _, status in results(gone).values()} == {"changed"}, gone
    assert not any(roots(host) for host in hosts)
    assert [left_of_ours(host) for host in hosts] == [[], [], []]


@pytest.mark.usefixtures("lingering")
def test_lingering_is_switched_on_or_asked_for(fleet: Cli, hosts: list[Host]) -> None:
    """Without lingering, a user's units would end with the login: it is enabled, or the person told how."""
    (_, gpu2, _) = hosts
    fleet.model("tiny", model(hosts="gpu2"))
    gpu2.write("/etc/polkit-1/rules.d/00-lab.rules", NO_LINGER)
    gpu2.shell("chmod 0755 /etc/polkit-1/rules.d; loginctl disable-linger plain; systemctl restart polkit")
    refused = fleet("apply", "--json")
    assert refused.returncode == 1, refused
    error = errors(refused)["tiny@gpu2"]
    assert error["class"] == "linger_refused", refused
    assert "have root do: loginctl enable-linger plain" in error["summary"], refused
    assert not roots(gpu2)
    assert not linger(gpu2)
    gpu2.shell("rm /etc/polkit-1/rules.d/00-lab.rules; systemctl restart polkit")
    applied = fleet("apply", "--json")
    assert applied.returncode == 0, applied
    assert linger(gpu2)
    assert root(gpu2).uid == 2003
    assert fleet("plan", "--detailed-exitcode").returncode == 0


def test_plain_processes_and_changes_of_runtime(fleet: Cli, hosts: list[Host]) -> None:
    """Runtime `process` for root and for a user; then systemd, then back: one server each time, the former one gone."""
    gpu1, gpu2, gpu3 = hosts
    fleet.model("tiny", model(runtime="process", hf_token="default"))
    first = fleet("apply", "--json", env=TOKEN)
    assert (first.returncode, first.json["changed"]) == (0, 3), first
    before = [root(host) for host in hosts]
    assert [one.uid for one in before] == [0, 2003, 0]
    assert not any(UNIT in one.group for one in before)
    assert gpu2.exists("/home/plain/.local/state/vmreconcile/log/tiny.log")
    quiet = fleet("plan", "--json", "--detailed-exitcode", env=TOKEN)
    assert quiet.returncode == 0, quiet

    fleet.model("tiny", model(hf_token="default"))
    plan = fleet("plan", "--json")
    assert changes(plan) == {f"tiny@{host.name}": ("restart", "runtime_changed", True) for host in hosts}
    assert fields(plan, "tiny@gpu1") == {"runtime": ("process", "systemd")}
    second = fleet("apply", "--json")
    assert second.returncode == 0, second
    assert all(UNIT in root(host).group for host in hosts)
    assert all(root(host).environ["HF_TOKEN"] == TOKEN["HF_TOKEN"] for host in hosts), "kept without one here"
    shown = fleet("logs", "tiny@gpu1", "-n", "400")
    assert f"pid={root(gpu1).pid}" in shown.stdout, shown
    assert fleet("plan", "--detailed-exitcode").returncode == 0

    fleet.model("tiny", model(runtime="process", hf_token="default"))
    third = fleet("apply", "--json")
    assert third.returncode == 0, third
    assert not any(UNIT in root(host).group for host in hosts)
    assert not gpu1.exists(f"/etc/systemd/system/{UNIT}")
    assert not gpu1.exists(f"/etc/systemd/system/multi-user.target.wants/{UNIT}")
    assert not gpu2.exists(f"/home/plain/.config/systemd/user/{UNIT}")
    shown = fleet("logs", "tiny@gpu2", "-n", "400")
    assert f"pid={root(gpu2).pid}" in shown.stdout, shown
    assert fleet("plan", "--detailed-exitcode").returncode == 0

    fleet.model("tiny", model(state="absent"))
    assert fleet("apply").returncode == 0
    assert not any(roots(host) for host in hosts)
    assert not gpu2.exists("/home/plain/.local/state/vmreconcile")
    assert not gpu3.exists("/var/lib/vmreconcile")
    assert not gpu3.exists("/etc/vmreconcile")


def test_another_state_folder(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """With vllm_state_dir, everything but the unit is in that folder, its name however odd; and leaves it again."""
    gpu1, gpu2, _ = hosts
    folder = "/var/lib/vmreconcile state 50%"
    home = "/home/plain/.local/state/vmreconcile else"
    cli.inventory(
        {"vllm_executable": simulated_vllm, "vllm_state_dir": folder},
        {"gpu2": {"ansible_user": "plain", "vllm_state_dir": home}},
    )
    cli.models(
        tiny=model(hosts="gpu1,gpu2"),
        other=model(hosts="gpu1,gpu2", port=8003, runtime="process"),
    )
    first = cli("apply", "--json")
    assert (first.returncode, first.json["changed"]) == (0, 4), first
    assert len(roots(gpu1)) == len(roots(gpu2)) == 2
    assert gpu1.exists(f"{folder}/config/env/tiny.env")
    assert gpu1.exists(f"{folder}/state/servers/other.json")
    assert not gpu1.exists("/etc/vmreconcile")
    assert not gpu1.exists("/var/lib/vmreconcile")
    assert gpu2.exists(f"{home}/state/log/tiny.log")
    assert not gpu2.exists("/home/plain/.config/vmreconcile")
    shown = cli("logs", "tiny@gpu2")
    assert "Application startup complete." in shown.stdout, shown
    quiet = cli("plan", "--json", "--detailed-exitcode")
    assert quiet.returncode == 0, quiet
    cli.models(tiny=model(hosts="gpu1,gpu2", state="absent"))
    gone = cli("apply", "--prune", "--json", "--max-changes", "4")
    assert gone.returncode == 0, gone
    assert not roots(gpu1)
    assert gpu1.exec(["find", folder]).stdout.split("\n") == [folder, ""]
    assert gpu2.exec(["find", home]).stdout.split("\n") == [home, ""]


def test_doctor_foretells_the_limits_of_each_runtime(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """Before a server runs, the open files that it will have: in the system's units, in a user's, as a process."""
    plain, process = {"ansible_user": "plain"}, {"vllm_runtime": "process"}
    cli.inventory({"vllm_executable": simulated_vllm}, {"gpu2": plain, "gpu3": process})
    cli.model("tiny", model())
    said = cli("doctor", "--json")
    told = {check["host"]: check["summary"] for check in said.json["checks"] if check["check"] == "open_files"}
    assert told["gpu1"].startswith("systemd: ")
    assert told["gpu2"].startswith("systemd: ")
    assert told["gpu3"].startswith("process: ")
    assert cli("apply", "--json").returncode == 0
    for host in hosts:
        (row,) = [line for line in host.read(f"/proc/{root(host).pid}/limits").splitlines() if "open files" in line]
        assert row.split()[4] in told[host.name].split(), (row, told[host.name])

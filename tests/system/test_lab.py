"""The laboratory itself: that its hosts are real, and that each fault is what it says and ends when it should."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.disk import CHECKOUT, USERS
from tests.lab.hosts import PASSWORD, Host, Lab, wait_until
from tests.lab.proxy import Proxy
from tests.lab.space import ROOM, hierarchies

if TYPE_CHECKING:
    from tests.lab.command import Cli

pytestmark = pytest.mark.system


@pytest.mark.parametrize("user", [user.name for user in USERS])
def test_every_user_logs_in_on_every_host(lab: Lab, hosts: list[Host], user: str) -> None:
    """OpenSSH, strict about host keys, gets in everywhere as everyone, and each host is another one."""
    answers = [lab.ssh(host, "whoami; hostname; cat /etc/machine-id", user=user) for host in hosts]
    assert [answer.stdout.split()[:2] for answer in answers] == [[user, host.name] for host in hosts]
    assert len({answer.stdout.split()[2] for answer in answers}) == len(hosts)


def test_sudo_is_as_each_user_has_it(lab: Lab, hosts: list[Host]) -> None:
    """`operator` needs no password, `careful` needs the right one, `plain` gets nowhere."""
    host = hosts[0]
    assert lab.ssh(host, "sudo -n whoami", user="operator").stdout == "root\n"
    assert lab.ssh(host, "sudo -n whoami", user="careful").returncode == 1
    assert lab.ssh(host, "sudo -S -p '' whoami", user="careful", data=PASSWORD + "\n").stdout == "root\n"
    assert lab.ssh(host, "sudo -S -p '' whoami", user="careful", data="wrong\n").returncode == 1
    assert lab.ssh(host, "sudo -n whoami", user="plain").returncode == 1


def test_hosts_share_programs_and_nothing_private(lab: Lab, hosts: list[Host]) -> None:
    """A host runs this Python and sees this checkout; this machine's home, /tmp and processes it does not see."""
    host = hosts[0]
    marker = Path("/tmp") / f"lab-marker-{os.getpid()}"
    marker.touch()
    try:
        assert not host.exists(str(marker))
    finally:
        marker.unlink()
    for user in ("root", "plain"):
        program = f"{sys.executable} -c 'import sys; print(sys.version_info[:2])'; ls {CHECKOUT}/pyproject.toml"
        assert lab.ssh(host, program, user=user).stdout.splitlines() == [
            str(sys.version_info[:2]),
            f"{CHECKOUT}/pyproject.toml",
        ]
    assert not host.exists("/root/.cache")
    assert not any(argument == str(os.getpid()) for process in host.processes() for argument in process.argv)
    assert str(os.getpid()) not in {str(process.outer_pid) for process in host.processes()}


def test_shared_folder_is_at_the_same_path(lab: Lab, hosts: list[Host]) -> None:
    """What the test puts in the shared folder at any time, every host reads there."""
    (lab.shared / "word").write_text("hello")
    assert [host.read(f"{lab.shared}/word") for host in hosts] == ["hello"] * len(hosts)


def test_hosts_have_systemds_of_their_own(hosts: list[Host]) -> None:
    """A unit that is started on one host, with its control group, is on that host only, and ends as one."""
    one, other, _ = hosts
    one.write("/etc/systemd/system/vmreconcile-x.service", "[Service]\nExecStart=sh -c 'sleep 1001& sleep 1001'\n")
    one.shell("systemctl daemon-reload; systemctl start vmreconcile-x")
    wait_until(lambda: len(one.pids("1001")) == 3, 5, "three processes")
    assert other.pids("1001") == set()
    assert other.exec(["systemctl", "is-active", "ssh"]).stdout == "active\n"
    one.shell("systemctl stop vmreconcile-x")
    assert one.pids("1001") == set()


def test_user_units_run_without_a_login(lab: Lab, hosts: list[Host]) -> None:
    """The lingering user `plain` has a systemd from boot on, reachable over ssh, whose units outlive the login."""
    host = hosts[0]
    host.write(
        "/home/plain/.config/systemd/user/vmreconcile-u.service", "[Service]\nExecStart=/bin/sleep 1002\n", user="plain"
    )
    done = lab.ssh(host, "systemctl --user daemon-reload && systemctl --user start vmreconcile-u", user="plain")
    assert done.returncode == 0, done.stderr
    wait_until(lambda: host.pids("1002"), 5, "the unit")
    unit = next(process for process in host.processes() if "1002" in process.argv)
    assert unit.uid == 2003
    assert unit.group.endswith("/user@2003.service/app.slice/vmreconcile-u.service")


def test_reboot_keeps_files_and_address(lab: Lab, hosts: list[Host]) -> None:
    """After a reboot asked for over ssh: another boot, the same files, key and address, enabled units running."""
    host = hosts[0]
    before = host.read("/proc/sys/kernel/random/boot_id")
    host.write("/var/lib/vmreconcile/word", "kept", 0o600)
    host.write(
        "/etc/systemd/system/vmreconcile-r.service",
        "[Service]\nExecStart=/bin/sleep 1003\n[Install]\nWantedBy=multi-user.target\n",
    )
    host.shell("systemctl enable -q vmreconcile-r; touch /tmp/gone")
    host.reboot()
    assert host.read("/proc/sys/kernel/random/boot_id") != before
    assert lab.ssh(host, "cat /var/lib/vmreconcile/word").stdout == "kept"
    assert not host.exists("/tmp/gone")
    wait_until(lambda: len(host.pids("1003")) == 1, 5, "the enabled unit")


def test_a_reboot_from_within_comes_back(lab: Lab, hosts: list[Host]) -> None:
    """A host that somebody reboots comes back without the laboratory's doing."""
    host = hosts[1]
    before = host.pid
    lab.ssh(host, "systemctl --no-block reboot")
    wait_until(lambda: host.pid not in {0, before}, 30, "the reboot", pause=0.1)
    host.wait()
    assert lab.ssh(host, "hostname").stdout == "gpu2\n"


def test_power_cut(lab: Lab, hosts: list[Host]) -> None:
    """After a cut nothing of it runs; it comes back with its disk, and the next reset finds it sound."""
    host = hosts[2]
    host.write("/etc/vmreconcile/word", "kept")
    group = host.processes()[0].group
    host.kill()
    assert host.pid == 0
    assert not host.greets()
    assert not any(group.split("/payload")[0] in line for line in _groups_of_all_processes())
    host.start()
    host.wait()
    assert host.read("/etc/vmreconcile/word") == "kept"


def test_link_down_and_up(lab: Lab, hosts: list[Host]) -> None:
    """With its link down a host is silent while the others answer, and goes on where it was when it is up."""
    one, other, _ = hosts
    boot = one.read("/proc/sys/kernel/random/boot_id")
    one.link_down()
    assert not one.greets()
    assert other.greets()
    assert one.read("/proc/sys/kernel/random/boot_id") == boot
    one.link_up()
    assert lab.ssh(one, "cat /proc/sys/kernel/random/boot_id").stdout == boot


def test_stopped_sshd_refuses(lab: Lab, hosts: list[Host]) -> None:
    """Without sshd the connection is refused at once."""
    hosts[0].stop_sshd()
    with lab.network(), pytest.raises(ConnectionRefusedError):
        socket.create_connection((hosts[0].address, 22), timeout=2)
    hosts[0].start_sshd()
    assert lab.ssh(hosts[0], "true").returncode == 0


def test_frozen_sshd_accepts_and_says_nothing(lab: Lab, hosts: list[Host]) -> None:
    """The connection opens, and no byte comes."""
    hosts[0].freeze_sshd()
    with lab.network(), socket.create_connection((hosts[0].address, 22), timeout=2) as connection:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    hosts[0].thaw_sshd()
    assert lab.ssh(hosts[0], "true").returncode == 0


def test_changed_host_key_is_noticed(lab: Lab, hosts: list[Host]) -> None:
    """A strict client refuses the new key until it is made known."""
    hosts[0].change_host_key()
    refused = lab.ssh(hosts[0], "true")
    assert refused.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in refused.stderr
    lab.trust()
    assert lab.ssh(hosts[0], "true").returncode == 0


def test_hidden_python(lab: Lab, hosts: list[Host]) -> None:
    """No python3 on the PATH, not even after a reboot; the interpreters of this machine's tools stay."""
    host = hosts[0]
    host.hide_python()
    assert lab.ssh(host, "command -v python3 python").stdout == ""
    host.reboot()
    assert lab.ssh(host, "command -v python3 python").stdout == ""
    assert lab.ssh(host, f"{sys.executable} -c 'print(1)'").stdout == "1\n"
    host.show_python()
    assert lab.ssh(host, "python3 -c 'print(1)'").stdout == "1\n"


def test_only_another_python(lab: Lab, hosts: list[Host]) -> None:
    """The named interpreter is the python3 of the PATH."""
    hosts[0].only_python(sys.executable)
    assert lab.ssh(hosts[0], "readlink /usr/bin/python3; ls /usr/bin/python*").stdout.split() == [
        sys.executable,
        "/usr/bin/python3",
    ]


def test_full_disk(hosts: list[Host]) -> None:
    """What was there can be read, nothing can be added; with room again all is there, the changes too."""
    host = hosts[0]
    host.write("/var/lib/vmreconcile/env/a.env", "A=1\n", 0o600)
    host.fill_disk("/var/lib/vmreconcile")
    full = host.exec(["tee", "/var/lib/vmreconcile/env/b.env"], data="B=2\n", check=False)
    assert "No space left on device" in full.stderr
    assert host.read("/var/lib/vmreconcile/env/a.env") == "A=1\n"
    host.shell("rm /var/lib/vmreconcile/env/b.env; mv /var/lib/vmreconcile/env/a.env /var/lib/vmreconcile/env/c.env")
    host.free_disk("/var/lib/vmreconcile")
    assert host.shell("cd /var/lib/vmreconcile; find . -type f -printf '%m %p\\n'") == "600 ./env/c.env\n"
    host.write("/var/lib/vmreconcile/env/b.env", "B=2\n")


def test_full_disk_where_there_was_no_folder(hosts: list[Host]) -> None:
    """A folder that does not exist yet can be a full disk too."""
    hosts[0].fill_disk("/etc/vmreconcile")
    assert hosts[0].exec(["tee", "/etc/vmreconcile/x"], data="x", check=False).returncode != 0


def test_read_only_folder(hosts: list[Host]) -> None:
    """Writing fails as on a read-only file system; elsewhere it works; afterwards it works there too."""
    host = hosts[0]
    host.remount_read_only("/var/lib/vmreconcile")
    refused = host.exec(["touch", "/var/lib/vmreconcile/x"], check=False)
    assert "Read-only file system" in refused.stderr
    host.write("/etc/vmreconcile/x", "")
    host.remount_read_write("/var/lib/vmreconcile")
    host.write("/var/lib/vmreconcile/x", "")


def test_reset_leaves_what_booted(lab: Lab, hosts: list[Host]) -> None:
    """Faults, units, files and processes of a test are gone after a reset; the host's own go on; it is quick."""
    host = hosts[0]
    own = {process.pid for process in host.processes() if process.group.endswith(("ssh.service", "dbus.service"))}
    by_hand = lab.start_by_hand(host, ["sleep", "1004"], env={"WORD": "a b"})
    lab.start_by_hand(host, ["sleep", "1004"], user="plain")
    lab.ssh(host, "mkdir -p ~/.local/state/vmreconcile", user="plain")
    started = next(process for process in host.processes() if process.pid == by_hand)
    assert (started.argv, started.environ["WORD"], started.parent == 0) == (("sleep", "1004"), "a b", False)
    host.write("/etc/systemd/system/vmreconcile-s.service", "[Service]\nExecStart=/bin/sleep 1004\nRestart=always\n")
    host.shell("systemctl daemon-reload; systemctl start vmreconcile-s; echo x >/tmp/x")
    host.change_host_key()
    host.link_down()
    host.fill_disk("/var/lib/vmreconcile")
    host.remount_read_only("/etc/vmreconcile")
    host.hide_python()
    host.stop_sshd()
    wait_until(lambda: len(host.pids("1004")) == 3, 5, "three processes of the test")
    start = time.monotonic()
    lab.reset()
    assert time.monotonic() - start < 10
    assert host.pids("1004") == set()
    assert own - {process.pid for process in host.processes()} <= own  # sshd was restarted, dbus was not
    assert lab.ssh(host, "python3 -c 'print(1)'").stdout == "1\n"
    paths = "/etc/systemd/system/vmreconcile-s.service /etc/vmreconcile /var/lib/vmreconcile /tmp/x"
    assert host.shell(f"ls -d {paths} /home/plain/.local/state/vmreconcile 2>/dev/null || true") == ""
    assert host.exec(["systemctl", "is-system-running"]).stdout == "running\n"


def test_a_slow_link_lies_between(lab: Lab, hosts: list[Host]) -> None:
    """A relay in the hosts' network reaches a host's sshd and can cut it off."""
    with lab.network(), Proxy((hosts[0].address, 22)) as proxy:
        with socket.create_connection((proxy.address, proxy.port), timeout=5) as connection:
            assert connection.recv(4) == b"SSH-"
        proxy.stall()
        with socket.create_connection((proxy.address, proxy.port), timeout=5) as connection:
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(4)


def test_the_network_has_no_way_out(lab: Lab, hosts: list[Host]) -> None:
    """Neither the hosts nor the person beside them can reach anything else."""
    for argv in (["ip", "route", "get", "1.1.1.1"], ["ip", "route", "get", "8.8.8.8"]):
        assert hosts[0].exec(argv, check=False).returncode != 0
        assert lab.run(argv).returncode != 0


def test_the_tool_gets_no_environment_of_this_machine(
    lab: Lab, hosts: list[Host], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and agents of whoever runs the tests stay outside; the folder has an inventory of the hosts."""
    monkeypatch.setenv("HF_TOKEN", "hf_real")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")
    assert not {"HF_TOKEN", "SSH_AUTH_SOCK"} & set(lab.run(["env"]).stdout.replace("=", "\n").split())
    cli.inventory({"vllm_runtime": "process"}, {"gpu2": {"ansible_port": 2222}})
    text = (cli.folder / "inventory/hosts.yaml").read_text()
    assert all(host.address in text for host in hosts)
    assert '"ansible_port": 2222' in text


def test_a_killed_session_leaves_nothing_running(tmp_path: Path) -> None:
    """After SIGKILL of the session its hosts end by themselves; the next session removes folder and groups."""
    program = """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from tests.lab.hosts import Lab
        lab = Lab.boot(1)
        print(lab.space.name, lab.hosts[0].pid, flush=True)
        time.sleep(100)
    """
    argv = [sys.executable, "-c", textwrap.dedent(program), str(CHECKOUT)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        name, pid = session.stdout.readline().split()
        assert name
        assert Path(f"/proc/{pid}").exists()
        session.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the host to end")
    assert (ROOM / name).exists()
    with Lab.boot(0):
        assert not (ROOM / name).exists()
        assert not [top for hierarchy in hierarchies() for top in hierarchy.glob(f"*{name}*")]


def test_closing_leaves_nothing() -> None:
    """After an orderly end there is no process, mount, folder or control group."""
    with Lab.boot(1) as lab:
        name = lab.space.name
        assert any(name in line for line in _groups_of_all_processes())
    assert not any(name in line for line in _groups_of_all_processes())
    assert not (ROOM / name).exists()
    assert name not in Path("/proc/self/mountinfo").read_text()
    assert not [top for hierarchy in hierarchies() for top in hierarchy.glob(f"*{name}*")]


def _groups_of_all_processes() -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            found += entry.read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found

"""A host: a machine that tests break, each fault with its way back, and that is made new between tests.

Owns the faults and the reset. A fault needs neither sshd nor network, so several can be combined.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from tests.lab.disk import USERS
from tests.lab.machine import Machine, Process
from tests.lab.space import Space, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


class Host(Machine):
    """One host of the laboratory. A fault set twice is one fault; `restore` undoes them, the last one first."""

    def __init__(self, space: Space, name: str, address: str, public_key: str) -> None:
        """Prepare the disk of a host that is off and sound."""
        super().__init__(space, name, address, public_key)
        self._faults: dict[str, Callable[[], object]] = {}
        self._baseline: frozenset[str] = frozenset()

    # Network and sshd

    def link_down(self) -> None:
        """Pull its network cable: connections hang, new ones time out."""
        self.space.call(["ip", "link", "set", f"vb-{self.name}", "down"])
        self._faults["link"] = self.link_up

    def link_up(self) -> None:
        """Plug the cable back in."""
        self._faults.pop("link", None)
        self.space.call(["ip", "link", "set", f"vb-{self.name}", "up"])
        self._wait_for_greeting()

    def stop_sshd(self) -> None:
        """End its sshd: connections are refused."""
        self.exec(["systemctl", "stop", "ssh"])
        self._faults["sshd"] = self.start_sshd

    def start_sshd(self) -> None:
        """Start its sshd again."""
        self._faults.pop("sshd", None)
        self.exec(["systemctl", "start", "ssh"])
        self._wait_for_greeting()

    def freeze_sshd(self) -> None:
        """Halt its sshd: the kernel still accepts connections, and nothing is ever said on them."""
        self.exec(["systemctl", "kill", "--kill-who=main", "--signal=STOP", "ssh"])
        self._faults["sshd"] = self.thaw_sshd

    def thaw_sshd(self) -> None:
        """Let its sshd go on."""
        self._faults.pop("sshd", None)
        self.exec(["systemctl", "kill", "--kill-who=main", "--signal=CONT", "ssh"])
        self._wait_for_greeting()

    def kill_sshd(self) -> None:
        """End its sshd and every login's own with -9, as the kernel does; systemd starts it anew at once."""
        for one in self.processes():
            if one.argv[:1] and one.argv[0].startswith(("sshd:", "/usr/sbin/sshd")):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.outer_pid, signal.SIGKILL)

    def change_host_key(self) -> None:
        """Give it another host key, as after a new installation; only `Lab.trust` makes that known."""
        self.shell(
            "cd /etc/ssh; rm -f ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -C '' -f ssh_host_ed25519_key;"
            "systemctl restart ssh"
        )
        self.host_key = self.read("/etc/ssh/ssh_host_ed25519_key.pub").strip()
        self._wait_for_greeting()

    def _wait_for_greeting(self) -> None:
        """Wait until its sshd greets, unless another fault forbids that."""
        if not {"link", "sshd"} & self._faults.keys():
            wait_until(self.greets, 10, f"sshd of {self.name} to greet")

    # What it can run

    def hide_python(self) -> None:
        """Take every Python off its PATH; interpreters elsewhere, such as vLLM's, stay."""
        self.shell(_HIDE_PYTHON)
        self._faults["python"] = self.show_python

    def only_python(self, interpreter: str) -> None:
        """Make `interpreter`, an old Python's path, the only python3 on its PATH."""
        self.hide_python()
        self.shell('ln -s "$1" /usr/bin/python3', interpreter)

    def show_python(self) -> None:
        """Put its own Pythons back."""
        self._faults.pop("python", None)
        self.shell(_SHOW_PYTHON)

    # What the tool has begun on it

    def hold_systemctl(self, verb: str) -> None:
        """Keep every `systemctl VERB` about a unit of ours waiting, from now on: a moment in mid-apply that lasts.

        A reboot ends it, as it ends who waits.
        """
        self.shell(_HOLD, verb)
        self._faults["hold"] = self.release_systemctl

    def holds(self) -> bool:
        """Say whether somebody waits since `hold_systemctl`."""
        return self.exists("/run/lab/held")

    def release_systemctl(self) -> None:
        """Let who waits go on."""
        self._faults.pop("hold", None)
        self.shell("rm -f /usr/local/sbin/systemctl /run/lab/hold /run/lab/held")

    def agents(self) -> list[Process]:
        """The agents of the tool that are there: Pythons that were given their program in an argument."""
        return [one for one in self.processes() if one.argv[1:4] == ("-I", "-S", "-c")]

    def kill_agents(self) -> None:
        """End every agent with -9, wherever it is, and what one waits for since `hold_systemctl`."""
        held = [one for one in self.processes() if one.argv[1:2] == ("/usr/local/sbin/systemctl",)]
        for one in [*self.agents(), *held]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.outer_pid, signal.SIGKILL)

    # Its disk

    def fill_disk(self, path: str) -> None:
        """Make the folder `path` a full disk: what is there can be read, not a byte can be added."""
        self.shell(_FILL, path, _aside(path))
        self._faults[f"disk {path}"] = lambda: self.free_disk(path)

    def free_disk(self, path: str) -> None:
        """Make room again; what was changed in `path` meanwhile stays."""
        self._faults.pop(f"disk {path}", None)
        self.shell(_FREE, path, _aside(path))

    def remount_read_only(self, path: str) -> None:
        """Make the folder `path` read-only, as the kernel does with a failing disk."""
        self.shell('mkdir -p "$1"; mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', path)
        self._faults[f"read-only {path}"] = lambda: self.remount_read_write(path)

    def remount_read_write(self, path: str) -> None:
        """Make the folder `path` writable again."""
        self._faults.pop(f"read-only {path}", None)
        self.shell('umount "$1"', path)

    # Back to sound

    def reboot(self, seconds: float = 120) -> None:
        """Reboot it and wait; faults of network, sshd and mounts end with that, hidden Pythons stay hidden."""
        self._faults = {name: undo for name, undo in self._faults.items() if name == "python"}
        super().reboot(seconds)

    def kill(self) -> None:
        """Cut the power; as for `reboot`, only what is on its disk outlasts it."""
        self._faults = {name: undo for name, undo in self._faults.items() if name == "python"}
        super().kill()

    def restore(self) -> None:
        """Undo every fault that is still set."""
        for undo in reversed(list(self._faults.values())):
            undo()

    def remember(self) -> None:
        """Take what runs now as what belongs to the host itself; `reset` comes back to it."""
        self._baseline = frozenset(one.group for one in self.processes())

    def reset(self) -> None:
        """Undo faults and remove every unit, process and file that the tool or a test put here, in a moment."""
        if not self.pid:
            self.start()
            self.wait()
        self.restore()
        homes = " ".join(user.home for user in USERS)
        self.shell(_STOP_UNITS, " ".join(user.name for user in USERS if user.uid), homes)
        wait_until(self._without_strays, 10, f"{self.name} to be rid of a test's processes")
        self.shell(_REMOVE_FILES, homes)

    def _without_strays(self) -> bool:
        """Kill what neither booted with the host nor is a login's own systemd; say whether there was nothing."""
        strays = [
            one
            for one in self.processes()
            if one.group not in self._baseline and not one.group.endswith("/init.scope") and one.argv
        ]
        for one in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.outer_pid, signal.SIGKILL)
        return not strays


def _aside(path: str) -> str:
    """Return where the small disk that lies over `path` is mounted."""
    return f"/run/lab/{path.strip('/').replace('/', '-')}"


_HIDE_PYTHON = """
mkdir -p /var/lib/lab-aside/bin /var/lib/lab-aside/local
mv /usr/bin/python* /var/lib/lab-aside/bin 2>/dev/null || true
mv /usr/local/bin/python* /var/lib/lab-aside/local 2>/dev/null || true
! command -v python3
"""

_SHOW_PYTHON = """
test -d /var/lib/lab-aside || exit 0
rm -f /usr/bin/python3
mv /var/lib/lab-aside/bin/* /usr/bin 2>/dev/null || true
mv /var/lib/lab-aside/local/* /usr/local/bin 2>/dev/null || true
rmdir /var/lib/lab-aside/bin /var/lib/lab-aside/local /var/lib/lab-aside
"""

_HOLD = """
mkdir -p /run/lab /usr/local/sbin
: >/run/lab/hold
cat >/usr/local/sbin/systemctl <<'END'
#!/bin/sh
case " $* " in *" VERB "*vmreconcile-*)
  if test -e /run/lab/hold; then : >/run/lab/held; fi
  while test -e /run/lab/hold; do sleep 0.02; done
esac
exec /usr/bin/systemctl "$@"
END
sed -i "s/VERB/$1/" /usr/local/sbin/systemctl
chmod 755 /usr/local/sbin/systemctl
"""

_FILL = """
mountpoint -q "$1" && exit 0
mkdir -p "$1" "$2"
mount -t tmpfs -o size=1m,mode=$(stat -c %a "$1") lab-disk "$2"
chown --reference="$1" "$2"
cp -a "$1/." "$2"
mount --bind "$2" "$1"
dd if=/dev/zero of="$1/.ballast" bs=4096 2>/dev/null || true
"""

_FREE = """
mountpoint -q "$1" || exit 0
rm -f "$1/.ballast"
umount -l "$1"
find "$1" -mindepth 1 -delete
cp -a "$2/." "$1"
umount -l "$2"
"""

_STOP_UNITS = """
rm -rf /etc/systemd/system/vmreconcile-* /etc/systemd/system/*.wants/vmreconcile-* /run/systemd/system/vmreconcile-*
for home in $2; do
  rm -rf $home/.config/systemd/user/vmreconcile-* $home/.config/systemd/user/*.wants/vmreconcile-*
done
systemctl kill --signal=KILL 'vmreconcile-*' 2>/dev/null || true
systemctl daemon-reload
systemctl stop 'vmreconcile-*' 2>/dev/null || true
systemctl reset-failed
for user in $1; do
  export XDG_RUNTIME_DIR=/run/user/$(id -u $user)
  test -S $XDG_RUNTIME_DIR/systemd/private || continue
  run() { runuser -u $user -- systemctl --user "$@" 2>/dev/null || true; }  # it may be ending with its login
  run kill --signal=KILL 'vmreconcile-*'
  run daemon-reload
  run stop 'vmreconcile-*'
  run reset-failed
done
"""

_REMOVE_FILES = """
rm -rf /etc/vmreconcile* /var/lib/vmreconcile* /var/cache/vmreconcile* /run/vmreconcile* /var/log/vmreconcile*
for home in $1; do
  rm -rf $home/.config/vmreconcile* $home/.local/state/vmreconcile* $home/.cache/vmreconcile*
done
for entry in /tmp/* /tmp/.[!.]*; do
  mountpoint -q "$entry" || rm -rf --one-file-system "$entry" 2>/dev/null || true  # this checkout may be in /tmp
done
"""

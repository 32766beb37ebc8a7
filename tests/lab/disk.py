"""What a host's own files are before it boots: everything of this machine, less what is private, plus what a lab needs.

Owns the upper layer of a host's file system. Boots nothing.

The lower layer is this machine's root, so a host has its Python, its vLLM and this checkout at the same paths. What
the machine's owner enabled, logged, or keeps at home is hidden, so a host is the same on every machine.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from tests.lab.space import GATEWAY, ROOM

CHECKOUT = Path(__file__).parents[2]
PASSWORD = "careful-and-slow"
"""What sudo asks the user `careful` for."""
_PASSWORD_HASH = "$6$laboratory$uBfKVZPjYXeDnsO4oOUxDGKFYxttVvssh/fQD62MK2HrAFVDvsRp6RvBYjCclHyHvT7p33E9ZMqVKGauwmqWf/"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A login on every host. `sudo` is its line in sudoers, "" for none; `linger`: its user manager runs from boot."""

    name: str
    uid: int
    home: str
    sudo: str = ""
    linger: bool = False


USERS = (
    User(name="root", uid=0, home="/root"),
    User(name="operator", uid=2001, home="/home/operator", sudo="ALL=(ALL:ALL) NOPASSWD: ALL"),
    User(name="careful", uid=2002, home="/home/careful", sudo="ALL=(ALL:ALL) ALL"),
    User(name="plain", uid=2003, home="/home/plain", linger=True),
)

_HIDDEN = ("etc/vmreconcile", "var/lib/vmreconcile", "var/log/journal", str(ROOM)[1:], "etc/environment")
"""Paths of this machine that a host must not see. (/tmp and /run are a host's own anyway.)"""

_NETWORK = """[Unit]
Description=The address of this host of the laboratory
DefaultDependencies=no
Before=network.target ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip link set lo up; ip addr add {address}/24 dev host0; ip link set host0 up'
[Install]
WantedBy=multi-user.target
"""

_SSHD = """MaxStartups 200
MaxSessions 50
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
"""


def prepare(upper: Path, name: str, address: str, public_key: str) -> None:
    """Fill `upper`, an empty folder, for the host `name` whose users are to let `public_key` in."""
    for path in _HIDDEN:
        _hide(upper, path)
    _opaque(upper, "etc/systemd/system")
    _home_of_root(upper)
    _write(upper, "etc/hostname", name + "\n")
    _write(upper, "etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n{GATEWAY} hub\n")
    _write(upper, "etc/resolv.conf", "")
    _write(upper, "etc/machine-id", uuid.uuid4().hex + "\n", 0o444)
    _write(upper, "etc/systemd/system/lab-network.service", _NETWORK.format(address=address))
    _enable(upper, "multi-user.target", "lab-network.service", "/etc/systemd/system")
    _enable(upper, "multi-user.target", "ssh.service", "/lib/systemd/system")
    for unit in ("getty.target", "console-getty.service", "systemd-firstboot.service"):
        _link(upper, f"etc/systemd/system/{unit}", "/dev/null")
    _write(upper, "etc/ssh/sshd_config.d/lab.conf", _SSHD)
    _write(upper, "etc/tmpfiles.d/tmp.conf", "")  # the host's /tmp is new at each boot, and the checkout may be in it
    _add_users(upper, public_key)


def new_host_key(folder: Path) -> str:
    """Write a new host key pair into `folder` and return its public line."""
    key = folder / "ssh_host_ed25519_key"
    for old in (key, key.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)], check=True)
    return key.with_suffix(".pub").read_text().strip()


def needed_paths() -> list[Path]:
    """Return what a host must see of this machine whatever file systems it is spread over."""
    return [CHECKOUT, Path(sys.prefix), Path(sys.base_prefix), Path("/opt")]


def _home_of_root(upper: Path) -> None:
    """Hide all in /root, tokens and shell startup files among it, save what an interpreter or checkout there needs."""
    keep = {".pyenv", ".local"} | {path.parts[2] for path in needed_paths() if path.parts[:2] == ("/", "root")}
    home = Path("/root")
    for entry in home.iterdir():
        if entry.name not in keep:
            _hide(upper, str(entry)[1:])
    (upper / "root").mkdir(exist_ok=True)
    (upper / "root").chmod(0o711)  # an interpreter below it must be reachable for the other users


def _add_users(upper: Path, public_key: str) -> None:
    """Add the users without useradd, which would need a running host; their names give way to ours."""
    others = [user for user in USERS if user.uid]
    _replace(upper, "etc/passwd", {u.name: f"{u.name}:x:{u.uid}:{u.uid}::{u.home}:/bin/bash" for u in others})
    _replace(upper, "etc/group", {f"lab-{u.name}": f"lab-{u.name}:x:{u.uid}:" for u in others})
    secrets = {u.name: _PASSWORD_HASH if u.name == "careful" else "*" for u in others}
    _replace(upper, "etc/shadow", {name: f"{name}:{word}:20000::::::" for name, word in secrets.items()}, 0o640)
    sudo = "".join(f"{user.name} {user.sudo}\n" for user in others if user.sudo)
    _write(upper, "etc/sudoers.d/lab", sudo, 0o440)
    for user in USERS:
        home = _folder(upper, user.home[1:])
        folder = _opaque(upper, f"{user.home[1:]}/.ssh")
        folder.chmod(0o700)
        _write(upper, f"{user.home[1:]}/.ssh/authorized_keys", public_key + "\n", 0o600)
        for path in (home, folder, folder / "authorized_keys"):
            os.chown(path, user.uid, user.uid)
        if user.linger:
            _write(upper, f"var/lib/systemd/linger/{user.name}", "")


def _replace(upper: Path, path: str, lines: dict[str, str], mode: int = 0o644) -> None:
    """Copy a colon-separated file of this machine into `upper` with the entries of `lines` put in by name."""
    kept = [line for line in Path("/", path).read_text().splitlines() if line.partition(":")[0] not in lines]
    _write(upper, path, "\n".join([*kept, *lines.values()]) + "\n", mode)


def _folder(upper: Path, path: str) -> Path:
    """Make the folder `path` in `upper` with the owner and mode that each part has in the lower layer."""
    made = upper
    for part in Path(path).parts:
        made = made / part
        if not made.is_dir():
            made.unlink(missing_ok=True)  # hidden until now
            made.mkdir(mode=0o755)
            lower = Path("/", made.relative_to(upper))
            if lower.is_dir():
                made.chmod(stat.S_IMODE(lower.stat().st_mode))
    return made


def _write(upper: Path, path: str, text: str, mode: int = 0o644) -> None:
    target = _folder(upper, str(Path(path).parent)) / Path(path).name
    target.unlink(missing_ok=True)
    target.write_text(text)
    target.chmod(mode)
    lower = Path("/", path)
    if lower.exists():
        os.chown(target, lower.stat().st_uid, lower.stat().st_gid)


def _link(upper: Path, path: str, to: str) -> None:
    (_folder(upper, str(Path(path).parent)) / Path(path).name).symlink_to(to)


def _enable(upper: Path, target: str, unit: str, folder: str) -> None:
    _link(upper, f"etc/systemd/system/{target}.wants/{unit}", f"{folder}/{unit}")


def _hide(upper: Path, path: str) -> None:
    """Make `path` absent for the host: overlayfs reads a 0/0 character device as 'removed'."""
    if Path("/", path).exists():
        os.mknod(_folder(upper, str(Path(path).parent)) / Path(path).name, stat.S_IFCHR, os.makedev(0, 0))


def _opaque(upper: Path, path: str) -> Path:
    """Make the folder `path` empty for the host, whatever the lower layer holds there; return it."""
    folder = _folder(upper, path)
    os.setxattr(folder, "trusted.overlay.opaque", b"y")
    return folder

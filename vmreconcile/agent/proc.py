"""/proc: pure parsers of its texts and thin readers that take a vanished or forbidden entry as "nothing to see".

Owns no judgement about what a process is (see `classify`). Every reader takes the folder: tests bring their own.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterator

CMDLINE_LIMIT = 1 << 16
WHOLE_CMDLINE = 1 << 22  # more than the kernel lets a program have in arguments and environment
TICKS = os.sysconf("SC_CLK_TCK")
REGULAR = 8  # a mode's file type
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process:
    """One process. `marker` is the environment's VMRECONCILE_SERVER; `environ_seen` tells unset from unreadable."""

    __slots__ = (
        "argv",
        "cgroup",
        "comm",
        "environ_seen",
        "marker",
        "outputs",
        "pid",
        "ppid",
        "rss_bytes",
        "session",
        "start_ticks",
        "state",
        "uid",
    )

    def __init__(self, pid: int, ppid: int, session: int, start_ticks: int, state: str = "S") -> None:
        """Take what tells one process from another; the rest is filled in where it is wanted."""
        self.pid, self.ppid, self.session, self.start_ticks, self.state = pid, ppid, session, start_ticks, state
        self.comm = ""
        self.rss_bytes = 0
        self.argv: tuple[str, ...] = ()
        self.uid = -1
        self.marker: str | None = None
        self.environ_seen = False
        self.cgroup = ""
        self.outputs: tuple[str, ...] = ()

    @property
    def gone(self) -> bool:
        """Whether only its exit status is left."""
        return self.state in "ZX"

    @property
    def title(self) -> str:
        """The name a vLLM worker gave itself, "" for any other process."""
        first = self.argv[0] if self.argv else ""
        return first if first.startswith("VLLM::") else ""


def text(data: bytes) -> str:
    """Decode what a kernel returned; bytes that are no UTF-8 stay readable and are safe in JSON."""
    return data.decode("utf-8", "backslashreplace")


def parse_stat(data: bytes) -> Process | None:
    """Read `/proc/PID/stat` (proc(5)); None where it is not one. The name in it may hold spaces and brackets."""
    left, right = data.find(b"("), data.rfind(b")")
    fields = data[right + 1 :].split()
    if left < 1 or right < left or len(fields) < 22:
        return None
    try:
        process = Process(int(data[:left]), int(fields[1]), int(fields[3]), int(fields[19]), fields[0].decode("ascii"))
        process.rss_bytes = int(fields[21]) * PAGE
    except (ValueError, UnicodeDecodeError):
        return None
    process.comm = text(data[left + 1 : right])
    return process


def parse_cmdline(data: bytes) -> tuple[str, ...]:
    """Split `/proc/PID/cmdline`; a title set by the process is padded with NULs, which are no arguments."""
    if data.startswith(b"VLLM::"):
        return (text(data.partition(b"\0")[0].rstrip()),)
    if data.endswith(b"\0"):
        data = data[:-1]
    return tuple(map(text, data.split(b"\0"))) if data else ()


def parse_environ(data: bytes) -> dict[str, str]:
    """Split `/proc/PID/environ`; what has no `=` is left out, the first of two equal names counts (as for getenv)."""
    found: dict[str, str] = {}
    for entry in data.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals:
            found.setdefault(text(name), text(value))
    return found


def parse_uid(data: bytes) -> int:
    """Return the real user of `/proc/PID/status`, -1 where it says none.

    The folder of a process that dumps no core belongs to root, whoever started it.
    """
    words = data.partition(b"\nUid:")[2].split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else -1


def parse_cgroup(data: bytes) -> str:
    """Return the cgroup that systemd put the process in (cgroups(7)): version 2's line or the one named systemd."""
    unified = ""
    for line in text(data).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "name=systemd":
            return path
        if number == "0" and not controllers:
            unified = path
    return unified


def parse_tcp(data: bytes) -> Iterator[tuple[int, str, int, int]]:
    """Yield (inode, address, port, uid) of the listening sockets of `/proc/net/tcp` or `tcp6`, which come first."""
    for line in data.split(b"\n")[1:]:
        fields = line.split()
        if len(fields) < 10:
            continue
        if fields[3] != b"0A":
            return
        address, _, port = fields[1].partition(b":")
        try:
            yield int(fields[9]), _address(address.decode("ascii")), int(port, 16), int(fields[7])
        except (ValueError, UnicodeDecodeError):
            continue


def _address(digits: str) -> str:
    """Turn the kernel's hexadecimal address (words in host order) into the usual form."""
    import _socket  # noqa: PLC0415 - only where something listens
    from sys import byteorder  # noqa: PLC0415 - as above

    raw = bytes.fromhex(digits)
    if byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    if len(raw) == 16 and raw.startswith(b"\0" * 10 + b"\xff\xff"):
        raw = raw[12:]
    return _socket.inet_ntop(_socket.AF_INET if len(raw) == 4 else _socket.AF_INET6, raw)


def read(path: str, limit: int = 1 << 20) -> bytes | None:
    """Read a regular file, as those of /proc are; None where it is gone, none or not for us. No pipe is waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    try:
        if os.fstat(fd).st_mode >> 12 != REGULAR:
            return None
        data = os.read(fd, limit)
        while data and len(data) < limit:
            more = os.read(fd, limit - len(data))
            if not more:
                break
            data += more
    except OSError:
        return None
    finally:
        os.close(fd)
    return data


def pids(proc: str = "/proc") -> list[int]:
    """Every process that can be seen, in ascending order."""
    try:
        return sorted(int(name) for name in os.listdir(proc) if name.isdigit())
    except OSError:
        return []


def cmdline(pid: int, proc: str = "/proc") -> bytes:
    """The first 64 KiB of a process's arguments; b"" for a kernel thread or what is gone."""
    try:
        fd = os.open("{}/{}/cmdline".format(proc, pid), os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(fd, CMDLINE_LIMIT)
    except OSError:
        return b""
    finally:
        os.close(fd)


def stat(pid: int, proc: str = "/proc") -> Process | None:
    """One process as `stat` shows it."""
    data = read("{}/{}/stat".format(proc, pid), 4096)
    return parse_stat(data) if data else None


def load(pid: int, proc: str = "/proc") -> Process | None:
    """One process with everything that `classify` looks at; None where it is gone."""
    process = stat(pid, proc)
    if process is None or process.gone:
        return None
    here = "{}/{}".format(proc, pid)
    line = cmdline(pid, proc)
    process.uid = parse_uid(read(here + "/status", 1 << 16) or b"")
    environment = environ(pid, proc)
    process.environ_seen = environment is not None
    process.marker = (environment or {}).get("VMRECONCILE_SERVER")
    if process.marker and len(line) >= CMDLINE_LIMIT:
        line = read(here + "/cmdline", WHOLE_CMDLINE) or b""  # a cut argument of ours would look like another one
    process.argv = parse_cmdline(line)
    process.cgroup = parse_cgroup(read(here + "/cgroup", 1 << 16) or b"")
    process.outputs = tuple(filter(None, (link("{}/fd/{}".format(here, number)) for number in (1, 2))))
    return process


def environ(pid: int, proc: str = "/proc") -> dict[str, str] | None:
    """A process's environment at its exec; None where it is not for us to read."""
    data = read("{}/{}/environ".format(proc, pid))
    return None if data is None else parse_environ(data)


def link(path: str) -> str:
    """Where a link of /proc leads; "" where it cannot be read."""
    try:
        return text(os.readlink(os.fsencode(path)))
    except OSError:
        return ""


def listening(pid: int | str, proc: str = "/proc") -> dict[int, tuple[str, int, int]]:
    """Inode → (address, port, uid) of what listens in the network namespace of a process."""
    found = {}
    for name in ("tcp", "tcp6"):
        data = _listening_part("{}/{}/net/{}".format(proc, pid, name))
        for inode, address, port, uid in parse_tcp(data):
            found[inode] = (address, port, uid)
    return found


def _listening_part(path: str) -> bytes:
    """Read until the first line that is not a listening socket: behind it may be 100,000 connections."""
    data = b""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return data
    try:
        while True:
            block = os.read(fd, 1 << 16)
            data += block
            last = data[: data.rfind(b"\n")].rpartition(b"\n")[2].split()
            if not block or (len(last) > 3 and last[3] not in (b"0A", b"st")):
                return data
    except OSError:
        return data
    finally:
        os.close(fd)


def sockets(pid: int, proc: str = "/proc") -> set[int]:
    """The inodes of a process's sockets; empty where its descriptors are not for us to read."""
    folder = "{}/{}/fd".format(proc, pid)
    try:
        names = os.listdir(folder)
    except OSError:
        return set()
    found = set()
    for name in names:
        target = link("{}/{}".format(folder, name))
        if target.startswith("socket:[") and target[8:-1].isdigit():
            found.add(int(target[8:-1]))
    return found


def boot_id(proc: str = "/proc") -> str:
    """The kernel's name for this boot."""
    return text(read(proc + "/sys/kernel/random/boot_id", 64) or b"").strip()


def started_at(start_ticks: int) -> float:
    """Wall-clock seconds of a start time in ticks since boot."""
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + start_ticks / TICKS, 1)


def written_at(path: str) -> float | None:
    """When a file was last written, in seconds since the epoch; None where there is none."""
    try:
        return round(os.stat(path).st_mtime, 3)
    except OSError:
        return None

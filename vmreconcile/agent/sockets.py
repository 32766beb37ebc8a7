"""Who listens where: ports of our servers, of strangers, and the holders of ports that are wanted. Only reads."""

from __future__ import annotations

import pwd

from . import netlink, proc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable


class Listeners:
    """What listens on this host, by network namespace, read when first asked for."""

    def __init__(self, folder: str = "/proc") -> None:
        """Start with our own network namespace."""
        self.folder = folder
        self.own = proc.link(folder + "/self/ns/net")
        told = netlink.listening() if folder == "/proc" else None
        self.table = proc.listening("self", folder) if told is None else told
        self.tables = {self.own: self.table}
        self.holders: dict[int, int] = {}

    def of(self, pids: Iterable[int]) -> list[tuple[str, int]]:
        """(address, port) that processes listen on, by port; remembers them as holders."""
        found = set()
        for pid in pids:
            space = proc.link("{}/{}/ns/net".format(self.folder, pid)) or self.own
            if space not in self.tables:
                self.tables[space] = proc.listening(pid, self.folder)
            table = self.tables[space]
            for inode in proc.sockets(pid, self.folder) if table else ():
                if inode in table:
                    found.add((table[inode][1], table[inode][0]))
                    if space == self.own:
                        self.holders.setdefault(inode, pid)
        return [(address, port) for port, address in sorted(found)]

    def taken(self, wanted: Iterable[int]) -> list[tuple[int, int | None, int]]:
        """(port, pid or None, uid) of wanted ports that something listens on in our network namespace."""
        ports = set(wanted)
        rows = {port: (inode, uid) for inode, (_, port, uid) in sorted(self.table.items()) if port in ports}
        unknown = {inode for inode, _ in rows.values()} - set(self.holders)
        if unknown:
            self._search(unknown)
        return [(port, self.holders.get(inode), uid) for port, (inode, uid) in sorted(rows.items())]

    def _search(self, unknown: set[int]) -> None:
        """Go through every process's descriptors, once, for sockets that none of the known holds."""
        for pid in proc.pids(self.folder):
            for inode in proc.sockets(pid, self.folder) & unknown:
                self.holders[inode] = pid
                unknown = unknown - {inode}
            if not unknown:
                return


def user_name(uid: int) -> str:
    """A user's name, or the number where the host knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)

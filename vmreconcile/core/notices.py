"""What a person should know of hosts beside the plan: one machine under two names, odd records, drop-ins. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from vmreconcile.errors import Diagnostic, Place, Severity
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView


def shared_machines(view: FleetView) -> dict[str, Diagnostic]:
    """Hosts of the inventory that are one machine, by name: each would call the other's servers unclaimed."""
    seen: dict[tuple[str, str, str, int], list[str]] = {}
    for host in view.hosts:
        seen.setdefault((host.hostname, host.boot_id, host.state_dir, host.uid), []).append(host.host)
    shared = {}
    for names in seen.values():
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            shared[name] = Diagnostic(
                place=Place(file="inventory"),
                code="one-machine-two-names",
                summary=f"{name} is the same machine and state folder as {others}",
                why="each name sees the other's servers as unclaimed",
                remedy="keep one name for a machine; nothing is pruned on it until then",
                severity=Severity.WARNING,
            )
    return shared


def notices(view: FleetView) -> Iterator[Diagnostic]:
    """Warnings of what was seen on the hosts, in the order of hosts and servers."""
    for host in view.hosts:
        for server in host.servers:
            name = ServerId.from_slug(server.slug, host.host)
            for problem in server.problems:
                yield _warning(f"{name}: {problem}", "server-problem", "mend or remove it on the host")
            for path in server.unit.drop_ins if server.unit else ():
                why = "it changes what systemd makes of our unit; drop-ins are left to the host's owner"
                yield _warning(f"{name}: its unit has a drop-in, {path}", "unit-drop-in", "remove it if unwanted", why)


def _warning(summary: str, code: str, remedy: str, why: str = "") -> Diagnostic:
    place = Place(file="hosts")
    return Diagnostic(place=place, code=code, summary=summary, why=why, remedy=remedy, severity=Severity.WARNING)

"""What vLLM runs on a host as the kernel shows it to somebody beside the tool. Starts and ends nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.lab.hosts import Host, Process


def roots(host: Host) -> list[Process]:
    """Every `vllm serve` of a host, by pid."""
    return [one for one in host.processes() if "serve" in one.argv and any("vllm" in word for word in one.argv[:2])]


def root(host: Host) -> Process:
    """The one `vllm serve` of a host."""
    found = roots(host)
    assert len(found) == 1, (host.name, found)
    return found[0]


def root_pids(hosts: Iterable[Host]) -> dict[str, int]:
    """The pid of the one `vllm serve` of each host."""
    return {host.name: root(host).pid for host in hosts}


def pids(hosts: Iterable[Host]) -> dict[str, list[tuple[int, int]]]:
    """Pid and start of every root, by host: equal as long as no server was touched."""
    return {host.name: [(one.pid, one.start) for one in roots(host)] for host in hosts}


def written(host: Host) -> list[str]:
    """Every file that the tool keeps on a host for its servers, its own program's cache and locks left out."""
    folders = "/etc/vmreconcile /var/lib/vmreconcile /etc/systemd/system"
    found = host.shell(f"find {folders} -name '*' ! -type d 2>/dev/null | sort || true").split("\n")
    ours = [path for path in found if "vmreconcile" in path]
    return [path for path in ours if "/agent/" not in path and not path.endswith(("/lock", "/run.lock"))]

"""What a plan was made from, so that one whose hosts moved since is noticed. Pure."""

from __future__ import annotations

from vmreconcile.core.fingerprints import digest
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.values import JsonValue
from vmreconcile.runtimes.unit_files import telling


def digest_of(host: HostView, observed: ObservedServer) -> dict[str, JsonValue]:
    """What a plan was made from, by field; a plan file is refused for a server where one of these moved."""
    process, unit, env_file = observed.process, observed.unit, observed.env_file
    return {
        "boot_id": host.boot_id,
        "process.pid": process.pid if process else None,
        "process.start_ticks": process.start_ticks if process else None,
        "process.argv": digest("\0".join(process.argv)) if process else None,
        "orphans": [worker.pid for worker in observed.orphans],
        "unit.active": unit.active if unit else None,
        "unit.enabled": unit.enabled if unit else None,
        "unit.text": digest(telling(unit.text or "")) if unit else None,
        "env_file.names": [*sorted(env_file.env)] if env_file else None,
        "env_file.mtime": env_file.mtime if env_file else None,
    }

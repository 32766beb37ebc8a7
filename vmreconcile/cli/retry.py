"""After a run that did not do all: the hosts that are left in a file, for `--limit @FILE`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from vmreconcile.cli.output import note
from vmreconcile.cli.terminal import printable
from vmreconcile.core.fingerprints import digest
from vmreconcile.effects.files import write_private
from vmreconcile.errors import VmreconcileError
from vmreconcile.model.outcome import Outcome, Status

if TYPE_CHECKING:
    import argparse

LEFT = frozenset({Status.FAILED, Status.SKIPPED, Status.ROLLED_BACK, Status.UNREACHABLE})


def hosts_left(outcome: Outcome) -> tuple[str, ...]:
    """The hosts on which something was not done, and those that could not be reached, sorted."""
    hosts = {result.server.host for result in outcome.results if result.status in LEFT}
    return tuple(sorted(hosts | {host.host for host in outcome.unreachable}))


def leave_retry_file(arguments: argparse.Namespace, outcome: Outcome) -> None:
    """Write them down after an apply, and say how to go on with just these; a file that cannot be written is told."""
    if not hasattr(arguments, "retry_file"):
        return
    hosts = hosts_left(outcome)
    path = arguments.retry_file or _usual_place(arguments)
    if not hosts:
        if not arguments.retry_file and arguments.limit in {None, f"@{path}"}:
            path.unlink(missing_ok=True)  # nothing is left of the run before, either
        return
    odd = tuple(host for host in hosts if not _is_line(host))
    hosts = tuple(host for host in hosts if _is_line(host))
    for host in odd:
        note(f"note: {printable(host)} is left too; a retry file cannot name it")
    if not hosts:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, "".join(f"{host}\n" for host in hosts))
    except (OSError, VmreconcileError) as error:
        note(f"note: the hosts that are left could not be written to {path}: {error}")
        return
    count = f"{len(hosts)} host{'s' * (len(hosts) != 1)}"
    note(f"{count} left; to go on with just these: vmreconcile apply --limit {shlex.quote(f'@{path}')}")


def _is_line(host: str) -> bool:
    """Whether a line of a retry file means this host alone when it is read back."""
    return host.splitlines() == [host] and host.strip() == host and host[0] not in "#!&@~"


def _usual_place(arguments: argparse.Namespace) -> Path:
    """In the user's state folder (XDG Base Directory Specification), one for each folder of models."""
    home = os.environ.get("XDG_STATE_HOME")
    base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".local" / "state"
    fleet = digest(str(Path(arguments.models).resolve()))[:8]
    return base / "vmreconcile" / f"apply-{fleet}.retry"

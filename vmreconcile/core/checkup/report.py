"""Checks as `doctor` tells them: hosts that were not seen, and the one JSON document."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vmreconcile.core.reports import FORMAT_VERSION, Json
from vmreconcile.model.checkup import Check, Health
from vmreconcile.model.observed import NO_PYTHON, Unreachable


def unreachable_check(host: Unreachable) -> Check:
    """A host that could not be seen, as a check; one that was reached and has no Python for the agent is ill."""
    if host.cause == NO_PYTHON:
        return Check(check="python", status=Health.FAIL, summary=host.reason, remedy=host.remedy, host=host.host)
    return Check(check="reach", status=Health.SKIPPED, summary=host.reason, remedy=host.remedy, host=host.host)


def checks_json(checks: Iterable[Check]) -> list[Json]:
    """Each check as `doctor --json` prints it."""
    return [
        {
            "host": check.host or None,
            "server": check.server or None,
            "check": re.sub(r"\W", "_", check.check),
            "status": check.status.value,
            "summary": check.summary,
            "remedy": check.remedy or None,
        }
        for check in checks
    ]


def document(checks: Iterable[Check], unreachable: Iterable[Json]) -> Json:
    """`doctor --json`."""
    return {"format_version": FORMAT_VERSION, "checks": [*checks_json(checks)], "unreachable": [*unreachable]}

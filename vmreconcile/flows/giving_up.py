"""A change that did not become ready, as it stands; a server left stopped for it, with what was tried in its record."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from vmreconcile.core.actions import exists
from vmreconcile.core.phases import runtime_of
from vmreconcile.core.revisions import tried_digest
from vmreconcile.effects.session import AgentError
from vmreconcile.flows.failing import NotReady
from vmreconcile.flows.run import Run, send_steps
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import HostView, ObservedServer
from vmreconcile.model.outcome import Failure
from vmreconcile.model.plan import Change
from vmreconcile.model.revision import Kept, Revision
from vmreconcile.model.steps import WriteRecord
from vmreconcile.model.values import JsonValue

LEFT_AS_IT_IS = re.compile(r" ?\(it was left as it is\)|it was left as it is; ")
"""What a gate says of a server that it did not stop (`flows/ready.py`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A change that did not become ready, beside its host as it is now."""

    change: Change
    failure: Failure
    host: HostView
    kept: Kept
    """What was tried."""

    @property
    def server(self) -> ServerId:
        """Whose it is."""
        return self.change.server

    @property
    def observed(self) -> ObservedServer:
        """What is there of it."""
        return self.host.server(self.server.slug)


def leave_stopped(failed: Failed, run: Run) -> None:
    """Stop what is there still, and note in its record what was tried."""
    server = failed.server
    host = run.fleet.observe_host(server.host, server.slug)
    observed = host.server(server.slug)
    runtime = runtime_of(observed)
    if runtime is not None and exists(observed) and (observed.process or observed.orphans or observed.unit):
        try:
            send_steps(server, runtime.stop(host, observed), run)
        except AgentError as error:
            raise NotReady(more(failed.failure, f"stopping it failed too: {error}")) from None
    note_in_record(failed, run)


def note_in_record(failed: Failed, run: Run) -> None:
    """Note in the record of a server that does not run what was tried, for the next plan."""
    server = failed.server
    try:
        observed = run.fleet.observe_host(server.host, server.slug).server(server.slug)
        record = observed.record
        if record is None or observed.process is not None:
            return
        noted: dict[str, JsonValue] = {
            "server": record.server,
            "runtime": record.runtime,
            "state": record.state,
            "env_names": list(record.env_names),
            **({"decided": dict(record.decided)} if record.decided else {}),
            "failed": failed_json(failed, None),
        }
        send_steps(server, (WriteRecord(slug=server.slug, record=noted),), run)
    except AgentError as error:
        run.reporter.says(server, f"what failed could not be noted on its host: {error}")


def failed_json(failed: Failed, good: Revision | None) -> dict[str, JsonValue]:
    """What a record says of the last change that failed; no text of a log, which may hold anything."""
    return {
        "launch": tried_digest(failed.kept),
        "kind": failed.failure.kind,
        "when": round(time.time(), 3),
        "revision": good.number if good else None,
    }


def more(failure: Failure, told: str) -> Failure:
    """The failure with what came of it; who was left as it is so far is not any more."""
    remedy = LEFT_AS_IT_IS.sub("", failure.remedy)
    return replace(failure, summary=f"{failure.summary}; {told}", remedy=remedy)

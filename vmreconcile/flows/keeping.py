"""What a server was launched with goes to its host, once it is proven ready, so that it can be brought back.

Nothing in here may fail a server: what could not be kept is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from vmreconcile.core.planning import subject_of
from vmreconcile.core.revisions import is_running, kept_of, newest_good, seen_kept, why_not_kept
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.session import AgentError
from vmreconcile.errors import UnreachableError, VmreconcileError
from vmreconcile.flows.run import Run, send_steps
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase
from vmreconcile.model.plan import Action, Change
from vmreconcile.model.revision import Author, Kept, Revision, from_json, to_json
from vmreconcile.model.showing import masked
from vmreconcile.model.steps import KeepRevision

REVISIONS_TIMEOUT_S = 30.0
BUGS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
BEFORE = "seen before it was changed"
"""The note of what ran before anything was kept of it."""


def revisions_of(server: ServerId, fleet: Fleet) -> tuple[Revision, ...]:
    """What its host keeps of a server, oldest first; what cannot be read of it is left out.

    Raises:
        AgentError: the whole of it cannot be read.
        UnreachableError: the host was lost.
    """
    payload: dict[str, object] = {"do": "revisions", "slugs": [server.slug]}
    answer = fleet.request(server.host, payload, timeout=REVISIONS_TIMEOUT_S)
    rows = answer.get("servers")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("slug") == server.slug:
            if row.get("problem"):
                raise AgentError("bad-record", str(row["problem"]))
            return read_revisions(row.get("revisions"))
    return ()


def read_revisions(rows: object) -> tuple[Revision, ...]:
    """The revisions of a host's answer that are some, oldest first; none in which a secret stands, for we keep none."""
    found = []
    for row in rows if isinstance(rows, list) else ():
        try:
            revision = from_json(row)
        except ValueError:
            continue
        if not why_not_kept(revision.kept):
            found.append(_told(revision))
    return tuple(found)


def _told(revision: Revision) -> Revision:
    """A revision whose words for a person hold nothing that looks like a secret."""
    author, kept = revision.author, revision.kept
    return replace(
        revision,
        author=Author(who=masked(author.who), commit=masked(author.commit), tool=masked(author.tool)),
        kind=masked(revision.kind),
        note=masked(revision.note),
        kept=replace(kept, vllm_version=masked(kept.vllm_version), runtime=masked(kept.runtime)),
    )


def keep_good(change: Change, run: Run) -> None:
    """Keep what a server that was just proven ready was launched with."""
    _bearing(change.server, run, lambda: _keep_good(change, run))


def _keep_good(change: Change, run: Run) -> None:
    wanted = run.desired.get(change.server)
    if wanted is None or change.gate is None:
        return
    host = run.fleet.observe_host(change.server.host, change.server.slug, gpus=True)
    kept = kept_of(subject_of(wanted, host, run.known, change.placed))
    keep(change.server, Revision(kept=kept, note=run.note), run)


def keep_what_runs(change: Change, run: Run) -> None:
    """Keep what runs and is ready before it is taken down, where it is not kept already."""
    taken_down = change.disruptive and change.action in {Action.RETUNE, Action.RESTART}
    if taken_down and change.phase is Phase.READY:
        _bearing(change.server, run, lambda: _keep_what_runs(change, run))


def _keep_what_runs(change: Change, run: Run) -> None:
    observed = run.fleet.observe_host(change.server.host, change.server.slug).server(change.server.slug)
    newest = newest_good(revisions_of(change.server, run.fleet))
    kept = seen_kept(observed)
    if kept is None or (newest is not None and is_running(newest.kept, observed)):
        return
    keep(change.server, Revision(kept=kept, note=BEFORE), run)


def keep_failed(server: ServerId, kept: Kept, kind: str, run: Run) -> None:
    """Keep what was tried and did not become ready."""
    _bearing(server, run, lambda: keep(server, Revision(kept=kept, good=False, kind=kind, note=run.note), run))


def keep(server: ServerId, revision: Revision, run: Run) -> None:
    """Have the host keep a revision, with who and when.

    Raises:
        AgentError: it could not.
        UnreachableError: the host was lost.
    """
    problem = why_not_kept(revision.kept)
    if problem:
        run.reporter.says(server, f"nothing is kept for going back to it: {problem}")
        return
    revision = replace(revision, when=round(time.time(), 3), author=run.author())
    send_steps(server, (KeepRevision(slug=server.slug, revision=to_json(revision)),), run)


def _bearing(server: ServerId, run: Run, work: Callable[[], None]) -> None:
    """Do it, and bear that it cannot be done."""
    try:
        work()
    except UnreachableError:
        return  # whoever needs the host next tells of it
    except VmreconcileError as error:
        run.reporter.says(server, f"what it runs with could not be kept for going back to it: {error}")
    except BUGS as error:  # the server is ready: no bug in here may call that a failure
        run.reporter.says(server, f"what it runs with could not be kept ({type(error).__name__})")

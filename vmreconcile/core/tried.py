"""What a person should know before a change is tried once more that failed the last time. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from vmreconcile.core.diff import Subject
from vmreconcile.core.revisions import kept_of, tried_digest


def tried_note(subject: Subject) -> str:
    """When the very same launch was tried last, and what came of it; '' where it was not, or has become ready since."""
    record = subject.observed.record
    failed = record.failed if record else None
    if failed is None or failed.launch != tried_digest(kept_of(subject)):
        return ""
    after = "it was left stopped" if failed.revision is None else f"it went back to revision {failed.revision}"
    return f"tried {datetime.fromtimestamp(failed.when, UTC):%Y-%m-%d %H:%M} UTC: {failed.kind}; {after}"

"""Histories as a person reads them, and what makes a rollback last. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from vmreconcile.cli.render_plan import field_line, value_text
from vmreconcile.cli.terminal import Style, advice, printable
from vmreconcile.flows.histories import History
from vmreconcile.flows.rolling_back import Target
from vmreconcile.model.desired import DesiredFleet, DesiredServer
from vmreconcile.model.observed import Unreachable
from vmreconcile.model.plan import Field
from vmreconcile.model.revision import Revision

HEADS = ("", "when (UTC)", "who", "commit", "vLLM", "")


def history_text(found: Iterable[History], lost: Iterable[Unreachable], style: Style) -> str:
    """A table a server, newest first; what each changed below it."""
    blocks = [_server(each, style) for each in found]
    blocks += [f"{style.paint(host.host, 'bold')}: unreachable: {printable(host.reason)}" for host in lost]
    return "\n\n".join(blocks) or "no servers"


def _server(each: History, style: Style) -> str:
    lines = [style.paint(str(each.server), "bold")]
    if each.problem:
        return "\n".join([*lines, f"  {printable(each.problem)}"])
    if not each.revisions:
        return "\n".join([*lines, "  nothing is kept yet: the first start that becomes ready is"])
    now = each.running
    rows = [HEADS, *(_row(revision, running=revision is now) for revision in reversed(each.revisions))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(HEADS))]
    for row, revision in zip(rows, (None, *reversed(each.revisions)), strict=True):
        cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        color = "dim" if revision is None else "green" if revision is now else "" if revision.good else "red"
        lines.append(style.paint(f"  {cells}".rstrip(), color))
        if revision is not None:
            lines += [f"  {'':<{widths[0]}}  {field_line(field)}" for field in each.fields(revision)]
    return "\n".join(lines)


def _row(revision: Revision, *, running: bool) -> tuple[str, ...]:
    author = revision.author
    word = "running" if running else "" if revision.good else f"failed: {revision.kind}"
    return (
        str(revision.number),
        f"{datetime.fromtimestamp(revision.when, UTC):%Y-%m-%d %H:%M}",
        printable(author.who) or "-",
        printable(author.commit) or "-",
        printable(revision.kept.vllm_version) or "-",
        printable("; ".join(filter(None, (word, revision.note)))),
    )


def lasting_text(targets: Iterable[Target], desired: DesiredFleet) -> str:
    """What to change in which file, so that the next apply does not undo a rollback; '' where nothing.

    Where other servers of the model did not go back, the same lines would change them too: that is said.
    """
    targets = list(targets)
    back = {target.wanted.id for target in targets}
    models = {server.model for server in back}
    others = sorted(str(each.id) for each in desired.servers if each.id.model in models and each.id not in back)
    lines = [_lasting(field, target.wanted) for target in targets for field in target.fields]
    if not lines:
        return ""
    head = "no file was changed: the next apply brings the newer settings again, unless you write"
    text = advice(head) + "\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))
    if not others:
        return text
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{text}\n  (in the model's file that is for {others[0]}{more} too; for one host alone: under overrides)"


def _lasting(field: Field, wanted: DesiredServer) -> str:
    """`models.d/m.yaml:9  args.max_model_len: 8192 → 4096`."""
    before = "(not there)" if field.before is None else value_text(field.before)
    after = "(leave it out)" if field.after is None else value_text(field.after)
    place = field.origin if ":" in field.origin else _file(wanted)
    return printable(f"{place}  {field.path}: {before} → {after}")


def _file(wanted: DesiredServer) -> str:
    """The file in which the server's model is described."""
    model = wanted.origins.get("model")
    return model.place.file if model is not None and model.place is not None else "the model's file"

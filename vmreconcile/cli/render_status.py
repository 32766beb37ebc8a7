"""`status` and `show` as a person reads them. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from vmreconcile.cli.render_memory import memory_lines, tokens_cell
from vmreconcile.cli.render_plan import field_line, stranger_text, value_text
from vmreconcile.cli.terminal import Style, advice, printable
from vmreconcile.core.reports import gpu_memory_of, gpus_of
from vmreconcile.flows.show import Shown
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView, Phase
from vmreconcile.model.plan import Action, Change, Field, Plan
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.signatures import Explanation

COLOR = {
    Phase.READY: "green",
    Phase.STARTING: "yellow",
    Phase.UNHEALTHY: "red",
    Phase.CRASHED: "red",
    Phase.STOPPED: "dim",
    Phase.ABSENT: "dim",
    Phase.UNKNOWN: "magenta",
}
HEAD = ("SERVER", "PHASE", "ADDRESS", "PID", "GPU", "KV TOKENS", "UP", "VLLM", "RUNTIME", "DRIFT")
TOKENS = HEAD.index("KV TOKENS")
"""The column that goes first where a line is too short for all."""

GIB = 1024**3


def status_text(view: FleetView, plan: Plan, style: Style) -> str:
    """A table of servers, then strangers and hosts that could not be seen."""
    rows = [[printable(cell) for cell in _row(change, view)] for change in plan.changes]
    rows += [[str(server), "unknown", *[""] * (len(HEAD) - 2)] for server in plan.unreachable_servers]
    head, *rows = _fitting([list(HEAD), *rows], style.width)
    widths = _widths([head, *rows])
    lines = [style.paint(_join(head, widths), "bold")]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        cells[1] = style.paint(cells[1], COLOR[Phase(row[1])])
        lines.append("  ".join(cells).rstrip())
    lines += [
        f"stranger on {each.host}: pid {each.pid}, {printable(each.user)}: {stranger_text(each.what)}"
        for each in plan.strangers
    ]
    lines += [f"orphan on {each.host}: pid {each.pid} {printable(each.title)}" for each in plan.orphans]
    lines += [f"unreachable: {host.host}: {printable(host.reason)}" for host in plan.unreachable]
    return "\n".join(lines)


def explained_lines(why: Mapping[ServerId, Explanation], style: Style) -> list[str]:
    """Each server's cause of failure: what it is, the line of the log that shows it, what to do."""
    lines = []
    for server, found in sorted(why.items()):
        lines.append(f"{server}: {printable(found.summary)} ({found.kind})")
        seen = "log" if found.line else "seen"
        for name, text in ((seen, printable(found.evidence)), ("mend", advice(found.remedy))):
            first, *rest = style.folded(text, 8)
            lines += [f"  {name:<4}  {first}", *(f"{'':<8}{line}" for line in rest)]
    return lines


def _fitting(rows: list[list[str]], width: int) -> list[list[str]]:
    """The table with its tokens, where there are any and a line has room for them (`show` has them in any case)."""
    whole = sum(_widths(rows)) + 2 * (len(HEAD) - 1)
    if whole <= width and any(row[TOKENS] for row in rows[1:]):
        return rows
    return [row[:TOKENS] + row[TOKENS + 1 :] for row in rows]


def _widths(rows: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _join(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _row(change: Change, view: FleetView) -> list[str]:
    host = view.host(change.server.host)
    observed = host.server(change.server.slug) if host else None
    process = observed.process if observed else None
    endpoint = observed.endpoint if observed else None
    return [
        str(change.server),
        change.phase.value,
        f"{endpoint.address}:{endpoint.port}" if endpoint else "",
        str(process.pid) if process else "",
        gpus_text(change, view),
        tokens_cell(observed.record.measured if observed and observed.record else None),
        age_text(host.now - process.started_at) if host and process else "",
        (endpoint.version or "") if endpoint else "",
        observed.runtime if observed else "",
        _drift(change),
    ]


def _drift(change: Change) -> str:
    """What differs, else why something is to be done; and why it must not be done now."""
    drift = ", ".join(field.path for field in change.fields)
    if change.action is Action.BLOCKED:
        return f"{drift}; blocked: {change.reason}" if drift else f"blocked: {change.reason}"
    return drift or (change.reason.value if change.pending else "")


def gpus_text(change: Change, view: FleetView) -> str:
    """The GPUs of a server and the memory that it holds there."""
    host = view.host(change.server.host)
    if host is None or not host.gpus:
        return ""
    observed = host.server(change.server.slug)
    used = gpu_memory_of(observed, host) or 0
    indices = ",".join(str(index) for index in gpus_of(observed, host))
    return f"{indices} ({used / GIB:.1f} GiB)" if indices else ""


def age_text(seconds: float) -> str:
    """How long something has been up."""
    minutes = int(max(0.0, seconds)) // 60
    if minutes < 1:
        return f"{max(0, int(seconds))}s"
    if minutes < 120:
        return f"{minutes}m"
    return f"{minutes // 60}h" if minutes < 48 * 60 else f"{minutes // 1440}d"


def _placed_lines(placement: JsonValue) -> list[str]:
    """`placement` of a server's document: its GPUs and the numbers that the tool chose, each with the reason."""
    reasons = placement.get("reasons") if isinstance(placement, dict) else None
    return ["placed", *(f"  {printable(str(reason))}" for reason in reasons)] if isinstance(reasons, list) else []


def show_text(shown: Shown, style: Style) -> str:
    """One server: what is wanted and where that was said, what is seen, what differs, the argv."""
    document = shown.document
    lines = [style.paint(str(document["server"]), "bold"), "wanted"]
    lines += _values(document["desired"]) or ["  by nobody"]
    lines.append("observed")
    if shown.unreachable:
        lines.append(f"  unreachable: {printable(shown.unreachable.reason)}")
    observed = document["observed"]
    if isinstance(observed, dict):
        lines += [
            f"  {name:<16} {_seen(name, value)}" for name, value in observed.items() if value not in (None, [], {})
        ]
    lines += _placed_lines(document["placement"])
    memory = memory_lines(document["memory"])
    lines += ["memory", *memory] if memory else []
    tuning = document["tuning"]
    if isinstance(tuning, list) and tuning:
        lines.append("tuning")
        lines += [f"  {_rule_line(each)}" for each in tuning]
    drift = document["drift"]
    if isinstance(drift, list) and drift:
        lines.append("differs")
        lines += [f"  {field_line(_field(each), explain=True)}" for each in drift]
    argv = document["argv"]
    if isinstance(argv, list):
        lines += ["argv", *(f"  {printable(str(argument))}" for argument in argv)]
    return "\n".join(lines)


def _rule_line(value: JsonValue) -> str:
    data = value if isinstance(value, dict) else {}
    return printable(f"{data['argument']} {data['done']}  (rule {data['rule']}: {data['reason']})")


def _seen(name: str, value: JsonValue) -> str:
    """An observed value for a person: a moment as the date that it is, in this machine's zone."""
    if name == "started_at" and isinstance(value, int | float):
        return dt.datetime.fromtimestamp(value).astimezone().isoformat(sep=" ", timespec="seconds")
    return value_text(value)


def _field(value: JsonValue) -> Field:
    data = value if isinstance(value, dict) else {}
    origin = str(data.get("origin", ""))
    return Field(path=str(data["path"]), before=data["before"], after=data["after"], origin=origin)


def _values(wanted: JsonValue) -> list[str]:
    if not isinstance(wanted, dict):
        return []
    lines = []
    for name, item in wanted.items():
        if name in {"args", "env"} and isinstance(item, dict):
            lines += [_value(f"{name}.{key}", each) for key, each in item.items()]
        else:
            lines.append(_value(name, item))
    return lines


def _value(name: str, item: JsonValue) -> str:
    data = item if isinstance(item, dict) else {}
    return f"  {name:<28} {value_text(data.get('value')):<30}  {data.get('origin', '')}".rstrip()

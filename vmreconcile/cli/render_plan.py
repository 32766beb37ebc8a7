"""A plan as a person reads it: from the host inward, one line a server, the symbol always beside the word. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

from vmreconcile.cli.terminal import Style, advice, as_called, printable
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import Phase, Unreachable
from vmreconcile.model.plan import Action, Change, Field, Plan, Reason, Waves
from vmreconcile.model.values import JsonValue

COLOR = {
    Action.START: "green",
    Action.RESTART: "yellow",
    Action.RETUNE: "yellow",
    Action.STOP: "red",
    Action.REMOVE: "red",
    Action.BLOCKED: "magenta",
    Action.NOOP: "dim",
}
LONGEST_VALUE = 60
LONGEST_WAVES = 8


def plan_text(plan: Plan, style: Style, *, explain: bool = False, following: str = "") -> str:
    """The whole plan, its last line the summary, with the command to go on with where one is given."""
    lines: list[str] = []
    hosts = sorted({change.server.host for change in plan.changes} | {host.host for host in plan.unreachable})
    hosts = sorted({*hosts, *(each.host for each in plan.strangers), *(each.host for each in plan.orphans)})
    unreachable = {host.host: host for host in plan.unreachable}
    width = max((len(change.server.local) for change in plan.changes), default=0)
    for host in hosts:
        lines.append(style.paint(host, "bold"))
        if host in unreachable:
            lines.append(_unreachable(unreachable[host], style))
        for change in plan.on(host):
            lines += _change(change, style, width, explain=explain)
        lines += _others(plan, host, style)
    lines += waves_lines(plan.waves, style)
    if lines:
        lines.append("")
    return "\n".join([*lines, summary_line(plan, following)])


def waves_lines(every: Iterable[Waves], style: Style) -> list[str]:
    """In which order the servers of each model are taken down, a model a line; its hosts, waves parted by `then`."""
    every = list(every)
    width = max((len(waves.model) for waves in every), default=0)
    lines = [style.paint("waves", "bold")] if every else []
    for waves in every:
        first, *rest = style.folded(_waves(waves), width + 4)
        lines += [f"  {waves.model:<{width}}  {first}", *(f"{'':{width + 4}}{line}" for line in rest)]
    return lines


def _waves(waves: Waves) -> str:
    shown = [" ".join(_place(server) for server in wave) for wave in waves.waves[:LONGEST_WAVES]]
    shown = [f"{text} (canary)" if at < waves.canaries else text for at, text in enumerate(shown)]
    more = len(waves.waves) - len(shown)
    shown += [f"{more} more waves"] if more else []
    if waves.downtime:
        return f"{shown[0]}: its only server, nobody serves it meanwhile"
    pause = f", {waves.pause:g} s between waves" if waves.pause else ""
    return f"{', then '.join(shown)}: at most {waves.limit} of {waves.total} down{pause}"


def _place(server: ServerId) -> str:
    return f"{server.host}/{server.replica}" if server.replica else server.host


def _unreachable(host: Unreachable, style: Style) -> str:
    remedy = f"   {advice(host.remedy)}" if host.remedy else ""
    return f"  {style.paint('? unreachable', 'magenta')}  {printable(host.reason)}{remedy}"


def _change(change: Change, style: Style, width: int, *, explain: bool) -> list[str]:
    head = f"  {style.paint(_label(change), COLOR[change.action])}  {change.server.local:<{width}}"
    details = [line for text in _details(change, explain=explain) for line in style.folded(text, width + 18)]
    first, *rest = details or [""]
    lines = [f"{head}  {first}".rstrip()]
    lines += [f"{'':{width + 16}}  {line}" for line in rest]
    return lines


def _label(change: Change) -> str:
    word = change.action.value
    if change.action is Action.NOOP:
        word = {Reason.UNCLAIMED: "unclaimed", Reason.STILL_STARTING: "starting", Reason.ENV_SHADOWED: "shadowed"}.get(
            change.reason, "in sync"
        )
    return f"{change.action.symbol} {word:<10}"


def _details(change: Change, *, explain: bool) -> list[str]:
    lines = [field_line(field, explain=explain) for field in change.fields]
    if change.note:
        lines.append(advice(change.note))
    if not lines and change.action is not Action.NOOP:
        lines.append(change.reason.value.replace("_", " "))
    elif not lines and change.phase is not Phase.READY:
        lines.append(change.phase.value)
    if change.disruptive and change.action in {Action.RESTART, Action.RETUNE}:
        lines[0] += "   restarts it"
    if change.remedy:
        lines.append(advice(change.remedy))
    lines += _placing(change, explain=explain)
    if explain and change.action is not Action.NOOP:
        lines.append(f"reason: {change.reason.value}")
    if explain:
        lines += [f"tuning: {printable(text)}" for text in change.tuning]
    return lines


def _placing(change: Change, *, explain: bool) -> list[str]:
    """Which GPUs a server gets that is about to start, and the numbers chosen for it; all of it where asked why."""
    if change.placed is None or change.action is Action.BLOCKED:
        return []
    lines = [printable(text) for text in change.placed.reasons]
    if explain:
        return lines
    loads = change.action is Action.START or (change.disruptive and change.gate is not None)
    return (
        [line for at, line in enumerate(lines) if not at or line.split(" ")[0] in change.placed.settings]
        if loads
        else []
    )


def field_line(field: Field, *, explain: bool = False) -> str:
    """One differing value: `args.max_model_len  4096 → 8192`."""
    origin = f"   ({field.origin})" if explain and field.origin else ""
    return f"{printable(field.path)}  {value_text(field.before)} → {value_text(field.after)}{origin}"


def value_text(value: JsonValue) -> str:
    """A value in one short line; nothing shows as '(none)'."""
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    text = printable(text)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _others(plan: Plan, host: str, style: Style) -> list[str]:
    lines = []
    for stranger in plan.strangers:
        if stranger.host == host:
            port = f"port {stranger.port}, " if stranger.port else ""
            what = f"{printable(stranger.user)}: {stranger_text(stranger.what)}"
            lines.append(f"  {style.paint('· stranger  ', 'dim')}  {port}pid {stranger.pid}, {what}")
    lines += [
        f"  {style.paint('· orphan    ', 'dim')}  pid {orphan.pid} {printable(orphan.title)}, not ours"
        for orphan in plan.orphans
        if orphan.host == host and not orphan.server
    ]
    return lines


def stranger_text(what: str) -> str:
    """A stranger's command line in short: what it serves says more than where its interpreter lies."""
    _, found, rest = what.partition("/vllm serve ")
    return value_text(f"vllm serve {rest}" if found else what)


def summary_line(plan: Plan, following: str = "") -> str:
    """`1 to start, 1 to retune, 5 in sync; 1 host unreachable, 2 servers wanted there and unknown.   Next: …`."""
    counts = _counts(plan.changes)
    hosts, unknown = len(plan.unreachable), len(plan.unreachable_servers)
    text = ", ".join(counts) or ("nothing seen" if unknown else "no servers")
    away = f"; {hosts} host{'s' if hosts > 1 else ''} unreachable" if hosts else ""
    away += f", {unknown} server{'s' if unknown > 1 else ''} wanted there and unknown" if unknown else ""
    onward = f"   Next: {as_called(following)}" if following and plan.pending else ""
    return f"{text}{away}.{onward}"


def _counts(changes: Iterable[Change]) -> list[str]:
    counts: dict[str, int] = {}
    for change in changes:
        match change.action:
            case Action.NOOP if change.reason is Reason.UNCLAIMED:
                word = "unclaimed"
            case Action.NOOP:
                word = "in sync"
            case Action.BLOCKED:
                word = "blocked"
            case _:
                word = f"to {change.action.value}"
        counts[word] = counts.get(word, 0) + 1
    order = [f"to {action.value}" for action in Action] + ["blocked", "in sync", "unclaimed"]
    return [f"{counts[word]} {word}" for word in order if word in counts]

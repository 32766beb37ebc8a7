"""Problems as a person reads them: where, what, why, and the way out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vmreconcile.cli.terminal import Style, advice, printable
from vmreconcile.errors import Diagnostic, Severity
from vmreconcile.model.outcome import Failure, Outcome, Result, Status


def diagnostics_text(diagnostics: Iterable[Diagnostic], style: Style) -> str:
    """Every diagnostic: `FILE:LINE:COL: summary`, then why, how to mend it, 'did you mean'."""
    blocks = []
    for each in sorted(diagnostics, key=lambda one: (one.place, one.code)):
        word = "" if each.severity is Severity.ERROR else "warning: "
        color = "red" if each.severity is Severity.ERROR else "yellow"
        place = style.paint(printable(str(each.place)), "bold")
        lines = [f"{place}: {style.paint(word + advice(each.summary), color)}"]
        parts = (("why", each.why), ("mend", each.remedy), ("did you mean", each.suggestion))
        lines += [f"  {name}  {advice(text)}{'?' if name == 'did you mean' else ''}" for name, text in parts if text]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def counts_text(diagnostics: tuple[Diagnostic, ...]) -> str:
    """`2 errors, 1 warning`."""
    errors = sum(each.severity is Severity.ERROR for each in diagnostics)
    warnings = len(diagnostics) - errors
    parts = [f"{errors} error{'s' * (errors != 1)}"] if errors or not warnings else []
    parts += [f"{warnings} warning{'s' * (warnings != 1)}"] if warnings else []
    return ", ".join(parts)


def failure_text(result: Result, style: Style) -> str:
    """One server's failure: what happened, the evidence, what to do."""
    failure = result.failure or Failure(kind="unknown", summary="it failed")
    summary = failure.summary.removeprefix(f"{result.server} ")
    lines = [style.paint(line, "red") for line in style.folded(f"{result.server}: {printable(summary)}", 0)]
    lines += _part("evidence", printable(failure.evidence), style) if failure.evidence else []
    lines += _part("mend", advice(failure.remedy), style) if failure.remedy else []
    return "\n".join(lines)


def _part(name: str, text: str, style: Style) -> list[str]:
    """`  mend      what to do`, further lines below the first."""
    first, *rest = style.folded(text, 12)
    return [f"  {name:<9} {first}", *(f"{'':<12}{line}" for line in rest)]


def outcome_text(outcome: Outcome, style: Style) -> str:
    """What an apply did, last line the counts."""
    told = {Status.FAILED, Status.ROLLED_BACK}
    lines = [failure_text(result, style) for result in outcome.results if result.status in told]
    lines += skipped_text(outcome, style)
    lines += [
        f"{style.paint(host.host, 'bold')}: unreachable: {printable(host.reason)}"
        + (f"\n  mend      {advice(host.remedy)}" if host.remedy else "")
        for host in outcome.unreachable
    ]
    lines += by_host(outcome, style) if lines else []
    counts = ", ".join(f"{status.value}: {outcome.count(status)}" for status in SHOWN)
    extra = "".join(f", {status.value}: {n}" for status in EXTRA if (n := outcome.count(status)))
    return "\n".join([*lines, counts + extra])


def skipped_text(outcome: Outcome, style: Style) -> list[str]:
    """What was not begun or not finished: those of whom the same is to be said together, the first few by name."""
    groups: dict[Failure, list[Result]] = {}
    for result in outcome.results:
        if result.status is Status.SKIPPED and result.failure is not None:
            plain = result.failure.summary.removeprefix(f"{result.server.host}: ")
            groups.setdefault(replace(result.failure, summary=plain), []).append(result)
    lines = []
    for failure, results in groups.items():
        names = ", ".join(str(result.server) for result in results[:FEW])
        names += f" and {len(results) - FEW} more" if len(results) > FEW else ""
        text = f"{names}: {printable(failure.summary.removeprefix(f'{results[0].server} '))}"
        lines += [style.paint(line, "yellow") for line in style.folded(text, 0)]
        lines += _part("evidence", printable(failure.evidence), style) if failure.evidence else []
        lines += _part("mend", advice(failure.remedy), style) if failure.remedy else []
    return lines


def by_host(outcome: Outcome, style: Style) -> list[str]:
    """A line a host on which not all is well, then how many are well: `gpu2  changed 1, failed 1`."""
    hosts: dict[str, dict[Status, int]] = {}
    for result in outcome.results:
        counts = hosts.setdefault(result.server.host, {})
        counts[result.status] = counts.get(result.status, 0) + 1
    bad = {host: counts for host, counts in hosts.items() if not counts.keys() <= {Status.CHANGED, Status.OK}}
    well = len(hosts) - len(bad)
    if len(hosts) < 2:
        return []
    width = max(map(len, bad), default=0)
    lines = [
        f"{style.paint(f'{host:<{width}}', 'bold')}  "
        + ", ".join(f"{status.value.replace('_', ' ')} {n}" for status in (*SHOWN, *EXTRA) if (n := counts.get(status)))
        for host, counts in sorted(bad.items())
    ]
    return [*lines, *([f"{well} other host{'s' * (well != 1)}: all well"] if well else [])]


FEW = 4
SHOWN = (Status.CHANGED, Status.OK, Status.FAILED, Status.UNREACHABLE)
EXTRA = (Status.SKIPPED, Status.ROLLED_BACK)

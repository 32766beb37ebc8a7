"""What was measured, as Markdown. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass

from measuring import Sample, median

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contestant's samples."""

    key: str
    title: str
    hosts: int
    samples: list[Sample]

    @property
    def per_host(self) -> float:
        """Median wall time a host, in seconds."""
        return median(self.samples).wall / self.hosts

    @property
    def total_per_host(self) -> float:
        """Median processor time of everything a host, in seconds."""
        return median(self.samples).total / self.hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One promise, what was measured, and whether it is kept."""

    text: str
    measured: str
    kept: bool


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def race_table(rows: list[Row]) -> str:
    """Every contestant beside ours."""
    base = rows[0].per_host
    lines = []
    for row in rows:
        walls = sorted(sample.wall for sample in row.samples)
        middle = median(row.samples)
        lines.append(
            [
                row.title,
                str(row.hosts),
                str(len(walls)),
                f"{middle.wall:.2f} ({walls[0]:.2f} to {walls[-1]:.2f})",
                f"{middle.cpu:.2f}",
                f"{middle.total:.2f}",
                f"{1000 * row.per_host:.0f}",
                f"{row.per_host / base:.2f}",
            ]
        )
    head = [
        "",
        "hosts",
        "runs",
        "wall s, median (min to max)",
        "controller CPU s",
        "all CPU s",
        "wall ms a host",
        "beside ours",
    ]
    return table(head, lines)


def scale_table(rows: list[tuple[int, Sample, Sample]]) -> str:
    """`validate` and the plan by the size of the fleet."""
    lines = [
        [
            f"{hosts} hosts, {hosts} models, {8 * hosts} servers",
            f"{files.wall:.2f} ({files.cpu:.2f})",
            f"{1000 * files.cpu / hosts:.2f}",
            f"{planned.wall:.2f} ({planned.cpu:.2f})",
            f"{1000 * planned.cpu / hosts:.2f}",
        ]
        for hosts, files, planned in rows
    ]
    head = ["", "validate: wall s (CPU s)", "CPU ms a host", "diff and plan: wall s (CPU s)", "CPU ms a host"]
    return table(head, lines)


def goals_table(goals: list[Goal]) -> str:
    """Every goal with its verdict."""
    return table(
        ["goal", "measured", ""], [[goal.text, goal.measured, "kept" if goal.kept else "MISSED"] for goal in goals]
    )


def replaced(document: str, text: str) -> str:
    """The document with what was measured before replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"

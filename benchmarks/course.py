"""The three parts of the benchmark and their goals: the race beside the peers, the start, fleets on paper."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import scale
from contestants import SMOKE, Size, contestants
from measuring import Program, Sample, load_seen, measure, measure_all, median
from report import Goal, Row, goals_table, race_table, scale_table
from world import ROOT, World

Part = tuple[str, list[Goal]]


def measured(parts: tuple[str, ...], *, quick: bool) -> str:
    """Hold the parts that were asked for; the whole section as Markdown."""
    with load_seen() as loads, tempfile.TemporaryDirectory(prefix="vmr-bench-") as folder:
        held = [COURSES[part](Path(folder) / part, quick=quick) for part in parts]
    goals = [goal for _, found in held for goal in found]
    about = about_machine(f"{min(loads):.1f} to {max(loads):.1f}")
    verdict = "**A smoke: these numbers mean nothing.**" if quick else goals_table(goals)
    return "\n\n".join([about, verdict, *(text for text, _ in held)])


def about_machine(loads: str) -> str:
    """When, on what, and beside what."""
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    packages = ("fabric", "paramiko", "cryptography", "ansible-core", "pyinfra", "jsonschema", "PyYAML")
    versions = ", ".join(f"{name} {version}" for name in packages if (version := _version(name)))
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False).stderr.partition(",")[0]
    return (
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores ({processor}), "
        f"Linux {platform.release()}, Python {platform.python_version()}, {ssh}, {versions}. "
        f"Load average of the machine meanwhile, its own work included: {loads}."
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def race(folder: Path, *, quick: bool) -> Part:
    """Everyone in turn, in rounds, so that what else the machine does meets all alike."""
    size = SMOKE if quick else Size()
    folder.mkdir()
    world = World(folder, tuple(f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(size.hosts)))
    world.start(size.peer_hosts)
    everyone = contestants(world, size)
    samples: dict[str, list[Sample]] = {one.key: [] for one in everyone}
    for one in () if quick else everyone:
        measure(one.program)  # warm: byte code, the agent, what peers keep on hosts
    for number in range(size.rounds):
        first = number % len(everyone)
        for one in everyone[first:] + everyone[:first]:
            if number < one.rounds:
                samples[one.key].append(measure_all(one.program))
    rows = [Row(key=one.key, title=one.title, hosts=one.hosts, samples=samples[one.key]) for one in everyone]
    return f"### A plan that finds nothing to do\n\n{race_table(rows)}", race_goals({row.key: row for row in rows})


def race_goals(rows: dict[str, Row]) -> list[Goal]:
    """Ours beside the others, a host."""
    ours = rows["running"].per_host
    goals = []
    for key in ("running", "stopped"):
        ratio = rows[key].per_host / rows["fabric"].per_host
        text = f"no-op plan, 4 {key} servers a host: at most 1.3 times (a)"
        cpu = rows[key].total_per_host / rows["fabric"].total_per_host
        said = f"{ratio:.2f} times (of all CPU: {cpu:.2f})"
        goals.append(Goal(text=text, measured=said, kept=ratio <= 1.3))
    for key, limit in (("ansible", 50), ("pyinfra", 5), ("pyinfra-many", 5)):
        if key in rows:
            ratio = rows[key].per_host / ours
            text = f"{limit} times faster than {rows[key].title} ({rows[key].hosts} hosts), a host"
            goals.append(Goal(text=text, measured=f"{ratio:.1f} times", kept=ratio >= limit))
    return goals


def start(folder: Path, *, quick: bool) -> Part:
    """`vmreconcile --help`, with the modules' byte code there."""
    folder.mkdir()
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    argv = (sys.executable, "-m", "vmreconcile", "--help")
    program = Program(argv=argv, folder=folder, environment=environment, output="COMMAND")
    measure(program)
    found = median([measure(program) for _ in range(3 if quick else 21)])
    said = f"{1000 * found.wall:.0f} ms"
    text = f"### Start\n\n`vmreconcile --help`: {said} wall, {1000 * found.cpu:.0f} ms CPU (median)."
    return text, [Goal(text="`vmreconcile --help`: at most 150 ms", measured=said, kept=found.wall <= 0.15)]


def paper(folder: Path, *, quick: bool) -> Part:
    """Fleets of growing size: `validate` as a program, diff and plan from given observations."""
    sizes = (16, 32) if quick else (200, 400, 1000, 2000)
    rows = [(hosts, *_fleet(folder / str(hosts), hosts, rounds=1 if quick else 5)) for hosts in sizes]
    goals = [
        *paper_goals("validate", 3.0, {hosts: files for hosts, files, _ in rows}),
        *paper_goals("diff and plan", 2.0, {hosts: planned for hosts, _, planned in rows}),
    ]
    return f"### Fleets on paper, eight servers a host\n\n{scale_table(rows)}", goals


def paper_goals(name: str, limit: float, times: dict[int, Sample]) -> list[Goal]:
    """How long 1,000 hosts take, and whether the time grows as the fleet does."""
    smallest, largest = min(times), max(times)
    at = times.get(1000, times[largest])
    fleet, time = largest / smallest, times[largest].cpu / times[smallest].cpu
    # Operations are linear to the last one; caches and the garbage collector are not quite: the exponent counts.
    return [
        Goal(text=f"{name}, 1,000 hosts: at most {limit:g} s", measured=f"{at.wall:.2f} s", kept=at.wall <= limit),
        Goal(
            text=f"{name} grows linearly",
            measured=f"{fleet:g} times the fleet, {time:.1f} times the CPU time",
            kept=time <= fleet**1.15,
        ),
    ]


def _fleet(folder: Path, hosts: int, *, rounds: int) -> tuple[Sample, Sample]:
    scale.write_fleet(folder, hosts)
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    argv = (sys.executable, "-m", "vmreconcile", "validate", "-i", "inventory", "-m", "models.d")
    program = Program(argv=argv, folder=folder, environment=environment)
    files = median([measure(program) for _ in range(rounds)])
    done = subprocess.run(
        [sys.executable, scale.__file__, str(folder), str(rounds)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    wall, cpu, servers, pending = done.stdout.split()
    if int(servers) != hosts * scale.SERVERS or not 0 < int(pending) < int(servers) / 10:
        raise SystemExit(f"the plan of {hosts} hosts is not what it should be: {done.stdout}")
    return files, Sample(wall=float(wall), cpu=float(cpu))


COURSES: dict[str, Callable[..., Part]] = {"race": race, "start": start, "scale": paper}

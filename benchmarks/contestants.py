"""Who is measured: our no-op plan and its peers, each as a program over the world's hosts. Runs nothing."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from measuring import Program
from world import RUNNING, STOPPED, World, ours

FORKS = 20
WORK = "python3 -c pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One row of the table: what it is called, over how many hosts it runs, and in how many rounds of the race."""

    key: str
    title: str
    hosts: int
    program: Program
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured: hosts for us and for the peers that take long, rounds likewise."""

    hosts: int = 100
    peer_hosts: int = 10
    rounds: int = 7
    slow_rounds: int = 3
    smoke: bool = False


SMOKE = Size(hosts=6, peer_hosts=1, rounds=1, slow_rounds=1, smoke=True)


def contestants(world: World, size: Size) -> tuple[Contestant, ...]:
    """Everyone whose program is installed, ours first."""
    every, few = size.hosts, size.peer_hosts
    ssh = ["ssh", "-F", str(world.home / ".ssh/config"), "{}", WORK]
    quick, slow = size.rounds, size.slow_rounds
    noop = f'"noop": {4 * every},'
    rows = [
        ("running", "vmreconcile plan, 4 running servers a host", every, quick, plan(world, RUNNING), noop),
        ("stopped", "vmreconcile plan, 4 stopped servers a host", every, quick, plan(world, STOPPED), noop),
        ("fabric", f"(a) one bare Fabric exec of `{WORK}`", every, quick, fabric(world, every), ""),
        ("ssh", f"(b) `xargs -P {FORKS} ssh HOST {WORK}`", every, slow, [*xargs(world, every), *ssh], ""),
        ("ansible", "(c) ansible-core, ten tasks", few, slow, ansible(size), "changed=0"),
        ("pyinfra", "(d) pyinfra, ten operations and facts", few, quick, pyinfra(few), "No changes"),
    ]
    if not size.smoke:
        rows.append(
            ("pyinfra-many", "(d) the same on as many hosts as ours", every, slow, pyinfra(every), "No changes")
        )
    peers = world.folder / "peers"
    environment = {**world.environment(), "ANSIBLE_CONFIG": str(peers / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return tuple(
        Contestant(
            key=key,
            title=title,
            hosts=hosts,
            rounds=rounds,
            program=Program(argv=tuple(argv), folder=peers, output=output, environment=environment),
        )
        for key, title, hosts, rounds, argv, output in rows
        if shutil.which(argv[0])
    )


def plan(world: World, fleet: str) -> list[str]:
    """Ours; it exits with 2 where something differs."""
    return ours(world, fleet, "plan", "--detailed-exitcode", "--json", "--forks", str(FORKS))


def fabric(world: World, hosts: int) -> list[str]:
    """Baseline (a)."""
    return [sys.executable, "fabric_exec.py", str(world.list_of(hosts)), str(world.key), str(FORKS), WORK]


def xargs(world: World, hosts: int) -> list[str]:
    """As many at a time as we have threads."""
    return ["xargs", "-a", str(world.list_of(hosts)), "-P", str(FORKS), "-I{}"]


def ansible(size: Size) -> list[str]:
    """The playbook on the hosts of its inventory; in a smoke only some of its tasks."""
    return [beside("ansible-playbook"), "-i", "hosts.ini", "playbook.yml", *(["--tags", "smoke"] if size.smoke else [])]


def pyinfra(hosts: int) -> list[str]:
    """The deploy on the first `hosts` hosts."""
    return [beside("pyinfra"), "-y", "--parallel", str(FORKS), f"inventory_{hosts}.py", "deploy.py"]


def beside(name: str) -> str:
    """A program of the environment that runs this."""
    return str(Path(sys.executable).parent / name)

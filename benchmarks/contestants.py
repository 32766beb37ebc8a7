"""Who is measured: our no-op plan and its peers, each as a program over the world's hosts. Runs nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from measuring import Program
from world import World, ours

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
    """How much is measured."""

    hosts: int = 100
    peer_hosts: int = 10
    rounds: int = 7
    slow_rounds: int = 3


def contestants(world: World, size: Size) -> tuple[Contestant, ...]:
    """Everyone, ours first."""
    peers = world.folder / "peers"
    hosts, few = str(world.list_of(size.hosts)), size.peer_hosts

    def row(key: str, title: str, argv: list[str], output: str = "", *, slow: bool = False) -> Contestant:
        program = Program(
            argv=tuple(argv),
            folder=peers,
            output=output,
            environment={**world.environment(), "ANSIBLE_CONFIG": str(peers / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        )
        on = few if key in {"ansible", "pyinfra"} else size.hosts
        return Contestant(
            key=key, title=title, hosts=on, program=program, rounds=size.slow_rounds if slow else size.rounds
        )

    plan = ours(world, "plan", "--detailed-exitcode", "--json", "--forks", str(FORKS))
    ssh = ["ssh", "-F", str(world.home / ".ssh/config")]
    return (
        row("ours", "vmreconcile plan, 4 running servers a host", plan, f'"noop": {4 * size.hosts},'),
        row(
            "fabric",
            f"(a) one bare Fabric exec of `{WORK}`",
            [sys.executable, "fabric_exec.py", hosts, str(world.key), str(FORKS), WORK],
        ),
        row("ssh", f"(b) `xargs -P {FORKS} ssh HOST {WORK}`", [*xargs(hosts), *ssh, "{}", WORK], slow=True),
        row(
            "ansible",
            "(c) ansible-core, ten tasks",
            [beside("ansible-playbook"), "-i", "hosts.ini", "playbook.yml"],
            "changed=0",
            slow=True,
        ),
        row(
            "pyinfra",
            "(d) pyinfra, ten operations and facts",
            [beside("pyinfra"), "-y", "--parallel", str(FORKS), "inventory.py", "deploy.py"],
            f"Grand total               {5 * few}",
        ),
    )


def xargs(hosts: str) -> list[str]:
    """As many at a time as we have threads."""
    return ["xargs", "-a", hosts, "-P", str(FORKS), "-I{}"]


def beside(name: str) -> str:
    """A program of the environment that runs this."""
    return str(Path(sys.executable).parent / name)

"""Generated worlds: what is wanted first, what happens to the hosts, what is wanted then. Settings from the catalogue.

Owns the strategies; the laws are in the test modules beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from tests.lab.fake_host import FakeHost
from tests.lab.fake_kernel import Behaviour
from tests.lab.worlds import TOKEN, World, fleet, wanted
from tests.vllm.made import samples
from vmreconcile.model.desired import DesiredServer, DesiredState
from vmreconcile.model.values import JsonValue
from vmreconcile.vllm.catalogue import TOOL_OWNED, catalogue_for

CATALOGUE = catalogue_for("0.32.0")
NAMES = tuple(sorted(set(CATALOGUE.arguments) - set(TOOL_OWNED) - {"host"}))
MODELS = ("a", "b.c", "a-1")
PORTS = (8001, 8002, 8003, 8004)
HOSTS = ("h1", "h2")
SECRET = "sentinel-word-of-an-api-key"  # made up
OTHER_TOKEN = TOKEN[::-1].replace("_fh", "") + "hf_rotated"

texts = st.text(st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="\0"), max_size=12)
POOL = tuple((name, value) for name in NAMES for value in samples(CATALOGUE.arguments[name]))
arguments: st.SearchStrategy[dict[str, JsonValue]] = st.lists(
    st.sampled_from(POOL), unique_by=lambda pair: pair[0], max_size=3
).map(dict)
environments = st.dictionaries(
    st.sampled_from(("VLLM_LOGGING_LEVEL", "HF_HOME", "PLAIN", "VLLM_CACHE_ROOT")), texts, max_size=2
).flatmap(lambda env: st.sampled_from([env, {**env, "VLLM_API_KEY": SECRET}]))


@st.composite
def servers(
    draw: st.DrawFn, host: str, *, states: tuple[DesiredState, ...] = tuple(DesiredState)
) -> list[DesiredServer]:
    """Some servers of one host, each with a port of its own."""
    models = draw(st.lists(st.sampled_from(MODELS), unique=True, min_size=1, max_size=3))
    ports = draw(st.permutations(PORTS))
    return [
        wanted(
            f"{model}@{host}",
            args=draw(arguments),
            env=draw(environments),
            port=port,
            state=draw(st.sampled_from(states)),
            token=draw(st.sampled_from(("default", None))),
            runtime=draw(st.sampled_from(("", "process"))),
            revision=draw(st.sampled_from((None, "main"))),
        )
        for model, port in zip(models, ports, strict=False)
    ]


def fleets(*, states: tuple[DesiredState, ...] = tuple(DesiredState)) -> st.SearchStrategy[list[DesiredServer]]:
    """Servers on every host."""
    return st.tuples(*(servers(host, states=states) for host in HOSTS)).map(lambda each: [*each[0], *each[1]])


def hosts() -> st.SearchStrategy[dict[str, FakeHost]]:
    """Hosts with and without systemd, for root and for another user."""

    def one(name: str) -> st.SearchStrategy[FakeHost]:
        return st.builds(FakeHost, st.just(name), systemd=st.sampled_from((252, None)), uid=st.sampled_from((0, 1000)))

    return st.fixed_dictionaries({name: one(name) for name in HOSTS})


# What happens to a host between two runs. Each takes a host and a number that chooses among what is there.


def _some(host: FakeHost, number: int) -> str | None:
    running = [slug for slug in host.slugs() if host.root(slug)]
    return running[number % len(running)] if running else None


def killed(host: FakeHost, number: int) -> None:
    """`kill -9` of a root."""
    if slug := _some(host, number):
        host.kill_root(slug)


def stopped(host: FakeHost, number: int) -> None:
    """Stopped by hand."""
    if slug := _some(host, number):
        root = host.root(slug)
        assert root is not None
        if root.unit:
            host.systemd.call("stop", root.unit)
        else:
            host.kernel.end(root, family=True)


def crashed(host: FakeHost, number: int) -> None:
    """Ended by itself, for good."""
    if slug := _some(host, number):
        root = host.root(slug)
        assert root is not None
        if root.unit:
            host.systemd.ended(host.systemd.unit(root.unit), root, 2)
        else:
            host.kernel.end(root, family=True)


def rebooted(host: FakeHost, number: int) -> None:
    """Everything anew."""
    del number
    host.reboot()


def sick(host: FakeHost, number: int) -> None:
    """Answers 503."""
    if slug := _some(host, number):
        root = host.root(slug)
        assert root is not None
        root.behaviour = Behaviour(health=503)


def edited(host: FakeHost, number: int) -> None:
    """A file of ours with another line; the records, which prove what is ours, aside."""
    files = sorted(path for path in host.kernel.files if not path.endswith(".json"))
    if files:
        host.kernel.files[files[number % len(files)]].content += "EDITED=1\n"


def opened(host: FakeHost, number: int) -> None:
    """An env file that others may read."""
    files = sorted(path for path in host.kernel.files if path.endswith(".env"))
    if files:
        host.kernel.files[files[number % len(files)]].mode = 0o644


def lost_file(host: FakeHost, number: int) -> None:
    """An env file or a unit removed by hand."""
    files = sorted(path for path in host.kernel.files if not path.endswith(".json"))
    if files:
        del host.kernel.files[files[number % len(files)]]


def disabled(host: FakeHost, number: int) -> None:
    """A unit that does not start at boot any more."""
    units = [unit for unit in host.systemd.units.values() if unit.loaded is not None]
    if units:
        units[number % len(units)].enabled = False


def upgraded(host: FakeHost, number: int) -> None:
    """Another release of vLLM below the running servers."""
    host.kernel.installed[""] = ("/usr/local/bin/vllm", f"0.32.{number % 3}")


def visited(host: FakeHost, number: int) -> None:
    """Somebody else's vLLM, maybe on a port that is wanted."""
    port = (*PORTS, 9000)[number % 5]
    if host.kernel.listener(port) is None:
        host.stranger(port)


def away(host: FakeHost, number: int) -> None:
    """Out of reach."""
    del number
    host.unreachable = "no route to host"


Event = Callable[[FakeHost, int], None]
GENTLE: tuple[Event, ...] = (edited, opened, lost_file, disabled)
EVENTS: tuple[Event, ...] = (*GENTLE, killed, stopped, crashed, rebooted, sick, upgraded, visited, away)


@dataclass(slots=True)
class Journey:
    """A world as it was made, what happened to it, and what is wanted of it now."""

    world: World
    happened: tuple[tuple[str, str, int], ...]
    then: tuple[DesiredServer, ...]
    rotated: bool

    def settled(self) -> World:
        """A fresh copy of the world after the first apply."""
        return copy.deepcopy(self.world).settle()

    def before(self) -> World:
        """The same after all that happened, the second wish not yet said."""
        there = self.settled()
        for name, host, number in self.happened:
            next(event for event in EVENTS if event.__name__ == name)(there.hosts[host], number)
        if self.rotated:
            there.tokens = {"default": OTHER_TOKEN}
        return there

    def start(self) -> World:
        """The same with the second wish said."""
        there = self.before()
        there.desired = fleet(*self.then)
        return there


def happenings(events: tuple[Event, ...]) -> st.SearchStrategy[tuple[tuple[str, str, int], ...]]:
    """One to four of the events, each on a host."""
    one = st.tuples(st.sampled_from([event.__name__ for event in events]), st.sampled_from(HOSTS), st.integers(0, 9))
    return st.lists(one, min_size=1, max_size=4).map(tuple)


@st.composite
def journeys(draw: st.DrawFn, *, events: tuple[Event, ...] = EVENTS, same: bool = False) -> Journey:
    """A journey; with `same`, the second wish is the first."""
    first = draw(fleets(states=(DesiredState.RUNNING,) if same else (DesiredState.RUNNING, DesiredState.STOPPED)))
    second = list(first) if same else draw(st.just(first) | changed(first) | fleets())
    world = World(fleet(*first), draw(hosts()))
    return Journey(world, draw(happenings(events)), tuple(second), rotated=not same and draw(st.booleans()))


@st.composite
def changed(draw: st.DrawFn, first: list[DesiredServer]) -> list[DesiredServer]:
    """The same servers, some with another state, runtime or arguments, the ports of a host handed round."""
    second: list[DesiredServer] = []
    for host in HOSTS:
        there = [server for server in first if server.id.host == host]
        ports = [server.port for server in there]
        turn = draw(st.integers(0, len(ports)))
        for server, port in zip(there, ports[turn:] + ports[:turn], strict=True):
            what = draw(st.sampled_from(("", "", "state", "runtime", "env", "model", "gone")))
            other = replace(server, port=port)
            match what:
                case "state":
                    other = replace(other, state=draw(st.sampled_from(tuple(DesiredState))))
                case "runtime":
                    other = replace(other, runtime="process" if server.runtime == "" else "")
                case "env":
                    other = replace(other, env=wanted(env=draw(environments)).env)
                case "model":
                    other = replace(other, model="org/other", token=None)
            if what != "gone":
                second.append(other)
    return second

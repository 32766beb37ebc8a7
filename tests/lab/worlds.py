"""Small worlds for tests: wanted servers, fake hosts, and the line observe → plan → apply over them.

Owns how a test says 'this is wanted on that host'. `World.apply` runs the real execution against fake hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tests.lab.fake_host import FakeHost, Lifeline
from vmreconcile.core.fingerprints import Known, fingerprint
from vmreconcile.core.launching import ENV_SECRET, TOKEN_VARIABLE
from vmreconcile.core.planning import Options, make_plan
from vmreconcile.core.rollout.course import Limits
from vmreconcile.core.rollout.waves import in_waves
from vmreconcile.effects.fleet import Fleet
from vmreconcile.effects.looks import Look
from vmreconcile.errors import Place, UnreachableError
from vmreconcile.model.desired import DesiredFleet, DesiredServer, Health
from vmreconcile.model.names import ServerId
from vmreconcile.model.observed import FleetView
from vmreconcile.model.plan import Block, Change, Plan
from vmreconcile.model.secret import Secret
from vmreconcile.model.steps import to_json
from vmreconcile.model.values import JsonValue, Origin, OriginKind, Setting

SALT = "00112233445566778899aabbccddeeff"
TOKEN = "hf_SentinelTokenThatMustShowNowhere0000"  # made up
FILE = Origin(kind=OriginKind.MODEL, place=Place(file="models.d/m.yaml", line=9))


def wanted(
    name: str = "m@h1",
    *,
    args: Mapping[str, JsonValue] | None = None,
    env: Mapping[str, str] | None = None,
    port: int = 8001,
    **fields: object,
) -> DesiredServer:
    """A wanted server; plain values get an origin in models.d/m.yaml."""
    server = DesiredServer(
        id=ServerId.parse(name),
        model="org/model",
        port=port,
        settings={key: Setting(value=value, origin=FILE) for key, value in (args or {}).items()},
        env={key: Setting(value=value, origin=FILE) for key, value in (env or {}).items()},
        health=Health(startup_timeout=60.0, soak=0.0),
        origins={"port": FILE, "model": FILE},
    )
    return replace(server, **fields)  # type: ignore[arg-type]  # the fields of DesiredServer


def fleet(*servers: DesiredServer) -> DesiredFleet:
    """Wanted servers in their order."""
    return DesiredFleet(servers=tuple(sorted(servers, key=lambda server: server.id)))


def known(tokens: Mapping[str, str] | None = None) -> Known:
    """What the diff may know where these tokens were found (default: one)."""
    tokens = {"default": TOKEN} if tokens is None else tokens
    return Known(salt=SALT, tokens={name: fingerprint(SALT, TOKEN_VARIABLE, token) for name, token in tokens.items()})


@dataclass(slots=True)
class World:
    """Wanted servers and hosts in memory. `tokens` is what the controller found."""

    desired: DesiredFleet
    hosts: dict[str, FakeHost] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=lambda: {"default": TOKEN})

    def want(self, *servers: DesiredServer) -> World:
        """Ask for other servers of the same hosts."""
        self.desired = fleet(*servers)
        return self

    def change(self, change: Callable[[DesiredServer], DesiredServer]) -> World:
        """Ask for every server changed."""
        self.desired = fleet(*(change(server) for server in self.desired.servers))
        return self

    def fleet(self) -> Fleet:
        """The hosts behind sessions; what is looked for is what is wanted."""

        def open_host(name: str) -> FakeHost:
            if self.hosts[name].unreachable:
                raise UnreachableError(self.hosts[name].unreachable)
            return self.hosts[name]

        looks = {
            name: Look(
                executables=tuple(sorted({server.executable for server in self.desired.on(name)} or {""})),
                ports=tuple(sorted({server.port for server in self.desired.on(name)})),
            )
            for name in self.hosts
        }
        return Fleet(open_host=open_host, looks=looks, salt=SALT, forks=4)

    def observe(self) -> FleetView:
        """Look at every host."""
        return self.fleet().observe(sorted(self.hosts), stalls=True)

    def plan(self, **options: object) -> Plan:
        """Look and plan, in waves."""
        view, asked = self.observe(), Options(known=known(self.tokens), **options)  # type: ignore[arg-type]

        def again(blocks: Mapping[ServerId, Block]) -> Plan:
            return make_plan(self.desired, view, replace(asked, refused={**asked.refused, **blocks}))

        wanted = {server.id: server for server in self.desired.servers}
        return in_waves(again({}), again, wanted, Limits())

    def settle(self) -> World:
        """Send every step of a plan, server after server, without looking at what comes of it."""
        for change in self.plan().pending:
            payload = {
                "do": "steps",
                "slug": change.server.slug,
                "steps": [to_json(step) for step in (*change.stops, *change.steps)],
                "secrets": self._secrets(change.server),
            }
            self.fleet().request(change.server.host, payload, timeout=60.0)
        return self

    def _secrets(self, server: ServerId) -> dict[str, Secret]:
        env = next((each.env for each in self.desired.servers if each.id == server), {})
        own = {f"{ENV_SECRET}{name}": Secret(str(setting.value)) for name, setting in env.items()}
        return {**own, **{name: Secret(token) for name, token in self.tokens.items()}}

    def live(self, steps: int | None) -> World:
        """Give the controller a life of so many steps."""
        line = Lifeline(steps)
        for host in self.hosts.values():
            host.lifeline = line
        return self

    @property
    def steps_done(self) -> int:
        """Steps carried out so far on all hosts."""
        return sum(len(host.done) for host in self.hosts.values())

    def pids(self) -> dict[str, int]:
        """The pid of every root by `NAME@HOST`."""
        return {
            str(ServerId.from_slug(slug, name)): root.pid
            for name, host in self.hosts.items()
            for slug in host.slugs()
            if (root := host.root(slug))
        }

    def argv(self, server: ServerId) -> tuple[str, ...]:
        """What runs under a server's name, as it was started (without the interpreter); () where nothing does."""
        root = self.hosts[server.host].root(server.slug)
        return root.argv[1:] if root else ()


def world(*servers: DesiredServer, hosts: Iterable[FakeHost] = (), **options: object) -> World:
    """A world with a host (systemd, root, vLLM 0.32.0) for every host named, unless one is given."""
    made = {host.name: host for host in hosts}
    for server in servers:
        if server.id.host not in made:
            made[server.id.host] = FakeHost(server.id.host, **options)  # type: ignore[arg-type]
    return World(fleet(*servers), made)


def only(plan: Plan) -> Change:
    """The one change of a plan about one server."""
    (change,) = plan.changes
    return change

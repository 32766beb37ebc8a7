"""From files to a reconciled fleet in memory: what is prepared, looked at, agreed to and done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.applying import Witness, statuses
from tests.lab.fake_host import FakeHost
from tests.lab.worlds import TOKEN
from vmreconcile.effects.transport import TransportOptions
from vmreconcile.errors import InputError
from vmreconcile.flows.inputs import Sources, read_inputs
from vmreconcile.flows.prepare import Prepared, Reach, prepared
from vmreconcile.flows.reconcile import Scope, inventory_digest, observe_and_plan, reconcile, within
from vmreconcile.flows.tokens import TokenReader
from vmreconcile.model.names import ServerId
from vmreconcile.model.plan import Action, Plan

INVENTORY = "gpu:\n  hosts:\n    gpu1: {vllm_executable: /opt/v/bin/vllm}\n    gpu2: {vllm_state_dir: /srv/vm}\n"
MODEL = "name: qwen\nmodel: org/qwen\nhosts: gpu\nport: 8001\nhf_token: default\n"


class Site:
    """Files in a folder, and hosts in memory by name."""

    def __init__(self, folder: Path) -> None:
        """Two hosts, one model."""
        self.folder = folder
        self.hosts = {"gpu1": FakeHost("gpu1"), "gpu2": FakeHost("gpu2")}
        self.hosts["gpu1"].kernel.installed["/opt/v/bin/vllm"] = ("/opt/v/bin/vllm", "0.32.0")
        self.hosts["gpu2"].config, self.hosts["gpu2"].state = "/srv/vm/config", "/srv/vm/state"
        self.environ = {"HF_TOKEN": TOKEN, "HOME": str(folder)}
        self.opened: list[str] = []
        (folder / "hosts.yml").write_text(INVENTORY)
        (folder / "models.d").mkdir()
        (folder / "models.d/qwen.yaml").write_text(MODEL)

    @contextmanager
    def ready(self, limit: str | None = None) -> Iterator[Prepared]:
        """Everything read and prepared."""
        sources = Sources(
            inventory=(str(self.folder / "hosts.yml"),), models=self.folder / "models.d", environ=self.environ
        )
        options = TransportOptions(environ=self.environ, home=self.folder)

        def opener(connection: object) -> FakeHost:
            name: str = connection.host  # type: ignore[attr-defined]
            self.opened.append(name)
            return self.hosts[name]

        reach = Reach(limit=limit, options=options, tokens=TokenReader(self.environ, self.folder))
        with prepared(read_inputs(sources), reach, open_host=opener) as made:
            yield made


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An untouched one."""
    return Site(tmp_path)


def agree(plan: Plan) -> Plan:
    """Yes."""
    return plan


def test_reconcile_is_the_whole_line(site: Site) -> None:
    """Read, looked at, planned, agreed, done, looked at again; the second time nothing."""
    with site.ready() as made:
        plan, outcome = reconcile(made, Scope(), Witness(), agree)
        assert outcome is not None
        assert [change.action for change in plan.changes] == [Action.START, Action.START]
        assert statuses(outcome) == {"qwen@gpu1": "changed", "qwen@gpu2": "changed"}
    with site.ready() as made:
        plan, outcome = reconcile(made, Scope(), Witness(), agree)
        assert plan.pending == ()


def test_nothing_is_done_without_agreement(site: Site) -> None:
    """The plan is shown, and that is all."""
    seen: list[Plan] = []

    def refuse(plan: Plan) -> None:
        seen.append(plan)

    with site.ready() as made:
        plan, outcome = reconcile(made, Scope(), Witness(), refuse)
    assert (seen, outcome) == ([plan], None)
    assert not any(host.done for host in site.hosts.values())


def test_what_is_asked_of_a_host_is_what_is_wanted_there(site: Site) -> None:
    """Executables, ports and folders by host; a salt that is new each time."""
    salts = set()
    for _ in range(2):
        with site.ready() as made:
            observe_and_plan(made)
    for host in site.hosts.values():
        for request in host.requests:
            salts.add(request["salt"])
    first = {name: host.requests[0] for name, host in site.hosts.items()}
    assert (first["gpu1"]["executables"], first["gpu1"]["folders"]) == (["/opt/v/bin/vllm"], None)
    assert first["gpu2"]["folders"] == {"config": "/srv/vm/config", "state": "/srv/vm/state"}
    assert (first["gpu2"]["executables"], first["gpu2"]["ports"]) == ([""], [8001])
    assert len(salts) == 2


def test_the_state_folder_is_the_hosts(site: Site) -> None:
    """What is written lies where vllm_state_dir says."""
    with site.ready() as made:
        reconcile(made, Scope(), Witness(), agree)
    files = site.hosts["gpu2"].kernel.files
    assert "/srv/vm/config/env/qwen.env" in files
    assert "/srv/vm/state/servers/qwen.json" in files


def test_limit_narrows_what_is_reached(site: Site) -> None:
    """And what is planned; not what is wanted."""
    with site.ready("gpu2") as made:
        plan, _ = reconcile(made, Scope(), Witness(), agree)
        assert [server.id.host for server in within(made).servers] == ["gpu2"]
        assert len(made.inputs.desired.servers) == 2
    assert [str(change.server) for change in plan.changes] == ["qwen@gpu2"]
    assert set(site.opened) == {"gpu2"}


def test_scope_reaches_the_plan(site: Site) -> None:
    """only, restart, prune, actions."""
    one = frozenset({ServerId.parse("qwen@gpu1")})
    with site.ready() as made:
        reconcile(made, Scope(), Witness(), agree)
        _, plan = observe_and_plan(made, Scope(only=one, restart=one))
        assert [(str(change.server), change.action) for change in plan.changes] == [("qwen@gpu1", Action.RESTART)]
        _, plan = observe_and_plan(made, Scope(restart=one, actions=frozenset({Action.STOP})))
        assert plan.pending == ()


def test_the_token_is_in_the_env_file_alone(site: Site) -> None:
    """It went over the wire as a secret of that one request."""
    with site.ready() as made:
        plan, outcome = reconcile(made, Scope(), Witness(), agree)
        assert TOKEN not in repr((made, plan, outcome))
    for host in site.hosts.values():
        assert TOKEN not in repr((host.requests, host.answers, host.done))
        assert [path for path, file in host.kernel.files.items() if TOKEN in file.content] == [
            f"{host.config}/env/qwen.env"
        ]


def test_without_a_token_there_is_a_note(site: Site) -> None:
    """Servers start without one; a note says so."""
    del site.environ["HF_TOKEN"]
    with site.ready() as made:
        assert any("no Hugging Face token" in note for note in made.notes)
        _, outcome = reconcile(made, Scope(), Witness(), agree)
    assert outcome is not None
    assert set(statuses(outcome).values()) == {"changed"}
    assert "HF_TOKEN" not in site.hosts["gpu1"].kernel.files["/etc/vmreconcile/env/qwen.env"].content


def test_files_that_are_wrong_are_refused_before_any_host(site: Site) -> None:
    """With every problem."""
    (site.folder / "models.d/qwen.yaml").write_text(MODEL.replace("8001", "0") + "nonsense: 1\n")
    with pytest.raises(InputError) as caught, site.ready():
        pass
    assert len(caught.value.diagnostics) == 2
    assert site.opened == []


def test_the_inventory_digest_is_of_where_hosts_are(site: Site) -> None:
    """The same files give the same; another address another."""
    with site.ready() as made:
        first = inventory_digest(made)
    with site.ready() as made:
        assert inventory_digest(made) == first
    (site.folder / "hosts.yml").write_text(
        INVENTORY.replace("{vllm_state_dir", "{ansible_host: 10.9.9.9, vllm_state_dir")
    )
    with site.ready() as made:
        assert inventory_digest(made) != first

"""Tokens on real hosts that are not ours: kept away where systemd can, told with their place where not; rotation."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.inotify import Watch
from tests.lab.served import pids, roots
from tests.lab.wanting import changes, errors, fields, model
from tests.system.test_token import SYSTEM_ENV, log_in, new_token, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.command import Cli
    from tests.lab.hosts import Host

pytestmark = pytest.mark.system

DROP_IN = "/etc/systemd/system/vmreconcile-{}.service.d/mine.conf"


def test_tokens_of_the_host_do_not_reach_servers(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """In the manager's environment, /etc/environment, a drop-in: a server has ours or, with null, none at all."""
    (gpu1, *_) = hosts
    cli.inventory(
        {"vllm_executable": simulated_vllm}, {"gpu2": {"vllm_runtime": "process"}, "gpu3": {"ansible_user": "plain"}}
    )
    cli.models(**{"with-token": model(hf_token="default"), "without": model(port=8003, hf_token=None)})
    ours, theirs = new_token(), new_token()
    log_in(cli, ours)
    for host in hosts:
        host.shell(
            f"echo HF_TOKEN={theirs} >>/etc/environment; echo HUGGING_FACE_HUB_TOKEN={theirs} >>/etc/environment"
        )
    gpu1.shell(f"systemctl set-environment HF_TOKEN={theirs} HUGGING_FACE_HUB_TOKEN={theirs}")
    try:
        applied = cli("apply", "--json")
        assert applied.returncode == 0, applied
        assert tokens(hosts) == {host.name: {"8001": ours, "8003": None} for host in hosts}
        assert not any("HUGGING_FACE_HUB_TOKEN" in one.environ for host in hosts for one in roots(host))
    finally:
        gpu1.shell("systemctl unset-environment HF_TOKEN HUGGING_FACE_HUB_TOKEN")
        for host in hosts:
            host.shell("sed -i /TOKEN/d /etc/environment")


def test_a_drop_in_with_another_token_is_named(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """One that loses is drift, and nothing is restarted for it; one that wins blocks, until it is gone."""
    (gpu1, *_) = hosts
    cli.inventory({"vllm_executable": simulated_vllm})
    cli.model("tiny", model(hosts="gpu1", hf_token="default"))
    ours, theirs = new_token(), new_token()
    log_in(cli, ours)
    assert cli("apply").returncode == 0
    before = pids(hosts)

    drop_in = DROP_IN.format("tiny")
    gpu1.write(drop_in, f"[Service]\nEnvironment=HF_TOKEN={theirs}\n")
    gpu1.shell("systemctl daemon-reload")
    quiet = cli("apply")
    assert quiet.returncode == 0, quiet
    assert f"HF_TOKEN in {drop_in}:2" in quiet.stdout
    (row,) = cli("status", "--json").json["servers"]
    assert [(field["path"], field["before"]) for field in row["drift"]] == [
        ("hf_token.shadow", f"HF_TOKEN in {drop_in}:2")
    ]
    assert pids(hosts) == before

    gpu1.write("/etc/vllm.env", f"# theirs\nHF_TOKEN={theirs}\n")
    gpu1.write(drop_in, "[Service]\nEnvironmentFile=/etc/vllm.env\n")
    gpu1.shell("systemctl daemon-reload; systemctl restart vmreconcile-tiny")
    before = pids(hosts)
    plan = cli("plan", "--json")
    assert changes(plan) == {"tiny@gpu1": ("blocked", "env_shadowed", False)}
    assert fields(plan, "tiny@gpu1")["hf_token.shadow"] == ("HF_TOKEN in /etc/vllm.env:2", None)
    applied = cli("apply", "--json")
    assert applied.returncode == 1, applied
    assert "HF_TOKEN in /etc/vllm.env:2 wins" in errors(applied)["tiny@gpu1"]["summary"]
    assert pids(hosts) == before
    assert not any(secret in str(said) for secret in (ours, theirs) for said in (quiet, plan, applied))

    gpu1.shell('rm "$1"; systemctl daemon-reload', drop_in)
    assert changes(cli("plan", "--json")) == {"tiny@gpu1": ("restart", "token_changed", True)}
    assert cli("apply").returncode == 0
    assert tokens(hosts)["gpu1"] == {"8001": ours}
    gpu1.exec(["rm", "/etc/vllm.env"])


def test_a_token_as_a_credential(cli: Cli, hosts: list[Host], simulated_vllm: str) -> None:
    """In no environment, only in the file that systemd hands to the unit; rotated, dropped, and back again."""
    gpu1, gpu2, _ = hosts
    cli.inventory(
        {"vllm_executable": simulated_vllm, "vllm_token_delivery": "credential"},
        {"gpu2": {"vllm_token_delivery": "environment"}, "gpu3": {"ansible_user": "plain"}},
    )
    cli.model("tiny", model(hosts="gpu", hf_token="default"))
    first, second = new_token(), new_token()
    path = log_in(cli, first)

    def credentials() -> list[str]:
        found = []
        for host in (gpu1, hosts[2]):
            (one,) = roots(host)
            assert "HF_TOKEN" not in one.environ
            assert first not in str(one.environ)
            assert second not in str(one.environ)
            found.append(host.read(one.environ["HF_TOKEN_PATH"]))
        return found

    applied = cli("apply", "--json")
    assert (applied.returncode, applied.json["changed"]) == (0, 3), applied
    assert credentials() == [first, first]
    assert gpu1.exec(["stat", "-c", "%a %U", f"{SYSTEM_ENV}/tiny.token"]).stdout == "600 root\n"
    assert first not in gpu1.read(f"{SYSTEM_ENV}/tiny.env")
    assert tokens([gpu2]) == {"gpu2": {"8001": first}}
    assert cli("plan", "--detailed-exitcode").returncode == 0
    assert cli("auth", "status", "--on-hosts").returncode == 0

    path.write_text(second)
    assert set(changes(cli("plan", "--json")).values()) == {("restart", "token_changed", True)}
    assert cli("apply").returncode == 0
    assert credentials() == [second, second]
    assert cli("plan", "--detailed-exitcode").returncode == 0

    cli.model("tiny", model(hosts="gpu", hf_token=None))
    assert cli("apply").returncode == 0
    assert not gpu1.exists(f"{SYSTEM_ENV}/tiny.token")
    assert "HF_TOKEN_PATH" not in roots(gpu1)[0].environ
    assert cli("plan", "--detailed-exitcode").returncode == 0
    cli.model("tiny", model(hosts="gpu", hf_token="default", state="absent"))
    assert cli("apply").returncode == 0
    assert not gpu1.exists("/etc/vmreconcile")


class Serving:
    """How many of some servers ran at once, sampled all the while."""

    def __init__(self, host: Host, ports: set[str]) -> None:
        """Watch the servers of these ports."""
        self.host = host
        self.ports = ports
        self.least = len(ports)
        self._over = threading.Event()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            up = {port for port in tokens([self.host])[self.host.name] if port in self.ports}
            self.least = min(self.least, len(up))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample, in a thread, while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


@pytest.mark.parametrize("runtime", ["systemd", "process"])
def test_a_rotation_restarts_just_its_servers_one_after_the_other(
    cli: Cli, hosts: list[Host], simulated_vllm: str, runtime: str
) -> None:
    """Three servers, two with the token: two restarts, never both down; env files 0600 and root's at every moment."""
    (gpu1, *_) = hosts
    cli.inventory({"vllm_executable": simulated_vllm, "vllm_runtime": runtime})
    cli.models(
        a=model(hosts="gpu1", hf_token="default"),
        b=model(hosts="gpu1", port=8002, hf_token="default"),
        c=model(hosts="gpu1", port=8003, hf_token=None),
    )
    path = log_in(cli, new_token())
    assert cli("apply").returncode == 0
    before = {one.argv[one.argv.index("--port") + 1]: one.pid for one in roots(gpu1)}
    new = new_token()
    path.write_text(new)
    watch, serving = Watch(Path(f"/proc/{gpu1.pid}/root{SYSTEM_ENV}")), Serving(gpu1, {"8001", "8002"})
    with watch.watching(), serving.watching():
        rotated = cli("apply", "--json")
    assert (rotated.returncode, rotated.json["changed"]) == (0, 2), rotated
    assert tokens([gpu1]) == {"gpu1": {"8001": new, "8002": new, "8003": None}}
    after = {one.argv[one.argv.index("--port") + 1]: one.pid for one in roots(gpu1)}
    assert {port for port in before if before[port] != after[port]} == {"8001", "8002"}
    assert serving.least == 1, "one after the other"
    assert sorted(seen.name for seen in watch.seen if seen.what == "moved-to") == ["a.env", "b.env"]
    assert {(seen.mode, seen.uid) for seen in watch.seen} <= {(0o600, 0), (None, None)}
    assert not [seen for seen in watch.seen if seen.what in {"modify", "create"} and seen.name.endswith(".env")]
    lines = [line for line in rotated.stderr.splitlines() if "restart (token_changed)" in line or ": changed" in line]
    assert [line.partition("@")[0] for line in lines] == ["a", "a", "b", "b"]

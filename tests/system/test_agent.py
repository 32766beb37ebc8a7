"""The agent under a real systemd: units of the system and of a user, the journal, env files as systemd reads them."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.agent.driver import Agent, Refused
from tests.lab.space import wait_until
from vmreconcile.agent import envfile

if TYPE_CHECKING:
    from tests.lab.hosts import Host

pytestmark = pytest.mark.system

SLUG = "qwen2.5-7b"
UNIT = f"vmreconcile-{SLUG}.service"
PORT = 8001
MEASURED = {
    "key": "ff",
    "gpu": "NVIDIA L4",
    "gpu_memory": 1,
    "vllm_version": "0.32.0",
    "utilization": 0.9,
    "max_model_len": None,
    "figures": {"kv_tokens": 16},
    "predicted": None,
}
SPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")


@contextlib.contextmanager
def agent_on(host: Host, user: str = "root") -> Iterator[Agent]:
    """An agent on a host, past ssh, with the user's default folders."""
    switch = () if user == "root" else ("runuser", "-u", user, "--")
    prefix = ("nsenter", f"--target={host.pid}", *SPACES, "--", *switch)
    made = Agent(None, prefix=prefix, python=sys.executable)
    try:
        yield made
    finally:
        made.close()


def unit_text(command: str, env_path: str, target: str, output: str = "journal") -> str:
    """A unit as the tool writes them, as far as the agent is concerned."""
    return (
        f"[Service]\nType=exec\nEnvironment=VMRECONCILE_SERVER={SLUG}\nEnvironmentFile={env_path}\n"
        f"ExecStart={command}\nRestart=always\nRestartSec=1\nTimeoutStopSec=20\n"
        f"StandardOutput={output}\nStandardError={output}\n[Install]\nWantedBy={target}\n"
    )


def start_steps(agent: Agent, command: str, **env: str) -> list[dict[str, Any]]:
    """Every step that brings a server up as a unit."""
    seen = agent.observe()
    config, scope, home = seen["folders"]["config"], seen["systemd"]["scope"], seen["host"]["home"]
    folder = "/etc/systemd/system" if scope == "system" else f"{home}/.config/systemd/user"
    target = "multi-user.target" if scope == "system" else "default.target"
    env_path = f"{config}/env/{SLUG}.env"
    output = "journal" if scope == "system" else f"append:{seen['folders']['state']}/log/{SLUG}.log"
    content = unit_text(command, env_path, target, output)
    return [
        {"step": "write-record", "slug": SLUG, "record": {"runtime": "systemd", "env_names": sorted(env)}},
        {"step": "write-env", "path": env_path, "entries": [list(entry) for entry in env.items()]},
        {"step": "write-file", "path": f"{folder}/{UNIT}", "content": content, "mode": 0o644},
        {"step": "systemctl", "verb": "daemon-reload", "unit": "", "scope": scope},
        {"step": "systemctl", "verb": "enable", "unit": UNIT, "scope": scope},
        {"step": "systemctl", "verb": "start", "unit": UNIT, "scope": scope},
    ]


def ready(agent: Agent) -> dict[str, Any]:
    """Wait until the server is healthy and return it."""
    found: list[dict[str, Any]] = []

    def healthy() -> bool:
        found[:] = [agent.server(SLUG)]
        return bool((found[0]["endpoint"] or {}).get("health") == 200)

    wait_until(healthy, 30, "the server to be healthy", pause=0.2)
    return found[0]


@pytest.mark.parametrize("user", ["root", "plain"])
def test_a_unit_from_start_to_removal(hosts: list[Host], simulated_vllm: str, user: str) -> None:
    """System units for root, user units for anybody else: seen whole, logged, restarted, stopped, removed."""
    command = f"{simulated_vllm} serve a/model --host 127.0.0.1 --port {PORT}"
    with agent_on(hosts[0], user) as agent:
        scope = "system" if user == "root" else "user"
        seen = agent.observe()
        assert (seen["systemd"]["scope"], seen["systemd"]["problem"]) == (scope, None)
        assert seen["systemd"]["version"] >= 252
        assert seen["servers"] == []
        steps = start_steps(agent, command, MARK="it's $5, 100%", HF_TOKEN="hf_sentinelSENTINELsentinelSENT")
        assert all(answer["changed"] for answer in agent.steps(*steps))
        server = ready(agent)
        unit, process = server["unit"], server["process"]
        assert (unit["active"], unit["enabled"], unit["main_pid"]) == ("active", "enabled", process["pid"])
        assert unit["text"] == steps[2]["content"]
        assert (unit["drop_ins"], unit["needs_reload"], unit["exit_code"]) == ([], False, None)
        assert process["env"]["MARK"]["value"] == "it's $5, 100%"
        assert process["env"]["HF_TOKEN"] == server["env_file"]["env"]["HF_TOKEN"]
        assert process["env"]["HF_TOKEN"]["value"] is None
        assert [child["title"] for child in process["children"]] == ["VLLM::EngineCore"]
        assert [answer["changed"] for answer in agent.steps(*steps[4:])] == [False, False]
        gate = agent.ask("gate", slug=SLUG, address="127.0.0.1", port=PORT, completion=True, timeout=10)[0]
        assert gate["completion"]["ok"] is True

        progress = agent.ask("log", slug=SLUG, lines=50)[1]
        assert any("Application startup complete." in line for part in progress for line in part["lines"])

        note = {"step": "note-measured", "slug": SLUG, "measured": MEASURED}
        root = {name: process[name] for name in ("pid", "start_ticks")}
        assert agent.steps({**note, **root})[0]["changed"] is True
        assert agent.server(SLUG)["record"] == {**server["record"], "measured": MEASURED}

        hosts[0].exec(["kill", "-9", str(process["pid"])])
        wait_until(lambda: (agent.server(SLUG)["process"] or process)["pid"] != process["pid"], 20, "a restart")
        again = ready(agent)
        assert (again["unit"]["restarts"], again["orphans"]) == (1, [])
        with pytest.raises(Refused, match="moved"):
            agent.steps({**note, **root})
        agent.steps(steps[0])
        assert agent.server(SLUG)["record"]["measured"] == MEASURED

        disable = {"step": "systemctl", "verb": "disable", "unit": UNIT, "scope": scope}
        stop = {"step": "stop-unit", "unit": UNIT, "scope": scope, "grace_s": 5}
        assert [answer["changed"] for answer in agent.steps(disable, stop, stop)] == [True, True, False]
        stopped = agent.server(SLUG)
        assert (stopped["process"], stopped["unit"]["active"]) == (None, "inactive")
        assert not hosts[0].pids("VLLM::")
        remove = {"step": "remove-file", "path": stopped["unit"]["path"]}
        agent.steps(remove, steps[3], {"step": "remove-server", "slug": SLUG})
        assert agent.observe()["servers"] == []
        assert not hosts[0].exists(seen["folders"]["state"])


def test_a_stop_while_it_starts(hosts: list[Host], simulated_vllm: str) -> None:
    """The TERM that a starting vLLM swallows is repeated, long before systemd would kill it."""
    command = f"{simulated_vllm} serve a/model --host 127.0.0.1 --port {PORT}"
    env = {"VLLM_SIMULATOR_START_SECONDS": "60", "VLLM_SIMULATOR_TERM_SECONDS": "0.1"}
    with agent_on(hosts[0]) as agent:
        agent.steps(*start_steps(agent, command, **env))
        wait_until(lambda: bool(hosts[0].pids("VLLM::EngineCore")), 20, "its engine to start")
        begun = time.monotonic()
        agent.steps({"step": "stop-unit", "unit": UNIT, "scope": "system", "grace_s": 2})
        assert 2 <= time.monotonic() - begun < 15
        assert agent.server(SLUG)["unit"]["active"] in ("inactive", "failed")
        assert not hosts[0].pids("VLLM::")


def test_starts_are_not_counted_against_a_person(hosts: list[Host]) -> None:
    """A unit that is stopped and started more often than its start limit allows comes up, for it is reset each time."""
    with agent_on(hosts[0]) as agent:
        steps = start_steps(agent, "/bin/sleep 600", A="1")
        steps[2]["content"] = "[Unit]\nStartLimitIntervalSec=600\nStartLimitBurst=2\n" + steps[2]["content"]
        reset = {"step": "systemctl", "verb": "reset-failed", "unit": UNIT, "scope": "system"}
        stop = {"step": "stop-unit", "unit": UNIT, "scope": "system", "grace_s": 5}
        for _ in range(4):
            agent.steps(*steps[:-1], reset, steps[-1], stop)
        agent.steps({"step": "systemctl", "verb": "disable", "unit": UNIT, "scope": "system"}, reset)


def test_a_user_without_systemd_at_work(hosts: list[Host], simulated_vllm: str) -> None:
    """An ordinary user's server of runtime `process`: own folders, started, answering, stopped, removed."""
    with agent_on(hosts[0], "plain") as agent:
        seen = agent.observe(executables=[simulated_vllm])
        folders = seen["folders"]
        assert folders["writable"] is True
        assert folders["state"] == f"{seen['host']['home']}/.local/state/vmreconcile"
        env_path, log_path = f"{folders['config']}/env/{SLUG}.env", f"{folders['state']}/log/{SLUG}.log"
        argv = [simulated_vllm, "serve", "a/model", "--host", "127.0.0.1", "--port", str(PORT)]
        spawn = {"step": "spawn", "slug": SLUG, "argv": argv, "env_path": env_path, "log_path": log_path, "record": {}}
        agent.steps({"step": "write-env", "path": env_path, "entries": [["A", "1"]]}, spawn)
        process = ready(agent)["process"]
        assert process["uid"] == seen["host"]["uid"] != 0
        names = {name: process[name] for name in ("pid", "start_ticks")} | {"boot_id": seen["host"]["boot_id"]}
        stop = {"step": "stop-process", "slug": SLUG, "grace_s": 5, **names}
        agent.steps(stop, {"step": "remove-server", "slug": SLUG})
        assert not hosts[0].pids("VLLM::")
        assert not hosts[0].exists(folders["state"])


def test_a_reboot_forgets_nothing_and_believes_nothing(hosts: list[Host], simulated_vllm: str) -> None:
    """After a reboot, a record of before names no process, whatever has its number now."""
    with agent_on(hosts[0]) as agent:
        folders = agent.observe()["folders"]
        env_path, log_path = f"{folders['config']}/env/{SLUG}.env", f"{folders['state']}/log/{SLUG}.log"
        argv = [simulated_vllm, "serve", "a/model", "--host", "127.0.0.1", "--port", str(PORT)]
        spawn = {"step": "spawn", "slug": SLUG, "argv": argv, "env_path": env_path, "log_path": log_path, "record": {}}
        answer = agent.steps({"step": "write-env", "path": env_path, "entries": []}, spawn)[-1]
        boot = agent.observe()["host"]["boot_id"]
    record = json.loads(hosts[0].read(f"{folders['state']}/servers/{SLUG}.json"))
    assert (record["pid"], record["boot_id"]) == (answer["pid"], boot)
    hosts[0].reboot()
    with agent_on(hosts[0]) as agent:
        # The hosts share this machine's kernel and so its boot id: what a real reboot changes is written by hand.
        hosts[0].write(f"{folders['state']}/servers/{SLUG}.json", json.dumps({**record, "boot_id": "before"}), 0o600)
        server = agent.server(SLUG)
        assert (server["process"], server["orphans"]) == (None, [])
        assert server["record"]["pid"] == answer["pid"]
        agent.steps({"step": "remove-server", "slug": SLUG})


def test_what_the_user_changed_by_hand_is_seen(hosts: list[Host], simulated_vllm: str) -> None:
    """An edited unit, a drop-in, and a unit without our marker."""
    command = f"{simulated_vllm} serve a/model --host 127.0.0.1 --port {PORT}"
    with agent_on(hosts[0]) as agent:
        agent.steps(*start_steps(agent, command, A="1"))
        ready(agent)
        path = f"/etc/systemd/system/{UNIT}"
        hosts[0].write(path, hosts[0].read(path) + "# edited\n")
        hosts[0].write(f"{path}.d/mine.conf", "[Service]\nEnvironment=VMRECONCILE_SERVER=\nEnvironment=X=1\n")
        unit = agent.server(SLUG)["unit"]
        assert unit["text"].endswith("# edited\n")
        assert unit["needs_reload"] is True
        hosts[0].exec(["systemctl", "daemon-reload"])
        assert agent.server(SLUG)["unit"]["drop_ins"] == [f"{path}.d/mine.conf"]
        hosts[0].exec(["systemctl", "restart", UNIT])
        wait_until(lambda: bool(hosts[0].pids("VLLM::EngineCore")), 20, "its engine to start")
        server = agent.server(SLUG)
        assert server["process"] is None
        assert server["orphans"], "what runs in our unit is ours to stop, marker or not"
        assert agent.observe()["strangers"] == []


def test_a_failing_unit_says_why(hosts: list[Host]) -> None:
    """The words of systemctl come back; units that are not ours are out of reach."""
    with agent_on(hosts[0]) as agent:
        with pytest.raises(Refused) as refused:
            agent.steps(*start_steps(agent, "/nowhere/vllm serve", A="1"))
        assert refused.value.kind == "systemctl-failed"
        assert UNIT in str(refused.value)
        assert refused.value.answer["index"] == 5
        for unit in ("ssh.service", "vmreconcile-.service", "vmreconcile-a b.service", "vmreconcile-a.timer"):
            for step in ({"step": "systemctl", "verb": "stop"}, {"step": "stop-unit", "grace_s": 1}):
                with pytest.raises(Refused) as refused:
                    agent.steps({**step, "unit": unit, "scope": "system"})
                assert refused.value.kind == "not-ours"


def test_another_users_server_is_a_stranger(hosts: list[Host], simulated_vllm: str) -> None:
    """A user who is not root cannot read root's processes, says so, and sees who holds the port."""
    command = f"{simulated_vllm} serve a/model --host 127.0.0.1 --port {PORT}"
    with agent_on(hosts[0]) as agent:
        agent.steps(*start_steps(agent, command, A="1"))
        pid = ready(agent)["process"]["pid"]
        with agent_on(hosts[0], "plain") as other:
            seen = other.observe(ports=[PORT])
            assert seen["host"]["sees_all"] is True
            hosts[0].exec(["mount", "-o", "remount,hidepid=2", "/proc"])
            try:
                hidden = other.observe(ports=[PORT])
            finally:
                hosts[0].exec(["mount", "-o", "remount,hidepid=0", "/proc"])
        assert (hidden["host"]["sees_all"], hidden["strangers"]) == (False, [])
        assert [(row["port"], row["pid"], row["user"]) for row in hidden["ports"]] == [(PORT, None, "root")]
        assert [(row["pid"], row["user"]) for row in seen["strangers"]] == [(pid, "root")]
        assert "cannot be read" in seen["strangers"][0]["why"]
        assert [(row["port"], row["user"], row["slug"]) for row in seen["ports"]] == [(PORT, "root", None)]


def test_a_journal_that_may_not_be_read_is_told(hosts: list[Host], simulated_vllm: str) -> None:
    """With no journal on disk, a user's units log where the user may not look: an error with a remedy, not silence."""
    command = f"{simulated_vllm} serve a/model --host 127.0.0.1 --port {PORT}"
    with agent_on(hosts[0], "plain") as agent:
        steps = start_steps(agent, command, A="1")
        steps[2]["content"] = steps[2]["content"].replace("append:", "journal\n#")
        agent.steps(*steps)
        assert agent.server(SLUG)["log"]["kind"] == "journal"
        with pytest.raises(Refused) as refused:
            agent.ask("log", slug=SLUG)
        assert refused.value.kind == "no-log"
        assert "systemd-journal" in str(refused.value)


HOSTILE = {
    "BLANKS": "  a  b\t ",
    "QUOTES": "a\"b'c`d",
    "DOLLAR": "$HOME ${HOME} $(id) $$ %h %% \\$x",
    "BACKSLASH": '\\ \\\\ \\n \\" \\',
    "LINES": "one\ntwo\n\n#three\n;four\nX=5\n",
    "JSON": json.dumps({"a": [1, "x y", None], "b": {"c": "\\d\"e'"}}),
    "UNICODE": "grüße 日本語 🙂 \u00a0",
    "CONTROL": "a\x01b\x7fc\rd\te",
    "EMPTY": "",
    "HASH": "#no comment",
    "LONG": "x" * 60_000,
}

EDITED = [
    "A=1\n  B = 2  \nC=a b  c \n",
    "A='a\nb'\nB='a'\"b\"c\n",
    'A="a\\x\\"\\$\\\n"\nB=a\\\nb\nC=a\\ b\\\\\n',
    "# A=1\n; B=2\n#x\\\nC=3\nD=4\n",
    "A=1\nA=2\nexport B=1\nC\nD=\n1E=5\n",
    'A="un\nfinished',
    "A=1\r\nB=2\r\n",
    "A=x'y'z\nB=\"x\"y\nC= 'x' 'y' \nD='x' y\n",
    "A=\\\nB=1\nC=x \\\ty \\ \nD=x   \\\n  y\n",
    "A=a=b=c\n=x\n B\t=\tc\t\n",
]


def systemd_reads(host: Host, texts: list[str]) -> list[dict[str, str]]:
    """What a real service gets from each env file."""
    for number, text in enumerate(texts):
        host.write(f"/run/t/{number}.env", text)
        unit = f"[Service]\nEnvironmentFile=/run/t/{number}.env\nExecStart=/bin/sleep 600.{number}\n"
        host.write(f"/run/systemd/system/t{number}.service", unit)
    names = [f"t{number}.service" for number in range(len(texts))]
    host.exec(["systemctl", "daemon-reload"])
    host.exec(["systemctl", "start", *names])
    found = {}
    for process in host.processes():
        if process.argv[:1] == ("/bin/sleep",):
            entries = Path(f"/proc/{process.outer_pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
            found[process.argv[1]] = dict(entry.split("=", 1) for entry in entries)
    host.exec(["systemctl", "stop", *names])
    return [found[f"600.{number}"] for number in range(len(texts))]


def test_env_files_mean_to_us_what_they_mean_to_systemd(hosts: list[Host]) -> None:
    """Ours verbatim, and hand-edited ones the same, quirks included."""
    written = envfile.render(sorted(HOSTILE.items()))
    own, *edited = systemd_reads(hosts[0], [written, *EDITED])
    assert {name: own.get(name) for name in HOSTILE} == HOSTILE
    for text, seen in zip(EDITED, edited, strict=True):
        expected = envfile.parse(text)
        names = {name for name in seen if len(name) == 1} | set(expected)
        assert {name: seen.get(name) for name in names} == expected, text

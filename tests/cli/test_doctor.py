"""doctor: what it says of sound and of broken hosts, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.desk import Desk, Said
from tests.lab.fake_kernel import Behaviour
from tests.lab.hub import Gate, Hub, Repository
from tests.lab.worlds import TOKEN
from vmreconcile.effects.ends import explain
from vmreconcile.effects.fleet import Session
from vmreconcile.effects.ship import NO_PYTHON
from vmreconcile.flows import prepare
from vmreconcile.model.connection import Connection, ConnectionKind

GIB = 1 << 30
STATE = "/var/lib/vmreconcile"
SOUND: dict[str, Any] = {
    "caches": [{"slug": "qwen", "path": "/root/.cache/huggingface/hub", "bytes": 3 * GIB, "partial": 0}],
    "disks": [
        {"path": STATE, "total": 100 * GIB, "free": 50 * GIB, "inodes_free": 1000},
        {"path": "/root/.cache/huggingface/hub", "total": 100 * GIB, "free": 50 * GIB},
        {"path": "/tmp", "total": 100 * GIB, "free": 50 * GIB},
        {"path": "/dev/shm", "total": 8 * GIB, "free": 8 * GIB},
    ],
    "limits": {
        "login": {"nofile": [1024, 4096], "nproc": [1000, 1000]},
        "systemd": {"nofile": [1024, 1 << 30], "nproc": [1000, 1000]},
    },
    "leftovers": [],
    "token_files": [],
    "hubs": [{"endpoint": "https://huggingface.co", "problem": None, "seconds": 0.1}],
}
OTHER = TOKEN.replace("0000", "9999")
TOO_OLD = "vmreconcile: Python 3.6.15 is too old: /usr/bin/python3"
NO_KV = ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",)
UNKNOWN = (
    "(EngineCore pid=7) ERROR 01-31 12:00:00 [core.py:1] KeyError: 'frobnicate'",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
)


def checks(said: Said) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The checks of a JSON report by host and name."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for check in said.json["checks"]:
        found.setdefault((check["host"] or "", check["check"]), []).append(check)
    return found


@pytest.fixture
def sound(desk: Desk) -> Desk:
    """Both hosts have what they need, and their servers run."""
    for host in desk.hosts.values():
        host.checkup = SOUND
    desk("apply", "-y")
    return desk


def test_a_sound_fleet_is_well(sound: Desk) -> None:
    """Every line ok; nothing is sent but questions; the summary counts."""
    before = {name: len(host.done) for name, host in sound.hosts.items()}
    said = sound("doctor")
    assert said.code == 0, said
    assert "fail" not in said.out.replace("0 fail", "")
    lines = said.out.splitlines()
    assert lines[0] == "here"
    assert any(line.startswith("  ok       server: qwen@gpu1: ready") for line in lines)
    assert lines[-1].endswith(" ok, 3 skipped"), "HF_HUB_OFFLINE is set in tests: neither hub nor access is asked"
    assert {name: len(host.done) for name, host in sound.hosts.items()} == before
    quiet = sound("doctor", "-q").out.splitlines()
    assert quiet[0] == "here"
    assert not [line for line in quiet if line.startswith("  ok")]
    assert TOKEN not in said.out + said.err


ALL = [
    *("python", "folders", "clock", "runtime", "lingering", "vllm", "gpu", "disk", "disk", "shared_memory", "cache"),
    *("model", "open_files", "processes", "hub", "port", "env_file", "token", "server"),
    *("orphan", "stranger", "leftover", "token", "record"),
]


def test_every_check_has_its_line_where_all_is_well(sound: Desk) -> None:
    """In the order of the page, once a host; for a server its own."""
    found = [check for check in sound("doctor", "--json").json["checks"] if check["host"] == "gpu1"]
    assert [check["check"] for check in found] == ["access", *ALL]
    assert {check["status"] for check in found} == {"ok", "skipped"}
    told = {check["check"]: check["summary"] for check in found}
    assert told["port"] == "port 8001 is its own"
    assert told["clock"].startswith("the clock agrees with the one here")
    assert told["env_file"] == "/etc/vmreconcile/env/qwen.env, mode 0600"
    assert told["open_files"] == "systemd: 1048576 open files of 1048576 that a unit asks for"


def broken(**parts: object) -> dict[str, Any]:
    """A host with something wrong."""
    return {**SOUND, **parts}


@pytest.mark.parametrize(
    ("facts", "name", "status", "words"),
    [
        (broken(disks=[{"path": STATE, "total": GIB, "free": 0}]), "disk", "fail", "0.0 of 1.0 GiB free"),
        (broken(disks=[{"path": STATE, "total": GIB, "free": GIB, "read_only": True}]), "disk", "fail", "read-only"),
        (broken(disks=[{"path": STATE, "total": GIB, "free": GIB, "inodes_free": 0}]), "disk", "fail", "no inode"),
        (broken(disks=[{"path": "/dev/shm", "total": GIB, "free": 1 << 20}]), "shared_memory", "fail", "0.0 of 1.0"),
        (
            broken(disks=[{"path": "/root/.cache/huggingface/hub", "total": 9 * GIB, "free": GIB}]),
            "cache",
            "warn",
            "1.0 of 9.0 GiB free",
        ),
        (broken(limits={"systemd": {"nofile": [256, 1024]}}), "open_files", "warn", "1024 open files of 1048576"),
        (broken(disks=[{"path": "/tmp", "total": GIB, "free": 1 << 20}]), "disk", "warn", "/tmp: 0.0 of 1.0"),
        (broken(disks=[{"path": "/tmp", "total": GIB, "free": GIB, "read_only": True}]), "disk", "fail", "/tmp"),
        (
            broken(leftovers=[{"path": "/dev/shm/psm_1", "bytes": 5 << 20, "age_seconds": 900}]),
            "leftover",
            "warn",
            "/dev/shm: 5 MiB that no process uses: psm_1; up to 15 min old",
        ),
        (
            broken(hubs=[{"endpoint": "https://huggingface.co", "problem": "timed out"}]),
            "hub",
            "warn",
            "cannot be reached: timed out",
        ),
        (
            broken(token_files=[{"path": "/etc/environment", "line": 3, "variable": "HF_TOKEN"}]),
            "token",
            "ok",
            "HF_TOKEN in /etc/environment:3",
        ),
        (
            broken(caches=[{"slug": "qwen", "path": "/c", "bytes": None, "partial": 0}]),
            "model",
            "ok",
            "first start downloads it",
        ),
    ],
)
def test_what_is_wrong_with_a_host_is_told_with_its_remedy(
    sound: Desk, facts: dict[str, Any], name: str, status: str, words: str
) -> None:
    """On that host alone; exit 1 only for what fails."""
    sound.hosts["gpu1"].checkup = facts
    said = sound("doctor", "--json")
    (check,) = [each for each in checks(said)["gpu1", name] if words in each["summary"]]
    assert check["status"] == status
    assert bool(check["remedy"]) == (status in {"warn", "fail"})
    assert said.code == (1 if status == "fail" else 0)
    assert not [each for each in said.json["checks"] if each["host"] == "gpu2" and each["status"] == "fail"]


def test_what_is_wrong_with_servers_is_told(sound: Desk) -> None:
    """A port that a stranger holds, an env file that others may read, an orphan, a failed start with its cause."""
    host = sound.hosts["gpu1"]
    root = host.root("qwen")
    assert root is not None
    host.kernel.end(root, family=False)
    host.stranger(8001)
    host.kernel.files[f"{host.config}/env/qwen.env"].mode = 0o644
    sound.hosts["gpu2"].kernel.behaviours["qwen"] = Behaviour(exit_code=1, log=NO_KV)
    sound("restart", "qwen@gpu2")
    said = sound("doctor", "--json")
    found = checks(said)
    assert said.code == 1
    assert "not ours" in found["gpu1", "port"][0]["summary"]
    assert "mode 0644" in found["gpu1", "env_file"][0]["summary"]
    assert "vm cleanup" in found["gpu1", "orphan"][0]["remedy"]
    assert found["gpu1", "stranger"][0]["status"] == "ok"
    (server,) = found["gpu2", "server"]
    assert "not enough memory for the KV cache (no_kv_memory)" in server["summary"]
    assert "gpu_memory_utilization is 0.5, models.d/qwen.yaml:7" in server["remedy"]
    assert "qwen@gpu2 on host gpu2" in server["remedy"]


def test_status_and_logs_say_the_same(sound: Desk) -> None:
    """The cause, the line of the log, the remedy with file and line; not for what runs."""
    sound.hosts["gpu2"].kernel.behaviours["qwen"] = Behaviour(exit_code=1, log=NO_KV)
    failed = sound("restart", "qwen@gpu2")
    expected = "gpu_memory_utilization is 0.5, models.d/qwen.yaml:7"
    assert expected in failed.out
    said = sound("status")
    assert "qwen@gpu2: not enough memory for the KV cache (no_kv_memory)" in said.out
    assert "  log   ValueError: No available memory for the cache blocks." in said.out
    assert expected in said.out
    assert "qwen@gpu1: " not in said.out
    logs = sound("logs", "qwen@gpu2")
    assert expected in logs.err
    assert expected not in logs.out
    assert sound("logs", "qwen@gpu1").err == ""
    assert sound("status", "--json").code == 0


def failing(desk: Desk) -> None:
    """Let the model's token come from a program that gives none."""
    desk.write("inventory/group_vars/all.yml", "vllm_token_sources:\n  vault: {command: [sh, -c, exit 7]}\n")
    desk.change("port: 8001\n", "port: 8001\nhf_token: vault\n")


def test_a_token_source_that_fails_is_one_check_of_many(sound: Desk) -> None:
    """With its name, its place and what to do; every other line is there, and no server is said to lack a token."""
    failing(sound)
    said = sound("doctor", "--json")
    found = checks(said)
    assert said.code == 1
    (token,) = found["", "token"]
    assert token["status"] == "fail"
    assert token["summary"] == "inventory/group_vars/all.yml:1:1: token source 'vault' (command sh): exit status 7"
    assert token["remedy"] == "run it by hand to see why"
    for host in ("gpu1", "gpu2"):
        assert found[host, "server"][0]["summary"] == "ready"
        assert {check["status"] for check in found[host, "token"]} == {"ok"}
        assert found[host, "access"][0]["summary"] == "not asked: token source 'vault' gives no token"
    assert [check for check in said.json["checks"] if check["status"] == "fail"] == [token]


def test_a_prompt_is_not_asked_and_does_not_fail(sound: Desk) -> None:
    """Who looks for trouble types no token."""
    sound.write("inventory/group_vars/all.yml", "vllm_token_sources:\n  typed: {prompt: Token}\n")
    sound.change("port: 8001\n", "port: 8001\nhf_token: typed\n")
    said = sound("doctor", "--json")
    (token,) = checks(said)["", "token"]
    assert (token["status"], said.code) == ("skipped", 0)
    assert "typed" in token["summary"]


def test_no_token_at_all_is_no_failure(sound: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that need none run without."""
    monkeypatch.delenv("HF_TOKEN")
    said = sound("doctor", "--json")
    (token,) = checks(said)["", "token"]
    assert (token["status"], token["summary"], said.code) == ("warn", "default: there is no token", 0)


@pytest.mark.parametrize(
    ("value", "wins", "variable", "statuses"),
    [
        (TOKEN, True, "HF_TOKEN", []),
        (TOKEN, False, "HF_TOKEN", []),
        (OTHER, True, "HF_TOKEN", ["fail"]),
        (OTHER, True, "HUGGING_FACE_HUB_TOKEN", ["warn"]),
        (OTHER, False, "HF_TOKEN", ["warn"]),
    ],
)
def test_tokens_beside_the_env_file_as_the_plan_sees_them(
    sound: Desk,
    value: str,
    wins: bool,  # noqa: FBT001 - a parameter of the table above
    variable: str,
    statuses: list[str],
) -> None:
    """One with the same token is none; what wins fails; what does not count is shown."""
    place = {"variable": variable, "path": "/etc/x.d/mine.conf", "line": 2, "value": value, "wins": wins}
    sound.hosts["gpu1"].systemd.token_places["qwen"] = [place]
    told = [check for check in checks(sound("doctor", "--json"))["gpu1", "token"] if check["status"] != "ok"]
    assert [check["status"] for check in told] == statuses
    assert all("/etc/x.d/mine.conf" in check["summary"] + check["remedy"] for check in told)
    assert ("mine.conf" in sound("plan").out) == bool(statuses)


def test_a_clock_is_measured_host_by_host(sound: Desk) -> None:
    """How far it is off is told; half a minute is borne."""
    sound.hosts["gpu1"].clock_off = 45.0
    sound.hosts["gpu2"].clock_off = -12.0
    found = checks(sound("doctor", "--json"))
    (first,), (second,) = found["gpu1", "clock"], found["gpu2", "clock"]
    assert (first["status"], second["status"]) == ("warn", "ok")
    assert first["summary"].startswith(("45.00 s ahead of the clock here (± 0.", "44.99 s"))
    assert second["summary"].startswith(("12.00 s behind the clock here (± 0.", "12.01 s"))


GPU = {"index": 0, "uuid": "GPU-1", "name": "NVIDIA H100", "memory_total": 80 * GIB, "memory_used": 0}
DRIVER = {"problem": None, "driver": "570.86", "cuda": "12.8", "devices": [{**GPU, "memory_free": 79 * GIB}]}


def test_gpus_are_shown_with_their_driver(sound: Desk) -> None:
    """And a vLLM that is built for a newer CUDA is told where its version says so."""
    host = sound.hosts["gpu1"]
    host.gpus = DRIVER
    (gpu,) = checks(sound("doctor", "--json"))["gpu1", "gpu"]
    assert gpu["summary"] == "GPU 0: NVIDIA H100, 79.0 of 80.0 GiB free, driver 570.86 (CUDA 12.8)"
    host.kernel.installed = {asked: (path, "0.32.0+cu130") for asked, (path, _) in host.kernel.installed.items()}
    _, built = checks(sound("doctor", "--json"))["gpu1", "gpu"]
    assert built["status"] == "warn"
    assert built["summary"] == "vLLM 0.32.0+cu130 is built for CUDA 13.0, the driver knows 12.8"
    host.gpus = {**DRIVER, "devices": [], "problem": "NVML: Driver/library version mismatch"}
    said = sound("doctor", "--json")
    assert (checks(said)["gpu1", "gpu"][0]["status"], said.code) == ("fail", 1)


def test_a_host_without_a_new_enough_python_is_ill(sound: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was reached: that is a failing check with a remedy; the other host is looked at."""
    explained = explain(Connection(host="gpu2", kind=ConnectionKind.SSH, address="gpu2"), NO_PYTHON, TOO_OLD)
    opened = sound._open

    def open_host(connection: Connection) -> Session:
        if connection.host == "gpu2":
            raise explained
        return opened(connection)

    monkeypatch.setattr(prepare, "_real_opener", lambda _: open_host)
    said = sound("doctor", "--json")
    (python,) = checks(said)["gpu2", "python"]
    assert (python["status"], said.code) == ("fail", 1)
    assert python["summary"] == "no Python 3.8 or newer there (found: 3.6.15 at /usr/bin/python3)"
    assert "the one beside vllm_executable" in python["remedy"]
    assert checks(said)["gpu1", "server"][0]["status"] == "ok"


def test_what_a_host_is_made_of(sound: Desk) -> None:
    """Folders, runtime and vLLM, each with its remedy."""
    host = sound.hosts["gpu1"]
    host.folder_problem = "/etc/vmreconcile: others may write it"
    host.kernel.installed = {}
    found = checks(sound("doctor", "--json"))
    assert (found["gpu1", "folders"][0]["status"], found["gpu1", "vllm"][0]["status"]) == ("fail", "fail")
    assert "vllm_state_dir" in found["gpu1", "folders"][0]["remedy"]
    assert "vllm_executable" in found["gpu1", "vllm"][0]["remedy"]
    assert found["gpu2", "folders"][0]["status"] == "ok"


def test_an_unknown_cause_is_told_alike(sound: Desk) -> None:
    """status, logs and doctor show the error above vLLM's generic words, as apply did."""
    sound.hosts["gpu2"].kernel.behaviours["qwen"] = Behaviour(exit_code=1, log=UNKNOWN)
    failed = sound("restart", "qwen@gpu2")
    said = [failed.out, sound("status").out, sound("logs", "qwen@gpu2").err, sound("doctor", "qwen@gpu2").out]
    for text in said:
        assert "KeyError: 'frobnicate'" in text
        assert "Engine core initialization failed" not in text


def test_logs_explain_the_whole_latest_start(sound: Desk) -> None:
    """However few lines are printed, the cause is looked for where status looks: since the latest start."""
    noise = tuple(f"worker {number}: shutting down" for number in range(150))
    sound.hosts["gpu2"].kernel.behaviours["qwen"] = Behaviour(exit_code=1, log=(*NO_KV, *noise))
    sound("restart", "qwen@gpu2")
    (mend,) = [line for line in sound("status").out.splitlines() if line.startswith("  mend  ")]
    for lines in ("100", "1"):
        logs = sound("logs", "qwen@gpu2", "-n", lines)
        assert mend in logs.err
        assert NO_KV[0] not in logs.out


def test_logs_know_how_a_server_ended(sound: Desk) -> None:
    """As status does: exit status 2 means a refused argument, whatever an earlier start left in the log."""
    behaviours = sound.hosts["gpu2"].kernel.behaviours
    for behaviour in (
        Behaviour(exit_code=1, log=NO_KV),
        Behaviour(exit_code=2, log=("vllm serve: error: unrecognized arguments: --frob",)),
    ):
        behaviours["qwen"] = behaviour
        sound("restart", "qwen@gpu2")
    mend = [line for line in sound("status").out.splitlines() if line.startswith(("  log", "  mend"))]
    assert "--frob" in mend[0]
    assert sound("logs", "qwen@gpu2").err.splitlines()[1:] == mend


def test_names_narrow_it(sound: Desk) -> None:
    """A host, a server, a model; what is neither is wrong usage."""
    sound.opened.clear()
    assert set(checks(sound("doctor", "gpu2", "--json"))) >= {("gpu2", "server")}
    assert set(sound.opened) == {"gpu2"}
    found = checks(sound("doctor", "qwen@gpu1", "--json"))
    assert [each["server"] for each in found["gpu1", "server"]] == ["qwen@gpu1"]
    said = sound("doctor", "gpu9")
    assert (said.code, "neither a host nor a server" in said.err) == (64, True)


def test_a_host_out_of_reach_is_skipped(sound: Desk) -> None:
    """Exit 3; the other is looked at."""
    sound.hosts["gpu2"].unreachable = "no route to host"
    said = sound("doctor", "--json")
    assert said.code == 3
    assert checks(said)["gpu2", "reach"][0]["status"] == "skipped"
    assert [host["host"] for host in said.json["unreachable"]] == ["gpu2"]
    assert checks(said)["gpu1", "server"][0]["status"] == "ok"


@pytest.fixture
def hub(sound: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that answers."""
    del sound
    with Hub() as running:
        running.tokens[TOKEN] = "ada"
        running.repositories["org/qwen"] = Repository(gate=Gate.GATED)
        for name, value in running.environ().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        yield running


def test_token_and_access_are_looked_at(sound: Desk, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose the token is, what it may not read, what the environment hides."""
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_anotherTokenThatIsIgnored")
    said = sound("doctor", "--json")
    found = checks(said)
    assert said.code == 1
    assert [each["status"] for each in found["", "token"]] == ["ok", "warn"]
    assert "of ada" in found["", "token"][0]["summary"]
    assert "ignored" in found["", "token"][1]["summary"]
    assert found["", "hub"][0]["status"] == "ok"
    (access,) = found["gpu1", "access"]
    assert (access["status"], "ask for access" in access["remedy"]) == ("fail", True)
    hub.grant("org/qwen", TOKEN)
    assert checks(sound("doctor", "--json"))["gpu1", "access"][0]["status"] == "ok"
    assert TOKEN not in said.out + said.err


def test_reading_the_log_of_a_server_that_serves_asks_it_nothing(sound: Desk) -> None:
    """A look leaves lines in the log that is read."""
    for host in sound.hosts.values():
        host.requests.clear()
    assert sound("logs", "qwen@gpu1").code == 0
    assert {request["do"] for request in sound.hosts["gpu1"].requests} == {"log"}

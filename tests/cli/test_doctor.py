"""doctor: what it says of sound and of broken hosts, and that it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.desk import Desk, Said
from tests.lab.fake_kernel import Behaviour
from tests.lab.hub import Gate, Hub, Repository
from tests.lab.worlds import TOKEN

GIB = 1 << 30
STATE = "/var/lib/vmreconcile"
SOUND: dict[str, Any] = {
    "caches": [{"slug": "qwen", "path": "/root/.cache/huggingface/hub", "bytes": 3 * GIB, "partial": 0}],
    "disks": [
        {"path": STATE, "device": 1, "total": 100 * GIB, "free": 50 * GIB, "inodes_free": 1000},
        {"path": "/root/.cache/huggingface/hub", "device": 1, "total": 100 * GIB, "free": 50 * GIB},
        {"path": "/dev/shm", "device": 2, "total": 8 * GIB, "free": 8 * GIB},
    ],
    "limits": {"nofile": [1024, 1048576]},
    "leftovers": [],
    "token_files": [],
    "hubs": [{"endpoint": "https://huggingface.co", "problem": None, "seconds": 0.1}],
}
NO_KV = ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",)


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
    assert lines[-1].endswith("1 skipped"), "HF_HUB_OFFLINE is set in tests"
    assert {name: len(host.done) for name, host in sound.hosts.items()} == before
    assert sound("doctor", "-q").out.splitlines()[0] == "here"
    assert TOKEN not in said.out + said.err


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
        (broken(limits={"nofile": [256, 1024]}), "open_files", "warn", "1024 at most"),
        (
            broken(leftovers=[{"path": "/dev/shm/psm_1", "bytes": 5 << 20, "age_seconds": 900}]),
            "leftover",
            "warn",
            "/dev/shm: 5 MiB that no process uses: psm_1",
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
    assert "on gpu2" in server["remedy"]


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

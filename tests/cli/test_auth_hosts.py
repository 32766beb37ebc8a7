"""auth status and auth check with --on-hosts: what hosts have, and what the Hub tells them."""

from __future__ import annotations

import pytest

from tests.lab.desk import Desk
from tests.lab.fake_host import FakeHost
from tests.lab.worlds import TOKEN
from vmreconcile.agent import envfile

OTHER = TOKEN.replace("0000", "9999")


def rows(desk: Desk) -> dict[str, list[str]]:
    """The table's cells by server."""
    lines = [line.split() for line in desk("auth", "status", "--on-hosts").out.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if "@" in cells[0]}


def test_status_shows_file_and_process(desk: Desk) -> None:
    """Before a start, after it, after a new login, and with an edited file; equal tokens have equal fingerprints."""
    assert rows(desk)["qwen@gpu1"] == ["default", "not", "there", "not", "running"]
    desk("apply", "-y")
    found = rows(desk)
    assert found["qwen@gpu1"][:3] == ["default", "current", "0600"]
    assert found["qwen@gpu1"][-1] == "current"
    assert found["qwen@gpu1"][-2] == found["qwen@gpu2"][-2]
    assert len(found["qwen@gpu1"][-2]) == 8
    assert rows(desk)["qwen@gpu1"][-2] != found["qwen@gpu1"][-2], "another salt in each run"


def test_status_tells_of_files_that_a_restart_would_stumble_over(desk: Desk) -> None:
    """An env file that is gone below what runs, and one of which others may read a part."""
    desk("apply", "-y")
    host = desk.hosts["gpu1"]
    path = f"{host.config}/env/qwen.env"
    kept_aside = host.kernel.files.pop(path)
    assert desk("auth", "status", "--on-hosts").code == 1
    host.kernel.files[path] = kept_aside
    assert desk("auth", "status", "--on-hosts").code == 0
    host.env_problem = "qwen.token: mode 0644, others than its owner may use it"
    assert desk("auth", "status", "--on-hosts").code == 1
    assert "others than its owner may use it" in desk("doctor").out


def test_a_check_of_nothing_says_so(desk: Desk) -> None:
    """Silence could as well be a check that failed to run."""
    (desk.folder / "models.d/qwen.yaml").unlink()
    said = desk("auth", "check", "--on-hosts")
    assert (said.code, said.out) == (0, "nothing to ask\n")


def test_status_tells_what_is_not_right(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another token in the file, another in the process, a mode, a drop-in; exit 1, and no token in what is said."""
    desk("apply", "-y")
    assert desk("auth", "status", "--on-hosts").code == 0
    monkeypatch.setenv("HF_TOKEN", OTHER)
    said = desk("auth", "status", "--on-hosts", "--json")
    assert said.code == 1
    first = said.json["servers"][0]
    assert (first["server"], first["source"], first["process"]["current"]) == ("qwen@gpu1", "default", False)
    assert (first["env_file"]["current"], first["env_file"]["mode"]) == (False, "0600")
    assert TOKEN not in said.out + said.err
    desk("apply", "-y")
    host = desk.hosts["gpu1"]
    path = f"{host.config}/env/qwen.env"
    file = host.kernel.files[path]
    file.content = envfile.render(
        [(name, OTHER if name == "HF_TOKEN" else value) for name, value in envfile.parse(file.content).items()]
    )
    file.mode = 0o640
    place = {"variable": "HF_TOKEN", "path": "/etc/x.conf", "line": 3, "value": TOKEN, "wins": True}
    host.systemd.token_places["qwen"] = [place]
    monkeypatch.setenv("HF_TOKEN", TOKEN.replace("0000", "5555"))
    said = desk("auth", "status", "--on-hosts")
    assert said.code == 1
    assert "HF_TOKEN in /etc/x.conf:3, wins over the env file" in said.out
    assert "0640" in said.out
    assert not any(secret in said.out + said.err for secret in (TOKEN, OTHER))


def test_the_age_of_an_env_file(desk: Desk) -> None:
    """Since it was written, by the host's own clock; written anew it is young again."""
    desk("apply", "-y")
    desk.hosts["gpu1"].kernel.now += 3 * 3600
    found = rows(desk)
    assert found["qwen@gpu1"][3] == "3h"
    assert found["qwen@gpu2"][3].endswith("s")
    first, second = desk("auth", "status", "--on-hosts", "--json").json["servers"]
    assert first["env_file"]["age_seconds"] == pytest.approx(3 * 3600, abs=60)
    assert second["env_file"]["age_seconds"] < 60
    desk.change("port: 8001", "port: 8001\nenv: {A: b}")
    desk("apply", "-y")
    assert rows(desk)["qwen@gpu1"][3].endswith("s")


def test_status_of_servers_that_are_to_have_none(desk: Desk) -> None:
    """No token is what is right there."""
    desk.change("port: 8001", "port: 8001\nhf_token: null")
    desk("apply", "-y")
    found = rows(desk)["qwen@gpu1"]
    assert (found[:3], found[-2:]) == (["none", "no", "token"], ["no", "token"])
    assert desk("auth", "status", "--on-hosts").code == 0


def test_a_host_out_of_reach_is_named(desk: Desk) -> None:
    """Exit 3; the other one is shown."""
    desk("apply", "-y")
    desk.hosts["gpu2"].unreachable = "no route to host"
    for words in (("auth", "status", "--on-hosts"), ("auth", "check", "--on-hosts")):
        said = desk(*words)
        assert (said.code, "unreachable: gpu2: no route to host" in said.err) == (3, True), said
        assert "qwen@gpu1" in said.out


def test_check_asks_from_each_host(desk: Desk) -> None:
    """With the controller's token where it has one; a refusal names the host and the way out."""
    desk.hosts["gpu2"].hub["org/qwen", TOKEN] = "gated"
    said = desk("auth", "check", "--on-hosts")
    assert said.code == 1
    assert "ok  qwen@gpu1: org/qwen may be read" in said.out
    assert "gated  qwen@gpu2: org/qwen is gated" in said.out
    assert "mend  on gpu2: ask for access" in said.out
    checks = desk("auth", "check", "--on-hosts", "--json").json["checks"]
    assert [(each["host"], each["access"], each["token"]) for each in checks] == [
        ("gpu1", "ok", "controller"),
        ("gpu2", "gated", "controller"),
    ]


def test_check_uses_what_the_host_keeps(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the controller has no token."""
    desk("apply", "-y")
    monkeypatch.delenv("HF_TOKEN")
    desk.hosts["gpu1"].hub["org/qwen", TOKEN] = "token_invalid"
    checks = desk("auth", "check", "--on-hosts", "--json", "-l", "gpu1").json["checks"]
    assert [(each["access"], each["token"]) for each in checks] == [("token_invalid", "env-file")]


def test_check_of_an_offline_server_asks_nobody(desk: Desk) -> None:
    """Its own environment says so."""
    desk.change("port: 8001", "port: 8001\nenv: {HF_HUB_OFFLINE: '1'}")
    said = desk("auth", "check", "--on-hosts", "--json")
    assert (said.code, {each["access"] for each in said.json["checks"]}) == (0, {"offline"})
    assert not any(request["do"] == "hub-check" for host in desk.hosts.values() for request in host.requests)


def test_a_host_that_does_not_answer_for_a_server_is_no_good_news(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers belong to the servers that they name: none for a server is a failed check, whatever else is said."""

    def silent(_: FakeHost, check: dict[str, str], __: object) -> dict[str, str]:
        return {"slug": "another", "access": "ok", "detail": check["slug"], "token": "\x1b[2J"}

    monkeypatch.setattr(FakeHost, "_hub_answer", silent)
    said = desk("auth", "check", "--on-hosts")
    assert said.code == 1
    assert said.out.count("the host gave no answer") == 2
    assert "ok  " not in said.out
    checks = desk("auth", "check", "--on-hosts", "--json").json["checks"]
    assert [(each["server"], each["access"], each["token"]) for each in checks] == [
        ("qwen@gpu1", "hub_unreachable", "none"),
        ("qwen@gpu2", "hub_unreachable", "none"),
    ]


def test_answers_in_another_order_are_matched(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whose token it was is one of three words."""
    desk.change("port: 8001", "port: 8001\nreplicas: 2")

    def turned(_: FakeHost, check: dict[str, str], __: object) -> dict[str, str]:
        other = {"qwen": "qwen_1", "qwen_1": "qwen"}[check["slug"]]
        return {"slug": other, "access": "ok" if other == "qwen" else "gated", "detail": "", "token": "\x1b[2J"}

    monkeypatch.setattr(FakeHost, "_hub_answer", turned)
    checks = desk("auth", "check", "--on-hosts", "--json", "-l", "gpu1").json["checks"]
    assert {each["server"]: (each["access"], each["token"]) for each in checks} == {
        "qwen@gpu1": ("ok", "none"),
        "qwen/1@gpu1": ("gated", "none"),
    }
